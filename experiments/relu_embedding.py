"""How much of a curve in the plane does ReLU lose when the curve is embedded in n channels? (Fig. 1 and Sec. 3.2)

Question: does the loss fall or rise as the embedding gets wider, and which activations lose information?
Command:  python experiments/relu_embedding.py
Cost:     30 s on 2 CPU cores.
Expect:   after ReLU a decoder misses 59 % of the curve's variance at n = 1, 25 % at n = 2, 9 % at n = 3, and nothing
          at n = 15 and 30.

A spiral x is embedded by a random matrix T, passed through the activation phi, and mapped back. The upper row repeats
Fig. 1: one T for each n, ReLU, the pseudo-inverse of T. The panels below show means over many T with 95 % bootstrap
intervals (BCa). Tested on other matrices, these intervals contained the true mean in 92 to 97 % of samples of 200 for n
up to 5. From n = 15 on only a rare T loses anything, so no interval from so few matrices is reliable (sign-flip
intervals, as studies use, miss even more). There the intervals describe only the matrices drawn. The measures are

- |x' - x| / |x|, where x' is mapped back by the pseudo-inverse: the median with its exact interval. At n = 2 there is
  no mean, because a nearly singular T maps images back from far away.
- The fraction of points around which phi(Tx) is one-to-one (Lemma 2). For ReLU, Theorem 1 gives its mean as N / 2^n.
- The fraction of pairs of points, at least a tenth of the diameter apart, whose images are closer than 1 % of the
  distance expected from T.
- The fraction of the curve's variance that a decoder recovers, at points between those it was fitted to. There are two
  decoders: the best affine one, and a small trained network. It is a lower bound, since a better decoder may recover
  more. At n = 15 and 30, where the paper calls the result "highly non-convex", the affine decoder suffices:
  x = ReLU(x) - ReLU(-x), and among so many directions some are nearly opposite.

The paper gives neither scale nor seed. Here T has independent standard normal elements, so a component of Tx has
standard deviation |x|. The spiral ends at radius 4, so ReLU6 clips some values of the outer turns, but few overall.

The results decide between two readings. The paper's: the loss from ReLU falls as n grows beyond the manifold's
dimension (Lemma 2, Theorem 1). Another, found in explanations of the paper: nothing is lost if the output has fewer
channels than the input.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnv2_jax import cli
from mnv2_jax.errors import UserError
from mnv2_jax.models.names import Activation

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHI: tuple[Activation, ...] = ("relu", "relu6", "leaky_relu", "linear")
MEASURES = {
    "inverse_error": "pseudo-inverse,\nerror, % (median)",
    "one_to_one": "points kept\none to one, %",
    "merged": "pairs\nmerged, %",
    "affine_share": "affine decoder\nrecovers, %",
    "decoder_share": "trained decoder\nrecovers, %",
}
STATISTIC: dict[str, Literal["mean", "median"]] = {"inverse_error": "median"}
"""The statistic of measures that are not summarised by the mean."""
PICTURE_POINTS = 600
NOTHING = 0.01
"""A loss of variance below this counts as no loss."""

_ESTIMATE = {"ci95": [float]}
_MEASURED = {name: {**_ESTIMATE, STATISTIC.get(name, "mean"): float} for name in MEASURES}
_RESULT = {**_MEASURED, "activation": str, "n": int, "one_to_one_theorem_1": (float, type(None))}
SHAPE = {"results": [_RESULT], "reading": {"lost": {str: {**_ESTIMATE, "mean": float}}, "sentence": str}}
"""Expected types of the summary fields that are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line flags."""

    channels: tuple[int, ...] = (1, 2, 3, 5, 15, 30)
    """Values of n, the channels of the embedding."""
    embeddings: int = 200
    """Random matrices per n."""
    decoders: int = 24
    """Number of these matrices for which a decoder is trained, with each activation."""
    decoder_steps: int = 600
    """Training steps of each decoder."""
    points: int = 128
    """Points of the curve; decoders are fitted to every other one."""
    turns: float = 2.5
    """Turns of the spiral."""
    radius: float = 4.0
    """Radius of the spiral's outer end."""
    seed: int = 0
    """Random seed of the matrices and of the decoders' initial weights."""
    out: Path = Path("runs/relu_embedding")
    """Output folder for the figure and the summary."""
    overwrite: bool = False
    """Recompute, and replace the results in the folder."""


def check(options: Options) -> None:
    """Check the flags.

    Raises:
        UserError: for a value out of range; the message names the flag.
    """
    channels = options.channels
    if len(channels) < 2 or list(channels) != sorted(set(channels)) or not 1 <= channels[0] <= channels[-1] <= 256:
        raise UserError(
            f"--channels must be two or more increasing numbers from 1 to 256, got {' '.join(map(str, channels))}"
        )
    for name, low, high in (("embeddings", 6, 10_000), ("decoder_steps", 1, 100_000), ("points", 16, 1024)):
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} must be from {low} to {high}, got {getattr(options, name)}")
    if not 2 <= options.decoders <= options.embeddings:
        raise UserError(f"--decoders must be from 2 to --embeddings ({options.embeddings}), got {options.decoders}")
    for name in ("turns", "radius"):
        if not 0 < getattr(options, name) < 100:
            raise UserError(f"--{name} must be greater than 0 and below 100, got {getattr(options, name):g}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be from 0 to 2^32 - 1, got {options.seed}")


def estimate(values: "np.ndarray", statistic: Literal["mean", "median"] = "mean") -> dict[str, Any]:
    """Return the mean with a 95 % bootstrap interval, or the median with a 95 % interval from order statistics."""
    import numpy as np
    import scipy.stats

    if statistic == "mean":
        value, rounded = np.mean(values), np.round(values, 12)
        low = high = rounded[0]
        if np.ptp(rounded) > 0:
            rng = np.random.default_rng(0)
            low, high = scipy.stats.bootstrap((rounded,), np.mean, method="BCa", rng=rng).confidence_interval
    else:
        value = np.median(values)
        low, high = scipy.stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return {statistic: float(value), "ci95": [float(low), float(high)], "matrices": len(values)}


def compute(options: Options) -> dict[str, Any]:
    """Return all numbers: the results, one per activation and n, and the reading that they support."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mnv2_jax.analysis import embedding
    from mnv2_jax.analysis.invertibility import preserved_fraction
    from mnv2_jax.models.layers import ACTIVATIONS

    x = embedding.spiral(options.points, options.turns, options.radius)
    of_matrices, of_decoders = jax.random.split(jax.random.key(options.seed))
    matrices = embedding.random_embeddings(of_matrices, options.channels, options.embeddings)
    trained = matrices[:, : options.decoders]
    images = jnp.stack(
        [
            jax.vmap(jax.vmap(lambda matrix, phi=phi: embedding.embed(x, matrix, ACTIVATIONS[phi])))(trained)
            for phi in PHI
        ]
    )
    # Decoders of one T start from the same weights for every activation, so activations are paired by T.
    keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(of_decoders, n), options.decoders))(
        jnp.array(options.channels)
    )
    keys = jnp.broadcast_to(keys, (len(PHI), *keys.shape))
    shares = embedding.decoder_shares(
        x, images.reshape(-1, *images.shape[3:]), keys.reshape(-1), steps=options.decoder_steps
    )
    decoded = np.asarray(shares, np.float64).reshape(images.shape[:3])

    results = []
    for place, (phi, of_phi) in enumerate(zip(PHI, decoded, strict=True)):
        for n, matrix, share in zip(options.channels, matrices, of_phi, strict=True):
            measured = embedding.measure(x, matrix, n, place, activations=PHI)
            found = {name: np.asarray(values, np.float64) for name, values in measured.items()}
            found["decoder_share"] = share
            theory = float(preserved_fraction(embedding.DIMENSION, n)) if phi == "relu" else None
            results.append(
                {
                    "activation": phi,
                    "n": n,
                    **{name: estimate(found[name], STATISTIC.get(name, "mean")) for name in MEASURES},
                    "one_to_one_theorem_1": theory,
                }
            )
    relu, linear = decoded[PHI.index("relu")], decoded[PHI.index("linear")]
    lost = {n: estimate(1 - values) for n, values in zip(options.channels, relu, strict=True)}
    own = {n: estimate(values) for n, values in zip(options.channels, linear - relu, strict=True)}
    cut = [float(jnp.mean(jnp.einsum("pd,tnd->tpn", x, matrix[:, :n]) > 6)) for n, matrix in zip(options.channels, matrices, strict=True)]  # fmt: skip
    return {
        "curve": {"points": options.points, "turns": options.turns, "radius": options.radius},
        "matrix": "independent standard normal elements",
        "apart": f"{embedding.APART:g} of the curve's diameter, or more",
        "merged": f"images nearer than {embedding.SAME:g} sqrt(n) times the points' distance",
        "values_above_6": float(np.mean(cut)),
        "results": results,
        "reading": judge(lost, own),
    }


def judge(lost: Mapping[int, Mapping[str, Any]], own: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Decide which reading the numbers support.

    Args:
        lost: for each n, mean and interval of the fraction of variance that the trained decoder misses after ReLU.
        own: the same for ReLU's own part of that loss: what the decoder recovers from the same T without ReLU, minus
            what it recovers with ReLU.

    Returns:
        "holds": "paper" if the loss falls with n and ReLU loses something for n below the input's dimension (or no such
            n was tried), "no loss in fewer channels" if it is the other way round, else "neither".
    """
    from mnv2_jax.analysis.embedding import DIMENSION

    sizes = sorted(lost)
    first, last = lost[sizes[0]], lost[sizes[-1]]
    steps = itertools.pairwise(sizes)
    never_rises = all(lost[wider]["ci95"][0] <= lost[n]["ci95"][1] for n, wider in steps)
    falls = never_rises and last["ci95"][1] < first["ci95"][0]
    narrow = [n for n in sizes if n < DIMENSION]
    lossless = all(own[n]["ci95"][1] < NOTHING for n in narrow) if narrow else None
    lossy = all(own[n]["ci95"][0] > NOTHING for n in narrow) if narrow else None
    if falls and lossy is not False:
        holds = "paper"
    elif lossless and not falls:
        holds = "no loss in fewer channels"
    else:
        holds = "neither"
    lose = ", ".join(f"{lost[n]['mean']:.1%} at n = {n}" for n in sizes)
    sentence = f"The trained decoder misses {lose} of the curve's variance behind ReLU: "
    sentence += {
        "paper": "what is lost falls as the embedding grows, as the paper's Lemma 2 and Theorem 1 say",
        "no loss in fewer channels": "what is lost does not fall as the embedding grows, against the paper's Lemma 2 and Theorem 1",
        "neither": "that bears out neither the paper's reading nor the one that fewer channels lose nothing",
    }[holds]
    most = max(sizes, key=lambda n: own[n]["mean"])
    sentence += f"; what ReLU costs beyond the projection's own loss is most at n = {most} ({own[most]['mean']:.1%})"
    for n in narrow:
        sentence += (
            f"; in fewer channels than the input's {DIMENSION} (n = {n}) ReLU itself costs {own[n]['mean']:.1%}, "
        )
        sentence += "so that “no loss with fewer channels” is wrong" if lossy else "so that “no loss with fewer channels” is not refuted"  # fmt: skip
    if not narrow:
        sentence += (
            f"; no n is below the input's {DIMENSION} dimensions, so that “no loss with fewer channels” is not tried"
        )
    return {
        "holds": holds,
        "loss_falls_with_n": falls,
        "relu_loses_in_fewer_channels": lossy,
        "lost": {str(n): lost[n] for n in sizes},
        "lost_by_relu_itself": {str(n): own[n] for n in sizes},
        "sentence": sentence + ".",
    }


def finding(summary: Mapping[str, Any]) -> str:
    """Return the answer as one sentence."""
    lost = [(int(n), found["mean"]) for n, found in summary["reading"]["lost"].items()]
    # Up to the first n without loss.
    whole = next((place for place, (_, share) in enumerate(lost) if share < NOTHING), len(lost) - 1)
    (n, share), *others = lost[: whole + 1]
    more = "".join(f", {100 * (1 - share):.0f} % from {n}" for n, share in others)
    channels = "1 channel" if n == 1 else f"{n} channels"
    return f"Behind ReLU a decoder recovers {100 * (1 - share):.0f} % of a spiral's variance from {channels}{more}"


def draw(summary: Mapping[str, Any], options: Options) -> "Figure":
    """Draw the paper's row of pictures and, below it, the measures against n in four panels."""
    import matplotlib.pyplot as plt

    from mnv2_jax.analysis.drawing import headline

    figure = plt.figure(figsize=(14, 8.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.75))
    _draw_pictures(upper, options)
    _draw_measures(lower, summary, options)
    details = (
        f"{options.embeddings} random T for each n ({options.decoders} where a decoder is trained), 95 % intervals. "
        "In the paper (Fig. 1) points collapse at n = 2 and 3; n = 15 to 30 is “highly non-convex”."
    )
    headline(figure, finding(summary), details)
    return figure


def _draw_pictures(upper: Any, options: Options) -> None:
    """Draw the curve and its reconstructions on one scale."""
    import jax
    import numpy as np

    from mnv2_jax.analysis import embedding
    from mnv2_jax.models.layers import ACTIVATIONS

    x = embedding.spiral(PICTURE_POINTS, options.turns, options.radius)
    of_matrices, _ = jax.random.split(jax.random.key(options.seed))
    shown = [n for n in options.channels if n >= embedding.DIMENSION][-5:]
    along = np.linspace(0, 1, PICTURE_POINTS)
    pictures: Any = upper.subplots(1, len(shown) + 1, sharex=True, sharey=True)
    titles = ["input", *(f"n = {n}" for n in shown)]
    matrices = embedding.random_embeddings(of_matrices, options.channels, options.embeddings)
    curves = [x] + [embedding.bring_back(x, matrices[options.channels.index(n), 0], ACTIVATIONS["relu"]) for n in shown]
    for axes, title, curve in zip(pictures, titles, map(np.asarray, curves), strict=True):
        axes.plot(*curve.T, color="0.8", linewidth=0.8, zorder=1)
        dots = axes.scatter(*curve.T, c=along, cmap="viridis", s=9, linewidths=0, zorder=2)
        axes.set_title(title, fontsize=11)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    bar = upper.colorbar(dots, ax=list(pictures), aspect=18, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["inner\nend", "outer\nend"], fontsize=9)
    upper.suptitle(
        "Embedded in n channels by a random T, then ReLU, then T's pseudo-inverse, as in Fig. 1", fontsize=11
    )


def _draw_measures(lower: Any, summary: Mapping[str, Any], options: Options) -> None:
    """Draw each measure of every activation against n."""
    from mnv2_jax.analysis.drawing import tidy

    panels: Any = lower.subplots(1, 4)
    error, kept, merged, share = panels
    _lines(error, summary, "inverse_error")
    error.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    error.annotate("x' = x / 2", (options.channels[-1], 0.5), (0, -12), textcoords="offset points", fontsize=9, color="0.3", ha="right")  # fmt: skip
    error.set_title("Error by the pseudo-inverse (median)", fontsize=11)
    error.set_ylabel("|x' − x| / |x|")
    _lines(kept, summary, "one_to_one")
    theory = [(each["n"], each["one_to_one_theorem_1"]) for each in summary["results"] if each["activation"] == "relu"]
    kept.plot(*zip(*theory, strict=True), "x", color="black", markersize=9, label="Theorem 1, ReLU", zorder=4)
    kept.set_title("Points kept one to one (Lemma 2)", fontsize=11)
    kept.set_ylabel("fraction of the curve's points")
    _lines(merged, summary, "merged")
    merged.set_title("Merged pairs of points", fontsize=11)
    merged.set_ylabel("fraction of the pairs that are apart")
    _lines(share, summary, "decoder_share")
    _lines(share, summary, "affine_share", {"markerfacecolor": "white", "linestyle": "none", "elinewidth": 0.8})
    share.plot([], [], "o", color="0.3", label="trained decoder")
    share.plot([], [], "o", color="0.3", markerfacecolor="white", label="best affine decoder")
    share.set_title("Variance recovered by a decoder", fontsize=11)
    share.set_ylabel("fraction, at points not fitted to")
    share.legend(handles=share.get_lines()[-2:], loc="lower right", frameon=False, fontsize=9.5)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(options.channels, [str(n) for n in options.channels])
        axes.minorticks_off()
        axes.set_xlabel("n, channels of the embedding")
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter("{x:.0%}")
        tidy(axes)
    lower.legend(*kept.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)


def _lines(axes: "Axes", summary: Mapping[str, Any], name: str, changed: Mapping[str, Any] | None = None) -> None:
    """Draw one line per activation, with intervals."""
    import numpy as np

    from mnv2_jax.ablation.figures import COLORS, LINES, MARKERS

    for index, phi in enumerate(PHI):
        rows = [each for each in summary["results"] if each["activation"] == phi]
        means = np.array([row[name][STATISTIC.get(name, "mean")] for row in rows])
        bars = np.abs(np.array([row[name]["ci95"] for row in rows]).T - means)
        style = {"color": COLORS[index], "linestyle": LINES[index], "marker": MARKERS[index], "markersize": 4.5}
        # Shifted sideways, so that coinciding lines can be told apart.
        places = [row["n"] * 1.05 ** (index - (len(PHI) - 1) / 2) for row in rows]
        label = {"relu": "ReLU", "relu6": "ReLU6", "leaky_relu": "leaky ReLU (slope 0.01)", "linear": "linear"}[phi]
        shown = {"linewidth": 1.4, **style, **(changed or {})}
        axes.errorbar(places, means, yerr=bars, capsize=2, label=label, **shown)


def show(results: Sequence[Mapping[str, Any]]) -> Any:
    """Return the numbers as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("activation", "n", *MEASURES.values(), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, each in enumerate(results):
        cells = []
        for name in MEASURES:
            value, low, high = (100 * v for v in (each[name][STATISTIC.get(name, "mean")], *each[name]["ci95"]))
            cells.append(f"{value:.1f} ({low:.1f}–{high:.1f})")
        last = index + 1 == len(results) or results[index + 1]["activation"] != each["activation"]
        table.add_row(each["activation"], str(each["n"]), *cells, end_section=last)
    return table


def main(options: Options) -> None:
    """Compute, draw, and print which reading holds."""
    check(options)
    from mnv2_jax.results import name_results, open_results, settings_of, write_results

    settings = settings_of(options, "relu_embedding")
    summary = known = open_results(settings, options.out, options.overwrite, shape=SHAPE)

    from mnv2_jax.training.progress import create_console

    console = create_console()
    if summary is None:
        jobs = len(PHI) * len(options.channels)
        console.print(
            f"{jobs * options.embeddings:,} embeddings, {jobs * options.decoders:,} decoders to train.", markup=False
        )
        summary = {"experiment": "relu_embedding", **compute(options)}
    write_results(options.out, summary, draw(summary, options))
    console.print(show(summary["results"]))
    console.print(summary["reading"]["sentence"], markup=False)
    name_results(console, options.out, known)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
