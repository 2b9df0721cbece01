"""The figure of a study: how every run learnt, where it ended, what the arms differ by, and what they cost.

What is drawn is the metric that decides, whichever the task's is.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from mnv2_jax.ablation.summary import metric_of
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record
from mnv2_jax.wording import counted

# Okabe and Ito's palette, told apart by colour-blind readers; line style and marker serve the grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Of lengths without a common factor, so that more arms than colours still differ.
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vPX<"
SHAPES = {"mean": "o", "median": "D"}
"""Of what a verdict is about."""


def _format_values(axes: Axes, metric: Metric, decimals: int | None = None) -> None:
    if metric.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def _style(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def _dots(index: int) -> dict[str, Any]:
    marker, color = MARKERS[index % len(MARKERS)], COLORS[index % len(COLORS)]
    return {"s": 30, "color": color, "marker": marker, "edgecolors": "white", "linewidths": 0.6, "zorder": 2}


def _bars(arms: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Intervals of the arms' means as lengths below and above them; None where they have no bounds."""
    if any(arm["ci95"] is None for arm in arms):
        return None
    return np.abs(np.array([arm["ci95"] for arm in arms]).T - [arm["mean"] for arm in arms])


def _bounds(summary: Mapping[str, Any]) -> str:
    """What is drawn around a mean."""
    bounded = all(arm["ci95"] is not None for arm in summary["arms"].values())
    return "95 % interval" if bounded else f"no bound with {counted(len(summary['seeds']), 'seed')}"


def _draw_difference(axes: Axes, comparison: Mapping[str, Any], metric: Metric, place: float, across: bool) -> None:
    """What a verdict is about, with its interval as far as it has bounds: filled if decided, a diamond for a median.

    Args:
        place: on the axis of arms.
        across: whether differences run along x.
    """
    value, bars = metric.scale * comparison[f"{comparison['estimand']}_difference"], None
    if comparison["ci95"] is not None:
        low, high = (metric.scale * bound for bound in comparison["ci95"])
        bars = [[value - low], [high - value]]
    style: dict[str, Any] = {
        "xerr" if across else "yerr": bars,
        "fmt": SHAPES[comparison["estimand"]],
        "color": "black",
        "markerfacecolor": "white" if comparison["verdict"] == "inconclusive" else "black",
        "capsize": 4,
        "zorder": 3,
    }
    axes.errorbar(*((value, place) if across else (place, value)), **style)


def _explain_differences(axes: Axes, comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Put into the legend what `_draw_difference` draws."""
    for estimand, label in (("mean", "mean"), ("median", "median (runs failed)")):
        of_kind = [comparison for comparison in comparisons if comparison["estimand"] == estimand]
        if of_kind:
            none = any(comparison["ci95"] is None for comparison in of_kind)
            bounds = f" (no bound with {counted(of_kind[0]['n'], 'seed')})" if none else " and 95 % interval"
            filled = any(comparison["verdict"] != "inconclusive" for comparison in of_kind)
            axes.plot(
                [], [], SHAPES[estimand], color="black", markerfacecolor="black" if filled else "white", label=label + bounds
            )  # fmt: skip
    if any(comparison["verdict"] == "inconclusive" for comparison in comparisons):
        axes.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: inconclusive")


def draw(summary: dict[str, Any], records: list[Record]) -> Figure:
    """Draw a study as its kind is drawn.

    Args:
        summary: as in summary.json.
        records: of all its runs.
    """
    kinds = {
        "arms": _draw_arms,
        "sweep": _draw_sweep,
        "tradeoff": _draw_tradeoff,
        "memory": _draw_memory,
        "grid": _draw_grid,
    }
    figure = kinds[summary["figure"]](summary, records)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    title = f"{summary['question']}   {summary['title']}"
    figure.suptitle("\n".join(textwrap.wrap(title, 120, break_on_hyphens=False)), fontsize=12)
    return figure


def _draw_arms(summary: dict[str, Any], records: list[Record]) -> Figure:
    """Three panels: learning curves, the test metric of every run, paired differences with the paper's own."""
    height = max(4.4, 2.4 + 0.55 * len(summary["arms"]))
    figure, axes = plt.subplots(1, 3, figsize=(13, height), width_ratios=(1.4, 1.1, 1.3), layout="constrained")
    _learning_curves(axes[0], summary, records)
    _every_run(axes[1], summary)
    _differences(axes[2], summary)
    return figure


def _draw_memory(summary: dict[str, Any], records: list[Record]) -> Figure:
    """The panels of `_draw_arms`, and below them what each layer holds at once."""
    figure = plt.figure(figsize=(13, 8.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.4, 1.1, 1.3))
    _learning_curves(figure.add_subplot(grid[0, 0]), summary, records)
    _every_run(figure.add_subplot(grid[0, 1]), summary)
    _differences(figure.add_subplot(grid[0, 2]), summary)
    axes = figure.add_subplot(grid[1, :])
    for index, (name, arm) in enumerate(summary["arms"].items()):
        kilobytes = [size / 1000 for _, size in arm["activation_bytes"]]
        place = np.linspace(0, 1, len(kilobytes))
        label = f"{name}: {len(kilobytes)} layers, at most {max(kilobytes):,.0f} kB"
        axes.plot(
            place,
            kilobytes,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            label=label,
            **_style(index),
        )
    axes.set(
        title="Memory of each layer: its input and its output, one image, float32",
        xlabel="place in the network, from its first layer (0) to its last (1)",
        ylabel="kB",
        ylim=(0, None),
    )
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.legend(frameon=False)
    return figure


def _learning_curves(axes: Axes, summary: dict[str, Any], records: list[Record]) -> None:
    seeds, metric = summary["seeds"], metric_of(summary)
    for index, arm in enumerate(summary["arms"]):
        style = _style(index)
        points = [record for record in records if record.arm == arm and record.split == "validation"]
        by_seed = [[r for r in points if r.seed == seed] for seed in seeds]
        batch_size = {**summary["training"], **summary["arms"][arm].get("training", {})}["batch_size"]
        images = [record.step * batch_size for record in by_seed[0]]
        values = np.array([[record.metrics[metric.name] for record in run] for run in by_seed])
        axes.plot(images, values.T, linewidth=0.6, alpha=0.35, **style)
        axes.plot(images, values.mean(axis=0), linewidth=2.4, label=arm, **style)
    axes.set(
        title=f"Validation {metric.title} in training (bold: mean of {len(seeds)})",
        xlabel="training images seen",
        ylabel=f"validation {metric.title}",
        ylim=(0, 1) if metric.percent else None,
    )
    _format_values(axes, metric, decimals=0)
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.legend(loc="best", frameon=False)


def _every_run(axes: Axes, summary: dict[str, Any]) -> None:
    metric = metric_of(summary)
    values = np.array([arm[f"test_{metric.name}"] for arm in summary["arms"].values()])
    for column in values.T:
        axes.plot(range(len(values)), column, color="0.8", linewidth=0.8, zorder=1)
    for index, row in enumerate(values):
        axes.scatter(np.full(len(row), index), row, **_dots(index))
        axes.hlines(row.mean(), index - 0.2, index + 0.2, color="black", linewidth=1.6, zorder=3)
    long = max(map(len, summary["arms"])) > 10 or len(values) > 4
    axes.set_xticks(
        range(len(values)), list(summary["arms"]), rotation=30 if long else 0, ha="right" if long else "center"
    )
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set(title=f"Test {metric.title}, a line a seed", ylabel=f"test {metric.title}")
    _format_values(axes, metric)
    axes.grid(axis="y", color="0.9", linewidth=0.7)


def _differences(axes: Axes, summary: dict[str, Any]) -> None:
    arms, comparisons, metric = summary["arms"], summary["comparisons"], metric_of(summary)
    order, tested, scale = list(arms), f"test_{metric.name}", metric.scale
    baseline = np.array(arms[summary["baseline"]][tested])
    labelled = False
    for index, comparison in enumerate(comparisons):
        # The first comparison on top, in the order of the legend and of the table.
        height, color_index = len(comparisons) - 1 - index, order.index(comparison["arm"])
        differences = (np.array(arms[comparison["arm"]][tested]) - baseline) * scale
        spread = np.linspace(-0.13, 0.13, len(differences))
        axes.scatter(differences, height + spread, label="a seed" if index == 0 else None, **_dots(color_index))
        _draw_difference(axes, comparison, metric, height - 0.28, across=True)
        paper = comparison["paper"]
        if paper is not None:
            axes.plot(
                scale * paper["difference"],
                height + 0.28,
                marker="*",
                markersize=13,
                color="black",
                markerfacecolor="white",
                linestyle="none",
                label=None if labelled else f"paper, {paper['where']} ({paper['how']}), ImageNet",
                zorder=4,
            )
            difference = f"{scale * paper['difference']:+.1f}".replace("-", "−")
            place = scale * paper["difference"], height + 0.28
            axes.annotate(difference, place, (-8, 5), textcoords="offset points", fontsize=9, ha="right")
            labelled = True
    _explain_differences(axes, comparisons)
    axes.margins(x=0.08)
    axes.axvline(0, color="0.4", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(comparisons))[::-1], [f"{c['arm']}\n− {c['baseline']}" for c in comparisons])
    axes.set_ylim(-0.6, len(comparisons) - 0.4)
    axes.set(title=f"Difference in test {metric.title}", xlabel=metric.difference_unit)
    axes.grid(axis="x", color="0.9", linewidth=0.7)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)


def _draw_sweep(summary: dict[str, Any], records: list[Record]) -> Figure:
    """Three panels: the test metric against what is swept, against a cost, and differences to the baseline."""
    figure, (swept, costs, effects) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    metric = metric_of(summary)
    tested = f"test_{metric.name}"
    names = sorted(summary["arms"], key=lambda name: summary["arms"][name]["value"])
    arms = [summary["arms"][name] for name in names]
    values = [arm["value"] for arm in arms]
    means = np.array([arm["mean"] for arm in arms])
    bars = _bars(arms)
    bar = {"fmt": "-o", "color": "black", "capsize": 3, "markersize": 4, "linewidth": 1.4, "zorder": 3}
    # Where multiply-adds were matched, parameters are what differs.
    multiply_adds = [arm["multiply_adds"] for arm in arms]
    cost = "multiply_adds" if max(multiply_adds) > 1.05 * min(multiply_adds) else "parameters"
    for axes, places in ((swept, values), (costs, [arm[cost] / 1e6 for arm in arms])):
        for place, arm in zip(places, arms, strict=True):
            axes.scatter(np.full(len(arm[tested]), place), arm[tested], **{**_dots(0), "s": 16})
        if axes is costs:
            axes.errorbar(places, means, yerr=bars, **{**bar, "fmt": "o"})
            for place, value, mean in zip(places, values, means, strict=True):
                axes.annotate(f"{value:g}", (place, mean), (7, 3), textcoords="offset points", fontsize=9)
        else:
            axes.errorbar(places, means, yerr=bars, **bar, label=f"mean, {_bounds(summary)}")
            axes.scatter([], [], **{**_dots(0), "s": 16}, label="a run")
        _format_values(axes, metric)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
    swept.set_xscale("log", base=2)
    swept.set_xticks(values, [f"{value:g}" for value in values])
    swept.minorticks_off()
    if summary["paper_range"]:
        low, high, says = summary["paper_range"]
        swept.axvspan(low, high, color="0.92", zorder=0, label=f"paper: {says}")
    swept.set(title=f"Test {metric.title}", xlabel=summary["axis"], ylabel=f"test {metric.title}")
    swept.legend(loc="lower right", frameon=False, fontsize=9)
    costs.set(
        title=f"Against cost (labels: {summary['axis'].split(',')[0]})", xlabel=f"million {cost.replace('_', '-')}"
    )
    _swept_differences(effects, summary, names, values)
    return figure


def _swept_differences(effects: Axes, summary: dict[str, Any], names: list[str], values: list[float]) -> None:
    """Mean differences to the baseline of the arms of a sweep, in their order."""
    metric = metric_of(summary)
    comparisons = {comparison["arm"]: comparison for comparison in summary["comparisons"]}
    for place, name in enumerate(names):
        if name in comparisons:
            _draw_difference(effects, comparisons[name], metric, place, across=False)
    _explain_differences(effects, summary["comparisons"])
    effects.axhline(0, color="0.4", linewidth=1, linestyle=":")
    effects.set_xticks(range(len(names)), [f"{value:g}" for value in values])
    effects.set_xlim(-0.5, len(names) - 0.5)
    effects.set(
        title=f"Difference to {summary['baseline']}",
        xlabel=summary["axis"],
        ylabel=metric.difference_unit,
    )
    effects.grid(axis="y", color="0.9", linewidth=0.7)
    effects.legend(loc="lower right", frameon=False, fontsize=9)


def _draw_tradeoff(summary: dict[str, Any], records: list[Record]) -> Figure:
    """Panels of the test metric against multiply-adds and against parameters, and of the paper's own networks."""
    panels = 3 if summary["published"] else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.9 * panels, 5.0), layout="constrained")
    arms, metric = summary["arms"], metric_of(summary)
    series = list(dict.fromkeys(arm["series"] for arm in arms.values()))
    for panel, cost, unit in ((axes[0], "multiply_adds", "multiply-adds"), (axes[1], "parameters", "parameters")):
        for index, name in enumerate(series):
            own = sorted((arm for arm in arms.values() if arm["series"] == name), key=lambda arm: arm[cost])
            means = np.array([arm["mean"] for arm in own])
            places = [arm[cost] / 1e6 for arm in own]
            style = {**_style(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
            panel.errorbar(places, means, yerr=_bars(own), capsize=3, linewidth=1.2, label=name, **style)
        front = pareto([(arm[cost], arm["mean"]) for arm in arms.values()], metric.higher_is_better)
        panel.plot([x / 1e6 for x, _ in front], [y for _, y in front], color="0.75", linewidth=6, zorder=0, label="Pareto front")  # fmt: skip
        panel.set(
            title=f"Test {metric.title} against {unit}",
            xlabel=f"million {unit}",
            ylabel=f"mean test {metric.title}, {_bounds(summary)}",
        )
    axes[0].legend(loc="lower right", frameon=False, fontsize=9)
    if summary["published"]:
        # In colours of their own: they are at other resolutions than ours.
        for index, name in enumerate(dict.fromkeys(point[0] for point in summary["published"]), start=len(series)):
            points = sorted((cost / 1e6, top1) for own, cost, top1 in summary["published"] if own == name)
            style = {**_style(index), "linestyle": "none", "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
            axes[2].plot([x for x, _ in points], [y for _, y in points], label=name, **style)
        axes[2].set(title="The paper's (Fig. 5), ImageNet", xlabel="million multiply-adds", ylabel="top-1 accuracy")
        axes[2].legend(loc="lower right", frameon=False, fontsize=9)
    for panel in axes:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        _format_values(panel, metric, decimals=0)
        panel.grid(axis="both", color="0.9", linewidth=0.7)
    for panel, cost in ((axes[0], "multiply_adds"), (axes[1], "parameters")):
        _ticks(panel, [arm[cost] / 1e6 for arm in arms.values()])
    if summary["published"]:
        _ticks(axes[2], [cost / 1e6 for _, cost, _ in summary["published"]])
    return figure


def _ticks(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis with round numbers, some five of them."""
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-3, 5) for m in ((1, 2, 5) if high / low < 100 else (1, 3))]
    if high / low < 4:
        steps = [m * 10.0**e for e in range(-3, 5) for m in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    axes.set_xticks([step for step in steps if low / 1.5 <= step <= high * 1.5])


def _draw_grid(summary: dict[str, Any], records: list[Record]) -> Figure:
    """A heat map of the test metric, and every arm's difference to the baseline."""
    arms = summary["arms"]
    height = max(4.8, 2.0 + 0.5 * len(arms))
    figure, (heat, effects) = plt.subplots(1, 2, figsize=(13, height), width_ratios=(1.1, 1), layout="constrained")
    inside = {name: arm for name, arm in arms.items() if arm["value"] is not None}
    rows = list(dict.fromkeys(arm["series"] for arm in inside.values()))
    rows.sort(key=float)
    columns = sorted({arm["value"] for arm in inside.values()})
    means = np.full((len(rows), len(columns)), np.nan)
    for arm in inside.values():
        row, column = rows.index(arm["series"]), columns.index(arm["value"])
        means[row, column] = arm["mean"]
    metric = metric_of(summary)

    def write(value: float) -> str:
        return f"{value:.1%}" if metric.percent else metric.format(value)

    # From light to dark, in grey as well.
    image = heat.imshow(means, cmap="cividis_r", origin="lower", aspect="auto")
    for name, arm in inside.items():
        row, column = rows.index(arm["series"]), columns.index(arm["value"])
        dark = image.norm(arm["mean"]) > 0.5
        baseline = "\n(baseline)" if name == summary["baseline"] else ""
        interval = "\n" + " to ".join(map(write, arm["ci95"])) if arm["ci95"] else ""
        text = f"{write(arm['mean'])}{interval}{baseline}"
        heat.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=10)
    heat.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    heat.set_yticks(range(len(rows)), rows)
    across, up = summary["axis"].split("|")
    heat.set(title=f"Test {metric.title}, mean, {_bounds(summary)}", xlabel=across, ylabel=up)
    heat.tick_params(length=0)
    _differences(effects, summary)
    return figure


def pareto(points: list[tuple[float, float]], higher_is_better: bool = True) -> list[tuple[float, float]]:
    """Of points of (cost, value), the Pareto front: those with a better value than any cheaper one, by cost."""
    front: list[tuple[float, float]] = []
    sign = 1 if higher_is_better else -1
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front
