"""The figure of a study: learning curves, final results, costs, differences between the arms, and the verdicts.

All panels show the task's metric, the one that decides the comparisons.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mnv2_jax.ablation.differences import ROW, draw_differences
from mnv2_jax.ablation.style import (
    COLORS,
    LINES,
    MARKERS,
    WIDTH,
    draw_legend,
    draw_metric_axis,
    draw_runs,
    explain_runs,
    line_style,
    short,
    wrapped,
)
from mnv2_jax.ablation.summary import failed_of, metric_of
from mnv2_jax.ablation.verdicts import peak_memory, untrained
from mnv2_jax.models.names import MODELS
from mnv2_jax.training.metrics import Record

__all__ = ["COLORS", "LINES", "MARKERS", "draw", "pareto", "plt"]

TOP = 3.7
"""Height in inches of a row of panels."""


def draw(summary: Mapping[str, Any], records: Sequence[Record]) -> Figure:
    """Draw a study: its question, the panels of its kind of figure, and below them the differences between the arms.

    Args:
        summary: as in summary.json.
        records: of all its runs.
    """
    kind = summary["figure"]
    order, styles = _order(summary), _styles(summary)
    top = max(TOP, 1.2 + 0.42 * len(order)) if kind in ("arms", "grid", "memory") else TOP
    heights = top * (2 if kind == "memory" else 1), 1.1 + ROW * max(len(order) - 1, 2)
    figure = plt.figure(figsize=(WIDTH, 0.8 + sum(heights)), layout="constrained")
    evidence, effects = _rows(_titled(figure, summary), heights)
    kinds = {
        "arms": _draw_arms,
        "sweep": _draw_sweep,
        "tradeoff": _draw_tradeoff,
        "memory": _draw_memory,
        "grid": _draw_grid,
    }
    kinds[kind](evidence, summary, records)
    draw_differences(effects.subplots(), summary, styles, order)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    draw_legend(figure)
    return figure


def _rows(figure: SubFigure, heights: Sequence[float]) -> Any:
    """Split a figure into parts, one below the other."""
    return figure.subfigures(len(heights), 1, height_ratios=heights)


def _titled(figure: Figure, summary: Mapping[str, Any]) -> SubFigure:
    """Write the question on top and the subtitle below it; returns the subfigure for the panels."""

    def put(part: Any, text: str, width: int, **style: Any) -> SubFigure:
        part.suptitle(textwrap.fill(text, width, break_on_hyphens=False), x=0.01, ha="left", **style)
        body: SubFigure = part.subfigures()
        return body

    body = put(figure, summary["question"], 82, fontsize=14, fontweight="bold")
    body = put(body, subtitle(summary), 110, fontsize=10.5, color="0.25")
    stamp = untrained(summary)
    return put(body, stamp.upper(), 90, fontsize=12, fontweight="bold", color="#B00000") if stamp else body


def subtitle(summary: Mapping[str, Any]) -> str:
    """Return a line with the data set, the baseline network and the number of seeds."""
    settings, baseline = summary["model"], summary["arms"][summary["baseline"]]
    # Summaries of earlier versions do not name each arm's network.
    name = settings.get("name", "mobilenet_v2")
    network = baseline.get("network", str(MODELS.get(name, name)).rpartition(".")[2])
    width = settings.get("width_multiplier")
    parts = [network, *([f"width {width:g}"] if width is not None else []), f"{baseline['resolution']} pixels"]
    return f"Data: {summary['title']}.  Baseline: {', '.join(parts)}.  n = {len(summary['seeds'])} seeds per arm."


def _order(summary: Mapping[str, Any]) -> list[str]:
    """Return the arms in the order of rows: those of a sweep by value, others as listed."""
    arms = summary["arms"]
    return sorted(arms, key=lambda name: arms[name]["value"]) if summary["figure"] == "sweep" else list(arms)


def _styles(summary: Mapping[str, Any]) -> dict[str, int]:
    """Return the style index of each arm: its own, its series' in a sweep, or its network's in a trade-off."""
    arms, kind = summary["arms"], summary["figure"]
    if kind in ("arms", "memory"):
        return {name: index for index, name in enumerate(arms)}
    if kind == "grid":
        return dict.fromkeys(arms, 0)
    groups = {name: arm["series"] if kind == "sweep" else _network(arm["series"]) for name, arm in arms.items()}
    known = list(dict.fromkeys(groups.values()))
    return {name: known.index(group) for name, group in groups.items()}


def _network(series: str) -> str:
    """Return the network's name in a series' name: "MobileNetV2" for "MobileNetV2, 28 pixels"."""
    return series.split(", ")[0]


def _bars(arms: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Return the intervals of the arms' means as lengths below and above; None if any is unbounded."""
    if any(arm["ci95"] is None for arm in arms):
        return None
    return np.abs(np.array([arm["ci95"] for arm in arms]).T - [arm["mean"] for arm in arms])


def _bounds(summary: Mapping[str, Any]) -> str:
    """Describe the error bars of a mean."""
    bounded = all(arm["ci95"] is not None for arm in summary["arms"].values())
    return "95 % interval" if bounded else f"no bound with {len(summary['seeds'])} seeds"


# --- The kinds of figures --------------------------------------------------------------------------------


def _draw_arms(figure: SubFigure, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Draw the learning curves, and the final result of every run."""
    curves, runs = figure.subplots(1, 2)
    _learning_curves(curves, summary, records)
    _every_run(runs, summary)


def _draw_memory(figure: SubFigure, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Draw the panels of `_draw_arms`, and below them the memory of each layer's input and output."""
    above, below = _rows(figure, (1, 1))
    _draw_arms(above, summary, records)
    axes = below.subplots()
    for index, (name, arm) in enumerate(summary["arms"].items()):
        kilobytes = [size / 1000 for _, size in arm["activation_bytes"]]
        label, depth = f"{name}: peak {max(kilobytes):,.0f} kB", np.linspace(0, 1, len(kilobytes))
        marker = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        axes.plot(depth, kilobytes, linewidth=1.4, label=label, **marker, **line_style(index))
    axes.legend(loc="upper right", frameon=False)
    axes.set(
        title=textwrap.fill(peak_memory(summary), 84),
        xlabel="depth: from the first layer (0) to the last (1)",
        ylabel="input + output of a layer, kB\n(one image, float32)",
        ylim=(0, None),
    )
    axes.grid(axis="y", color="0.9", linewidth=0.7)


def _learning_curves(axes: Axes, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    seeds, metric = summary["seeds"], metric_of(summary)
    for index, arm in enumerate(summary["arms"]):
        style = line_style(index)
        points = [record for record in records if record.arm == arm and record.split == "validation"]
        by_seed = [[r for r in points if r.seed == seed] for seed in seeds]
        batch_size = {**summary["training"], **summary["arms"][arm].get("training", {})}["batch_size"]
        images = [record.step * batch_size for record in by_seed[0]]
        values = np.array([[record.metrics[metric.name] for record in run] for run in by_seed])
        axes.plot(images, values.T, linewidth=0.6, alpha=0.35, **style)
        axes.plot(images, values.mean(axis=0), linewidth=2.4, label=arm, **style)
    axes.set(
        title=f"Training: one line per run, mean of {len(seeds)} in bold",
        xlabel="training images seen",
        ylabel=f"validation {metric.title}",
        ylim=(0, 1) if metric.percent else None,
    )
    draw_metric_axis(axes, summary)


def _every_run(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Draw one row per arm, the first on top: every run, their mean, and their median if runs failed."""
    metric, styles = metric_of(summary), _styles(summary)
    values, failed = (
        {name: np.array(arm[f"test_{metric.name}"]) for name, arm in summary["arms"].items()},
        failed_of(summary),
    )
    heights = range(len(values))[::-1]
    axes.plot(np.array(list(values.values())), heights, color="0.82", linewidth=0.8, zorder=1)
    mean: dict[str, Any] = {"color": "black", "linewidth": 2}
    median = {**mean, "linestyle": (0, (1, 1))}
    for height, (name, row) in zip(heights, values.items(), strict=True):
        draw_runs(axes, row, np.full(len(row), height), failed[name], styles[name])
        axes.vlines(row.mean(), height - 0.3, height + 0.3, zorder=3, **mean)
        if failed[name].any():
            axes.vlines(np.median(row), height - 0.3, height + 0.3, zorder=3, **median)
    explain_runs(axes, summary)
    axes.plot([], [], label=f"mean test {metric.title}", **mean)
    if any(bad.any() for bad in failed.values()):
        axes.plot([], [], label="median (runs failed)", **median)
    axes.set_yticks(heights, [wrapped(name) for name in summary["arms"]])
    axes.set_ylim(-0.5, len(values) - 0.5)
    axes.set(title="At the end: every run, one line per seed", xlabel=f"test {metric.title}")
    draw_metric_axis(axes, summary, along="x")


def _draw_sweep(figure: SubFigure, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Draw the test metric against the swept value, and against a cost."""
    swept, costs = figure.subplots(1, 2, sharey=True)
    metric, styles = metric_of(summary), _styles(summary)
    arms, failed = {name: summary["arms"][name] for name in _order(summary)}, failed_of(summary)
    # If multiply-adds were matched, the arms differ in parameters.
    multiply_adds = [arm["multiply_adds"] for arm in arms.values()]
    cost = "multiply_adds" if max(multiply_adds) > 1.05 * min(multiply_adds) else "parameters"
    for axes, at in ((swept, "value"), (costs, cost)):
        for name, arm in arms.items():
            place = arm[at] / (1 if at == "value" else 1e6)
            values = np.array(arm[f"test_{metric.name}"])
            draw_runs(axes, np.full(len(values), place), values, failed[name], styles[name], size=18)
        draw_metric_axis(axes, summary)
    # Each series is another kind of network, so lines join arms of one series only.
    for index, series in enumerate(dict.fromkeys(arm["series"] for arm in arms.values())):
        own = [arm for arm in arms.values() if arm["series"] == series]
        bar = {"color": "black", "capsize": 3, "markersize": 5, "linewidth": 1.4, "zorder": 3, "yerr": _bars(own)}
        label, marker = series or f"mean, {_bounds(summary)}", MARKERS[index % len(MARKERS)]
        means = [arm["mean"] for arm in own]
        swept.errorbar([arm["value"] for arm in own], means, fmt=f"-{marker}", label=label, **bar)
        costs.errorbar([arm[cost] / 1e6 for arm in own], means, fmt=marker, **bar)
    explain_runs(swept, summary)
    swept.set_xscale("log", base=2)
    ticks = [arm["value"] for arm in arms.values()]
    swept.set_xticks(ticks, [f"{value:g}" for value in ticks])
    swept.minorticks_off()
    if summary["paper_range"]:
        low, high, says = summary["paper_range"]
        swept.axvspan(low, high, color="0.92", zorder=0, label=f"paper: {says}")
    swept.set(title=f"Against {summary['axis']}", xlabel=summary["axis"], ylabel=f"test {metric.title}")
    symbol = summary["axis"].split(",")[0]
    costs.set(title=f"Against {cost.replace('_', '-')}", xlabel=f"million {cost.replace('_', '-')}")
    tops = [(arm[cost] / 1e6, max(arm[f"test_{metric.name}"]), arm["value"]) for arm in arms.values()]
    _label_above(costs, tops, symbol)


def _label_above(axes: Axes, points: list[tuple[float, float, float]], symbol: str) -> None:
    """Write the number of each point (x, y, number) in a row above all points, with a line down to it.

    Numbers are in the order of x, so that no two lines cross.
    """
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= top])
    axes.set_ylim(bottom, top + 0.22 * (top - bottom))
    for index, (x, y, number) in enumerate(sorted(points)):
        axes.annotate(
            f"{symbol}={number:g}" if len(points) < 6 else f"{number:g}",
            (x, y),
            ((index + 0.5) / len(points), 0.97),
            textcoords="axes fraction",
            ha="center",
            va="top",
            fontsize=10,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 3},
        )
    if len(points) >= 6:
        axes.set_title(f"{axes.get_title()} (numbers: {symbol})")


def _draw_tradeoff(figure: SubFigure, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Draw the test metric against multiply-adds and against parameters, and the paper's own networks."""
    published = summary["published"]
    panels = figure.subplots(1, 3 if published else 2)
    arms, metric = summary["arms"], metric_of(summary)
    series = list(dict.fromkeys(arm["series"] for arm in arms.values()))
    networks = list(dict.fromkeys([*map(_network, series), *(point[0] for point in published)]))
    sizes = list(dict.fromkeys(name.removeprefix(_network(name)) for name in series))

    def marker(name: str, size: int = 0) -> dict[str, Any]:
        """Return a network's style, the same in all panels; fill and line style depend on the size of its images."""
        index = networks.index(name)
        fill = ("full", "none", "left", "top", "right", "bottom")[size % 6]
        kept = {"color": line_style(index)["color"], "linestyle": line_style(size)["linestyle"]}
        return {**kept, "marker": MARKERS[index % len(MARKERS)], "markersize": 6, "fillstyle": fill}

    for panel, cost in zip(panels, ("multiply_adds", "parameters"), strict=False):
        for name in series:
            own = sorted((arm for arm in arms.values() if arm["series"] == name), key=lambda arm: arm[cost])
            style = marker(_network(name), sizes.index(name.removeprefix(_network(name))))
            costs, means = [arm[cost] / 1e6 for arm in own], [arm["mean"] for arm in own]
            panel.errorbar(costs, means, yerr=_bars(own), capsize=3, linewidth=1.2, label=name, **style)
        front = pareto([(arm[cost] / 1e6, arm["mean"]) for arm in arms.values()], metric.higher_is_better)
        panel.plot(*zip(*front, strict=True), color="0.8", linewidth=6, zorder=0, label="Pareto front")
        unit = cost.replace("_", "-")
        panel.set(title=f"Against {unit}", xlabel=f"million {unit}")
        draw_metric_axis(panel, summary)
        _log_ticks(panel, [arm[cost] / 1e6 for arm in arms.values()])
    panels[0].set_ylabel(f"mean test {metric.title}, {_bounds(summary)}")
    if published:
        for name in dict.fromkeys(point[0] for point in published):
            points = [(cost / 1e6, top1) for own, cost, top1 in published if own == name]
            panels[2].plot(
                *zip(*points, strict=True), label=f"{name} in the paper", **{**marker(name), "linestyle": "none"}
            )
        panels[2].set(title="The paper, on ImageNet", xlabel="million multiply-adds", ylabel="top-1 accuracy")
        draw_metric_axis(panels[2], {**summary, "chance": None})
        _log_ticks(panels[2], [cost / 1e6 for _, cost, _ in published])


def _log_ticks(axes: Axes, values: list[float]) -> None:
    """Make the x axis logarithmic, with about five round ticks."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-3, 5) for m in ((1, 2, 5) if high / low < 100 else (1, 3))]
    if high / low < 4:
        steps = [m * 10.0**e for e in range(-3, 5) for m in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    axes.set_xticks([step for step in steps if low / 1.5 <= step <= high * 1.5])


def _draw_grid(figure: SubFigure, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Draw a heat map of the test metric, the best brightest, and the final result of every run."""
    heat, runs = figure.subplots(1, 2)
    metric = metric_of(summary)
    inside = {name: arm for name, arm in summary["arms"].items() if arm["value"] is not None}
    rows = sorted({arm["series"] for arm in inside.values()}, key=float)
    columns = sorted({arm["value"] for arm in inside.values()})
    means = np.full((len(rows), len(columns)), np.nan)
    for arm in inside.values():
        means[rows.index(arm["series"]), columns.index(arm["value"])] = arm["mean"]
    # Lightness rises along the map, so it also reads in grey.
    image = heat.imshow(
        means, cmap="cividis" if metric.higher_is_better else "cividis_r", origin="lower", aspect="auto"
    )
    for name, arm in inside.items():
        color = "black" if sum(image.cmap(image.norm(arm["mean"]))[:3]) > 1.3 else "white"
        bounds = [short(bound, metric).removesuffix(" %") for bound in arm["ci95"] or ()]
        interval = "\n" + " to ".join(bounds) if bounds else ""
        text = f"{short(arm['mean'], metric)}{interval}" + ("\n(baseline)" if name == summary["baseline"] else "")
        place = columns.index(arm["value"]), rows.index(arm["series"])
        heat.text(*place, text, ha="center", va="center", color=color, fontsize=10 if len(columns) < 4 else 8)
    heat.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    heat.set_yticks(range(len(rows)), rows)
    across, up = summary["axis"].split("|")
    heat.set(title=f"Mean test {metric.title}, {_bounds(summary)}\n(brighter is better)", xlabel=across, ylabel=up)
    heat.tick_params(length=0)
    _every_run(runs, summary)


def pareto(points: list[tuple[float, float]], higher_is_better: bool = True) -> list[tuple[float, float]]:
    """Return the Pareto front of (cost, value) points, by cost: those with a better value than any cheaper one."""
    front: list[tuple[float, float]] = []
    sign = 1 if higher_is_better else -1
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front
