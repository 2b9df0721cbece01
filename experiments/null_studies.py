"""How often is a study wrong? The statistics of studies, tested on simulated studies whose true differences are known.

Question: how often does a study call an arm better or worse that is not, and how often do all of its intervals contain
          the true differences?
Command:  python experiments/null_studies.py
Cost:     3 minutes on 1 CPU core.
Expect:   within chance, 5 % false verdicts and 95 % coverage for symmetric differences; false verdicts in up to 14 % of
          studies for exponential and in up to 27 % for lognormal differences; if one run in ten fails, the mean is
          wrong in 35 to 90 % of studies and the report in 4 %.

Studies are simulated, not trained. One to eight arms are compared with one baseline at n seeds. The shared baseline
correlates the differences of two arms by 1/2. Each study goes through `compare_all`, which also decides the verdicts
of real studies. For each case the script counts the studies with any false verdict (about a comparison without a
difference, or of the wrong sign) and the studies whose intervals all contain the true differences. Both rates have
exact 95 % intervals (Clopper and Pearson). The differences are

- normal, heavy-tailed (Student's t, 3 degrees of freedom), exponential, and lognormal (sigma 1), all of mean zero;
- mixed: normal, with every other arm shifted by 1.5 standard deviations, so that not all comparisons are null;
- failing: one run in ten ends far below the baseline, and the others lie so far above it that the mean is zero;
- failing, else alike: one run in ten ends far below the baseline, and the median is zero.

Failing studies are judged in two ways. "By the mean" uses the mean alone, as if nobody knew which runs failed. "As
reported" is how studies do it: they report the median if any run failed, so the truth is the median. With one failure
in ten runs, a third to a half of all arms have no failed run. Studies then report the mean of runs that all learnt.
How often they decide on this mean although the mean over all possible runs is zero is counted as "unseen_failures". No
test of so few runs can know that.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv2_jax import cli
from mnv2_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.05
"""The promised rate of false verdicts, and of studies with an interval that misses its true difference."""
CHANCE, BASELINE, SPREAD = 0.1, 0.75, 0.01
"""Accuracies: without learning, of the baseline, and the standard deviation over seeds."""
FAILS, FAR = 0.1, 0.6
"""Fraction of runs that fail, and by how much accuracy they fall below the baseline."""
SHIFT = 1.5
"""True difference of every other arm of a mixed study, in standard deviations."""

_RATE = {"rate": float, "ci95": [float]}
_RESULT = {"false_verdicts": _RATE, "coverage": _RATE, "without_bounds": float}
SHAPE = {"sentence": str, "results": [{**_RESULT, "differences": str, "n": int, "comparisons": int}]}
"""Expected types of the summary fields that are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    seeds: tuple[int, ...] = (6, 7, 8, 9, 10)
    """Values of n, the number of seeds."""
    comparisons: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of arms besides the baseline."""
    studies: int = 4000
    """Simulated studies for each kind of differences, n and number of comparisons."""
    seed: int = 0
    """Random seed of the differences."""
    out: Path = Path("runs/null_studies")
    """Output folder for the figure and the summary."""
    overwrite: bool = False
    """Recompute, and replace the results in the folder."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of differences.

    Attributes:
        title: title of its panel in the figure.
        quantile: quantile function of the unshifted differences.
        truth: their true value: the mean, or the median if that is what studies report.
        known: whether the study knows the accuracy of chance, and so which runs failed.
        shift: added to the difference of every other arm, so there must be two arms or more.
        exact: whether theory promises at most LEVEL false verdicts, and that all intervals hold in at least `coverage`
            of studies.
    """

    title: str
    quantile: Callable[["np.ndarray"], "np.ndarray"]
    truth: float = 0.0
    known: bool = True
    shift: float = 0.0
    exact: bool = False

    @property
    def coverage(self) -> float:
        """Promised rate of studies whose intervals all hold. Half of a mixed study's comparisons are null, and Holm's
        verdicts cut intervals off at zero, so less is promised there."""
        return 1 - LEVEL * (2 - 0.5 if self.shift else 1)


def cases() -> dict[str, Case]:
    """Return all kinds of differences, in the order of the figure."""
    import numpy as np
    import scipy.stats

    def centred(distribution: Any) -> Callable[["np.ndarray"], "np.ndarray"]:
        return lambda u: SPREAD * (distribution.ppf(u) - distribution.mean())

    def failing(above: float) -> Callable[["np.ndarray"], "np.ndarray"]:
        def quantile(u: "np.ndarray") -> "np.ndarray":
            learnt = above + SPREAD * scipy.stats.norm.ppf(np.clip((u - FAILS) / (1 - FAILS), 1e-12, 1))
            return np.where(u < FAILS, -FAR, learnt)

        return quantile

    def median(quantile: Callable[["np.ndarray"], "np.ndarray"]) -> float:
        return round(float(quantile(np.array([0.5]))[0]), 12)

    normal = centred(scipy.stats.norm())
    mean_zero = failing(FAR * FAILS / (1 - FAILS))
    alike = failing(-median(failing(0.0)))
    return {
        "normal": Case("normal", normal, exact=True),
        "heavy": Case("Student's t, 3 degrees", centred(scipy.stats.t(3)), exact=True),
        "exponential": Case("exponential", centred(scipy.stats.expon())),
        "lognormal": Case("lognormal", centred(scipy.stats.lognorm(1))),
        "mixed": Case("mixed: every other arm differs", normal, shift=SHIFT * SPREAD, exact=True),
        "failing, by the mean": Case("one run in ten fails,\nby the mean", mean_zero, known=False),
        "failing, as reported": Case("one run in ten fails,\nas reported", mean_zero, truth=median(mean_zero)),
        "failing alike, as reported": Case(
            "one run in ten fails, else alike,\nas reported", alike, truth=median(alike)
        ),
    }


def check(options: Options) -> None:
    """Check the flags.

    Raises:
        UserError: for a value out of range; the message names the flag.
    """
    for name, low, high in (("seeds", 2, 16), ("comparisons", 1, 64)):
        values = getattr(options, name)
        if not values or list(values) != sorted(set(values)) or not low <= values[0] <= values[-1] <= high:
            raise UserError(
                f"--{name} must be increasing numbers from {low} to {high}, got {' '.join(map(str, values)) or 'none'}"
            )
    if not 10 <= options.studies <= 100_000:
        raise UserError(f"--studies must be from 10 to 100000, got {options.studies}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be from 0 to 2^32 - 1, got {options.seed}")


def draw_studies(case: Case, studies: int, arms: int, n: int, rng: "np.random.Generator") -> Any:
    """Return (values of the arms (studies, arms, n), values of the baseline (studies, n), true differences (arms,)).

    The shared baseline correlates the normal scores of two arms' differences by 1/2.
    """
    import numpy as np
    import scipy.special

    own, shared = rng.standard_normal((studies, arms, n)), rng.standard_normal((studies, 1, n))
    differences = case.quantile(scipy.special.ndtr((own + shared) / np.sqrt(2)))
    shifts = case.shift * (np.arange(arms) % 2)
    baseline = BASELINE - SPREAD * shared[:, 0] / np.sqrt(2)
    return baseline[:, None] + differences + shifts[:, None], baseline, case.truth + shifts


def try_case(case: Case, studies: int, arms: int, n: int, rng: "np.random.Generator") -> dict[str, Any]:
    """Simulate studies of a case and return how often their verdicts are false and their intervals hold."""
    import numpy as np

    from mnv2_jax.ablation.statistics import compare_all

    false = covered = unseen = unbounded = medians = 0
    signs = {"better": 1, "worse": -1}
    values, baselines, truth = draw_studies(case, studies, arms, n, rng)
    names = [str(arm) for arm in range(arms)]
    for of_arms, baseline in zip(values, baselines, strict=True):
        found = compare_all(dict(zip(names, of_arms, strict=True)), baseline, chance=CHANCE if case.known else None)
        told = list(zip(found.values(), truth, strict=True))
        wrong = any(each.verdict in signs and signs[each.verdict] != np.sign(true) for each, true in told)
        # The verdict cuts intervals off at zero, so an interval may end at zero although the verdict excludes zero.
        holds = all(each.ci95 is None or each.ci95[0] <= true <= each.ci95[1] for each, true in told)
        false, covered = false + wrong, covered + (holds and not wrong)
        unseen += any(each.verdict in signs and each.estimand == "mean" for each, _ in told)
        unbounded += any(each.ci95 is None for each, _ in told)
        medians += any(each.estimand == "median" for each, _ in told)
    return {
        "false_verdicts": share(false, studies),
        "coverage": share(covered, studies),
        "unseen_failures": share(unseen, studies) if case.truth > 0 else None,
        "without_bounds": unbounded / studies,
        "about_a_median": medians / studies,
    }


def share(count: int, of: int) -> dict[str, Any]:
    """Return a rate with its exact 95 % interval."""
    import scipy.stats

    interval = scipy.stats.binomtest(int(count), of).proportion_ci(0.95, method="exact")
    return {"rate": count / of, "ci95": [float(interval.low), float(interval.high)]}


def compute(options: Options, progress: Callable[[str], None] = lambda name: None) -> list[dict[str, Any]]:
    """Return a result per kind of differences, n and number of comparisons; call `progress` when a kind begins."""
    import numpy as np

    results = []
    for place, (name, case) in enumerate(cases().items()):
        progress(name)
        for arms, n in itertools.product(options.comparisons, options.seeds):
            if arms > 1 or not case.shift:
                rng = np.random.default_rng((options.seed, place, arms, n))
                found = try_case(case, options.studies, arms, n, rng)
                results.append({"differences": name, "n": n, "comparisons": arms, **found})
    return results


def finding(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the answer as one sentence."""

    def most(*names: str) -> str:
        rates = [each["false_verdicts"]["rate"] for each in results if each["differences"] in names]
        return f"{100 * max(rates):.0f} %"

    return (
        f"A study's verdict is false in {most('normal', 'heavy', 'mixed')} of studies at most where differences are "
        f"symmetric, in {most('exponential', 'lognormal')} where they are skewed, and in "
        f"{most('failing, as reported', 'failing alike, as reported')} where runs fail and the median is reported"
    )


def draw(results: Sequence[Mapping[str, Any]], options: Options) -> "Figure":
    """Draw false verdicts and coverage against n, in two panels per kind of differences.

    Studies with too few seeds for their number of comparisons are left out: their intervals are unbounded, so they
    decide nothing and are never wrong.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    from mnv2_jax.analysis.drawing import headline, tidy

    figure = plt.figure(figsize=(14, 12), layout="constrained")
    panels: Any = figure.subplots(4, 4)
    for place, (name, case) in enumerate(cases().items()):
        own = [each for each in results if each["differences"] == name and each["without_bounds"] < 1]
        block, column = divmod(place, 4)
        worst = max([0.12, *(max(1 - e["coverage"]["ci95"][0], e["false_verdicts"]["ci95"][1]) for e in own)])
        for row, measure in enumerate(("false_verdicts", "coverage")):
            axes = panels[2 * block + row, column]
            _draw_rates(axes, own, measure, options)
            axes.axhline((LEVEL, case.coverage)[row], color="0.3", linewidth=1, linestyle=":")
            if row == 0:
                axes.set_title(case.title, fontsize=11)
            axes.set_ylim(*((-0.03 * worst, 1.05 * worst) if row == 0 else (1 - 1.05 * worst, 1 + 0.03 * worst)))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_xticks(options.seeds)
            axes.set_xlim(options.seeds[0] - 0.4, options.seeds[-1] + 0.4)
            axes.set_xlabel("n, seeds" if row else "")
            if column == 0:
                axes.set_ylabel(("studies with a false verdict", "studies whose intervals all hold")[row])
            tidy(axes)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    details = (
        f"{options.studies:,} drawn studies at each point, with exact 95 % intervals. Dotted: what is promised, 5 % and "
        "95 % (92.5 % where half of the comparisons differ). Left out: too few seeds to decide so many comparisons."
    )
    headline(figure, finding(results), details)
    return figure


def _draw_rates(axes: "Axes", own: Sequence[Mapping[str, Any]], measure: str, options: Options) -> None:
    """Draw a line per number of comparisons, shifted sideways so that error bars do not overlap."""
    import numpy as np

    from mnv2_jax.ablation.figures import COLORS, LINES, MARKERS

    for index, arms in enumerate(options.comparisons):
        rows = [each for each in own if each["comparisons"] == arms]
        rates = np.array([each[measure]["rate"] for each in rows])
        bars = np.abs(np.array([each[measure]["ci95"] for each in rows]).reshape(-1, 2).T - rates)
        aside = (index - (len(options.comparisons) - 1) / 2) * 0.08
        style = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}
        style |= {"marker": MARKERS[index % len(MARKERS)], "label": f"{arms} comparison{'s' if arms > 1 else ''}"}
        places = [each["n"] + aside for each in rows]
        axes.errorbar(places, rates, yerr=bars, markersize=4.5, capsize=2, linewidth=1.3, **style)


def show(results: Sequence[Mapping[str, Any]], options: Options) -> Any:
    """Return a table of false verdicts and coverage in percent, a row per kind and number of comparisons."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("false verdicts / coverage, %", "comparisons", *(f"n={n}" for n in options.seeds), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)  # fmt: skip
    for (name, arms), own in itertools.groupby(results, key=lambda each: (each["differences"], each["comparisons"])):
        cells = (f"{100 * each['false_verdicts']['rate']:.1f} / {100 * each['coverage']['rate']:.1f}" for each in own)
        table.add_row(name, str(arms), *cells, end_section=arms == options.comparisons[-1])
    return table


def judge(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the findings in words, first for the cases in which theory promises the rates."""

    def told(*names: str) -> str:
        own = [each for each in results if each["differences"] in names]
        false, coverage = max(e["false_verdicts"]["rate"] for e in own), min(e["coverage"]["rate"] for e in own)
        return f"{false:.1%} false verdicts at most, all intervals hold in {coverage:.1%} or more"

    promised = [(each, cases()[each["differences"]]) for each in results if cases()[each["differences"]].exact]
    refuted = sum(
        each["false_verdicts"]["ci95"][0] > LEVEL or each["coverage"]["ci95"][1] < case.coverage
        for each, case in promised
    )
    unseen = [
        each["unseen_failures"]["rate"] for each in results if each["unseen_failures"] and each["without_bounds"] < 1
    ]
    return (
        f"Where theory promises 5 %, {len(promised) - refuted} of {len(promised)} cases agree. Symmetric differences: "
        f"{told('normal', 'heavy')}. Exponential: {told('exponential')}. Lognormal: {told('lognormal')}. One run in ten fails: "
        f"by the mean {told('failing, by the mean')}; as reported {told('failing, as reported', 'failing alike, as reported')}"
        + (f", but {min(unseen):.0%} to {max(unseen):.0%} see no failure of some arm and decide on the mean of the others." if unseen else ".")
    )  # fmt: skip


def main(options: Options) -> None:
    """Simulate the studies, draw the figure and print the rates."""
    check(options)
    from mnv2_jax.results import name_results, open_results, settings_of, write_results

    summary = known = open_results(settings_of(options, "null_studies"), options.out, options.overwrite, shape=SHAPE)

    from mnv2_jax.training.progress import create_console

    console = create_console()
    if summary is None:
        results = compute(options, lambda name: console.print(f"{name} ...", markup=False))
        summary = {
            "experiment": "null_studies",
            "studies": options.studies,
            "level": LEVEL,
            "results": results,
            "sentence": judge(results),
        }
    results = summary["results"]
    write_results(options.out, summary, draw(results, options))
    console.print(show(results, options))
    console.print(summary["sentence"], markup=False)
    name_results(console, options.out, known)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
