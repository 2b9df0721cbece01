"""How much of the input can be recovered from ReLU(Bx)? (MobileNetV2, Appendix A)

Question: do Lemma 2 and Theorem 1 hold in experiments, and from which width on does each bound of the theorem hold?
Command:  python experiments/relu_invertibility.py
Cost:     20 s on 2 CPU cores.
Expect:   all 50 points agree with Theorem 1, and all examples with Lemma 2; half is lost at m = 2n - 1, and at most
          1.6 % at m = 6n.

B is m x n. Theorem 1 says that on average the fraction N / 2^m of the volume is preserved, N = sum_{k=0}^{m-n} C(m, k),
if changing the sign of any row of B does not change its distribution. (The paper's text calls N / 2^m the collapsed
fraction.) The script draws samples of (B, x), with Gaussian B and x uniform in the unit ball, and counts those whose
active rows have rank n. The intervals are exact (Clopper and Pearson) and simultaneous: by Bonferroni each has
level 1 - 5 % / points, so if the theorem is true, the chance that any point falls outside is at most 5 %.

Lemma 2 is tested on examples in float64. If its condition holds, least squares on the active rows must recover x. If
not, the script looks for a second x with the same image in the null space of the active rows. Half of the matrices have
rows that are multiples of each other, so that n or more active rows need not include n independent ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv2_jax import cli
from mnv2_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILY = 0.05
"""Chance that the theorem, if true, disagrees with the samples at any point."""
EXPANSION = 6
"""The paper's t (Sec. 3.4)."""
LARGEST = 512
"""Largest m at which bounds are checked."""
EXACT = 1e-6
"""Relative to |x|: the largest error of least squares, and the smallest distance of a second x."""

_FROM_M = dict.fromkeys(("first", "second", "third", "third_follows_from_second"), (int, type(None)))
SHAPE = {
    **dict.fromkeys(("points", "points_that_agree", "points_that_refute_n_plus_1"), int),
    "results": [{"n": int, "m": int, "theorem_1": float, "preserved": float, "interval": [float], "agrees": bool}],
    "bounds": [{"n": int, "holds_from_m": _FROM_M}],
    "lemma_2": dict.fromkeys(("recovered", "determined", "second_x_found", "undetermined"), int),
}
"""Expected types of the summary fields that are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    n: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Input dimensions, columns of B."""
    m: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 16, 24, 32, 40)
    """Channels, rows of B."""
    samples: int = 20_000
    """Samples of (B, x) per pair of n and m."""
    examples: int = 2_000
    """Examples on which Lemma 2 is tested."""
    seed: int = 0
    """Random seed of samples and examples."""
    out: Path = Path("runs/relu_invertibility")
    """Output folder for the figure and the summary."""
    overwrite: bool = False
    """Recompute, and replace the results in the folder."""


def check(options: Options) -> None:
    """Check the flags.

    Raises:
        UserError: for a value out of range; the message names the flag.
    """
    for name, most in (("n", 16), ("m", 128)):
        values = getattr(options, name)
        if not values or list(values) != sorted(set(values)) or not 1 <= values[0] <= values[-1] <= most:
            raise UserError(
                f"--{name} must be increasing numbers from 1 to {most}, got {' '.join(map(str, values)) or 'none'}"
            )
    for name, low, high in (("samples", 100, 1_000_000), ("examples", 10, 100_000)):
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name} must be from {low} to {high}, got {getattr(options, name)}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be from 0 to 2^32 - 1, got {options.seed}")


def try_theorem(options: Options) -> list[dict[str, Any]]:
    """Return a result per n and m: the counted fraction, its interval, and whether Theorem 1 lies in it."""
    import jax
    import scipy.stats

    from mnv2_jax.analysis.invertibility import BOUNDS, bounds_hold, count_preserved, preserved_fraction

    confidence = 1 - FAMILY / (len(options.n) * len(options.m))
    results = []
    for n in options.n:
        for m in options.m:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), n), m)
            count = int(count_preserved(key, m, n=n, rows=max(options.m), samples=options.samples))
            interval = scipy.stats.binomtest(count, options.samples).proportion_ci(confidence, method="exact")
            low, high = float(interval.low), float(interval.high)
            theory = preserved_fraction(n, m)
            results.append(
                {
                    "n": n,
                    "m": m,
                    "theorem_1": float(theory),
                    "theorem_1_exact": f"{theory.numerator}/{theory.denominator}",
                    "preserved": count / options.samples,
                    "interval": [low, high],
                    "agrees": low <= theory <= high,
                    # Whether the samples can tell n from n + 1.
                    "refutes_n_plus_1": not low <= preserved_fraction(n + 1, m) <= high,
                    "bounds": {
                        name: {"value": bound(n, m), "holds": holds}
                        for (name, bound), holds in zip(BOUNDS.items(), bounds_hold(n, m), strict=True)
                    },
                }
            )
    return results


def check_bounds(options: Options) -> list[dict[str, Any]]:
    """Return, per n, the m from which on each bound of Theorem 1 holds up to LARGEST, in exact integer arithmetic."""
    from mnv2_jax.analysis.invertibility import bounds_hold, holds_from, third_follows

    found = []
    for n in options.n:
        holds = {m: (*bounds_hold(n, m), third_follows(n, m)) for m in range(1, LARGEST + 1)}
        names = ("first", "second", "third", "third_follows_from_second")
        from_m = {name: holds_from({m: each[place] for m, each in holds.items()}) for place, name in enumerate(names)}
        found.append({"n": n, "holds_from_m": from_m})
    return found


def try_lemma(options: Options) -> dict[str, Any]:
    """Test both directions of Lemma 2 on random examples."""
    import numpy as np

    from mnv2_jax.analysis.invertibility import another_solution, is_determined, recover, relu_image

    random = np.random.default_rng(options.seed)
    recovered, errors, found, distances, changes, dependent = 0, [0.0], 0, [], [0.0], 0
    for index in range(options.examples):
        n = int(random.choice(options.n))
        # m is drawn around 2n, where about half of the x are determined.
        m = int(random.integers(1, 3 * n + 2))
        matrix = random.standard_normal((m, n))
        if index % 2:
            # Rows are multiples of each other, of either sign.
            matrix = matrix[random.integers(0, (m + 1) // 2, m)] * random.standard_normal((m, 1))
        x = random.standard_normal(n)
        image, length = relu_image(matrix, x), float(np.linalg.norm(x))
        if is_determined(matrix, image):
            error = float(np.linalg.norm(recover(matrix, image) - x)) / length
            errors.append(error)
            recovered += error <= EXACT
        else:
            dependent += int(np.count_nonzero(image) >= n)
            other = another_solution(matrix, x)
            change = float(np.abs(relu_image(matrix, other) - image).max())
            distances.append(float(np.linalg.norm(other - x)) / length)
            changes.append(change)
            found += change <= 1e-9 * length and distances[-1] > EXACT
    return {
        "examples": options.examples,
        "determined": len(errors) - 1,
        "recovered": recovered,
        "largest_relative_error": max(errors),
        "undetermined": len(distances),
        "undetermined_with_n_active_rows": dependent,
        "second_x_found": found,
        "largest_change_of_image": max(changes),
        "smallest_relative_distance": min(distances, default=None),
    }


def draw(summary: Mapping[str, Any], options: Options) -> "Figure":
    """Draw the preserved fraction against m, and the collapsed fraction against m with its bounds and against m / n."""
    import matplotlib.pyplot as plt
    import numpy as np

    from mnv2_jax.ablation.figures import COLORS, LINES, MARKERS
    from mnv2_jax.analysis.drawing import headline, tidy
    from mnv2_jax.analysis.invertibility import BOUNDS, preserved_fraction

    figure, (kept, lost, ratio) = plt.subplots(1, 3, figsize=(15, 6.6), layout="constrained")
    widths = np.arange(1, max(options.m) + 1)
    floor = 1e-6
    first, second, third = BOUNDS.values()
    for index, n in enumerate(options.n):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        rows = [row for row in summary["results"] if row["n"] == n]
        places, values = [row["m"] for row in rows], np.array([row["preserved"] for row in rows])
        low, high = np.array([row["interval"] for row in rows]).T
        theory = np.array([float(preserved_fraction(n, int(m))) for m in widths])
        dots = {"fmt": marker, "color": color, "markersize": 5, "capsize": 2, "elinewidth": 1}
        line = {"color": color, "linewidth": 1.3, "linestyle": LINES[index % len(LINES)]}
        kept.plot(widths, theory, **line)
        kept.errorbar(places, values, yerr=np.abs([values - low, high - values]), label=f"n = {n}", **dots)
        if n in (options.n[0], options.n[len(options.n) // 2], options.n[-1]):
            # At most three n, since each has three lines. Below m = n everything collapses.
            own = range(n, max(*options.m, n) + 1)
            exact = [float(1 - preserved_fraction(n, m)) for m in own]
            lost.plot(own, exact, color=color, linewidth=1.8)
            place = next((place for place, value in enumerate(exact) if value < 3e-2), len(own) - 1)
            lost.annotate(f"n = {n}", (own[place], exact[place]), (-3, -3), textcoords="offset points", color=color, ha="right", va="top", fontsize=10, bbox=dict(color="white", pad=1))  # fmt: skip
            for bound, style in ((first, "--"), (second, ":")):
                lost.plot(own, [1 - bound(n, m) for m in own], color=color, linewidth=1.2, linestyle=style)
        wide = np.arange(1, 12 * n + 1)
        ratio.plot(wide / n, [float(1 - preserved_fraction(n, int(m))) for m in wide], **line)
        # A collapsed fraction of 0 cannot be drawn on a logarithmic axis.
        seen = [row for row in rows if row["preserved"] < 1 and row["m"] <= 12 * n]
        gone = np.array([1 - row["preserved"] for row in seen])
        bars = np.array(
            [[row["interval"][1] - row["preserved"], row["preserved"] - row["interval"][0]] for row in seen]
        )
        ratio.errorbar([row["m"] / n for row in seen], gone, yerr=bars.reshape(-1, 2).T, **dots)
    kept.plot([], [], "-", color="0.3", label="N / 2$^m$, Theorem 1")
    kept.errorbar([], [], yerr=[], fmt="o", color="0.3", capsize=2, label=f"{options.samples:,} samples, interval")
    kept.set(
        title="Preserved fraction of the volume", xlabel="m, channels", ylabel="preserved fraction", ylim=(-0.02, 1.02)
    )
    kept.legend(frameon=False, fontsize=9, loc="lower right")
    lost.plot(widths, [1 - third(1, int(m)) for m in widths], color="0.6", linewidth=3, linestyle=(0, (6, 2)), zorder=1)
    for style, label in (
        ("-", "Theorem 1, 1 − N / 2$^m$"),
        ("--", "its first bound, m$^{n+1}$ / (2$^m$ n!)"),
        (":", "its second, 2$^{(n+1) \\log_2 m - m}$"),
    ):
        lost.plot([], [], color="0.3", linestyle=style, label=label)
    lost.plot([], [], color="0.6", linewidth=3, linestyle=(0, (6, 2)), label="its third, 2$^{-m/2}$, for large m")
    lost.set(
        title="Collapsed fraction and the theorem's bounds on it", xlabel="m, channels", ylabel="collapsed fraction"
    )
    lost.legend(fontsize=9.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    ratio.axvline(EXPANSION, color="0.4", linewidth=1, linestyle=":")
    ratio.annotate(
        f"the paper's t = {EXPANSION}", (EXPANSION, 1), (4, -12), textcoords="offset points", fontsize=10, color="0.3"
    )
    ratio.set(title="Collapsed fraction against the expansion", xlabel="m / n, channels per dimension", ylabel="collapsed fraction", xlim=(0, 12.2))  # fmt: skip
    for axes in (lost, ratio):
        axes.set_yscale("log")
        axes.set_ylim(floor, 2)
    for axes in (kept, lost, ratio):
        tidy(axes, "both")
        axes.title.set_fontsize(11)
    headline(
        figure,
        f"The paper's Theorem 1 agrees with samples at {summary['points_that_agree']} of {summary['points']} pairs of n and m",
        "Fraction of the volume on which x can be told from ReLU(Bx), B with m rows and n columns (Appendix A): "
        f"{options.samples:,} samples of (B, x) at each pair, exact intervals (95 % together).",
    )
    return figure


def show(results: Sequence[Mapping[str, Any]], options: Options) -> Any:
    """Return a table of preserved fractions, of the samples and by Theorem 1, with two rows per n."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("preserved, %", *(f"m={m}" for m in options.m), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for n in options.n:
        rows = [row for row in results if row["n"] == n]
        table.add_row(f"n={n}, Theorem 1", *(f"{100 * row['theorem_1']:.2f}" for row in rows))
        mark = {True: "", False: "!"}
        table.add_row(
            "samples", *(f"{100 * row['preserved']:.2f}{mark[row['agrees']]}" for row in rows), end_section=True
        )
    return table


def compute(options: Options) -> dict[str, Any]:
    """Return the summary: the theorem against samples, its bounds, and the lemma on examples."""
    lemma, results, bounds = try_lemma(options), try_theorem(options), check_bounds(options)
    agree, tell = (sum(row[name] for row in results) for name in ("agrees", "refutes_n_plus_1"))
    return {
        "experiment": "relu_invertibility",
        "samples": options.samples,
        "family_wise_confidence": 1 - FAMILY,
        "points": len(results),
        "points_that_agree": agree,
        "points_that_refute_n_plus_1": tell,
        "N / 2^m": "the preserved fraction; the paper's text says collapsed",
        "results": results,
        "bounds_checked_up_to_m": LARGEST,
        "bounds": bounds,
        "lemma_2": lemma,
    }


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return the findings as sentences."""
    lemma = summary["lemma_2"]
    lines = [
        f"Theorem 1: N / 2^m, which is the preserved fraction, agrees with the samples at {summary['points_that_agree']} "
        f"of {summary['points']} points; with n + 1 instead of n it would be refuted at "
        f"{summary['points_that_refute_n_plus_1']}."
    ]
    for row in summary["bounds"]:
        texts = {
            name: f"from m = {m} on" if m else f"nowhere up to m = {LARGEST}" for name, m in row["holds_from_m"].items()
        }
        lines.append(
            f"n = {row['n']}: the first bound holds {texts['first']}, the second {texts['second']}, the third "
            f"{texts['third']}; it follows from the second {texts['third_follows_from_second']}."
        )
    return [
        *lines,
        f"Lemma 2: x was recovered in {lemma['recovered']:,} of {lemma['determined']:,} examples where it is determined; "
        f"a second x with the same image was found in {lemma['second_x_found']:,} of {lemma['undetermined']:,} where one "
        "should exist.",
    ]


def main(options: Options) -> None:
    """Test theorem and lemma, draw, and print the findings."""
    check(options)
    from mnv2_jax.results import name_results, open_results, settings_of, write_results

    settings = settings_of(options, "relu_invertibility")
    known = open_results(settings, options.out, options.overwrite, shape=SHAPE)

    from mnv2_jax.training.progress import create_console

    console = create_console()
    summary = known or compute(options)
    write_results(options.out, summary, draw(summary, options))
    console.print(show(summary["results"], options))
    for line in sentences(summary):
        console.print(line, markup=False)
    name_results(console, options.out, known)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
