"""Style of the figures of studies: colors, lines, markers, and drawing functions that several panels share."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.ablation.summary import failed_of, metric_of
from mnv2_jax.tasks.task import Metric

# Okabe and Ito's palette, which color-blind readers can tell apart. Line styles and markers serve grey prints.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# 6 lines and 8 markers have no common factor with 7 colors, so that more than 7 arms still differ.
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vPp<"  # no cross, which marks a failed run
FAILED: dict[str, Any] = {"marker": "x", "s": 45, "linewidths": 1.6, "zorder": 2}
"""Style of a failed run, for `scatter`."""
WIDTH = 10.0
"""Width of a study's figure in inches: 10-point text is still legible when it is shown 800 pixels wide."""


def line_style(index: int) -> dict[str, Any]:
    """Return the style of the line with this index."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def dot_style(index: int) -> dict[str, Any]:
    """Return the style of the runs with this index, for `scatter`."""
    marker, color = MARKERS[index % len(MARKERS)], COLORS[index % len(COLORS)]
    return {"s": 30, "color": color, "marker": marker, "edgecolors": "white", "linewidths": 0.6, "zorder": 2}


def wrapped(name: str) -> str:
    """Break a long name into short lines: at its comma if it has exactly one, else at spaces."""
    if len(name) > 18 and name.count(", ") == 1:
        return name.replace(", ", ",\n")
    return textwrap.fill(name, 22, break_long_words=False, break_on_hyphens=False)


def draw_runs(axes: Axes, x: np.ndarray, y: np.ndarray, failed: np.ndarray, index: int, size: float = 30) -> None:
    """Draw one dot per run in the style of an index, and a cross for each failed run."""
    style = {**dot_style(index), "s": size}
    axes.scatter(x[~failed], y[~failed], **style)
    axes.scatter(x[failed], y[failed], **FAILED, color=style["color"])


def explain_runs(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Add the markers of `draw_runs` to the legend."""
    axes.scatter([], [], color="0.5", label="one seed")
    if any(failed.any() for failed in failed_of(summary).values()):
        axes.scatter([], [], **FAILED, color="0.4", label="failed run: nearer to chance than to the median")


def draw_metric_axis(axes: Axes, summary: Mapping[str, Any], along: Literal["x", "y"] = "y") -> None:
    """Draw the grid, tick format and chance level of the axis ("x" or "y") that shows the metric."""
    metric, chance = metric_of(summary), summary.get("chance")
    axis = axes.xaxis if along == "x" else axes.yaxis
    if metric.percent:
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    if chance is not None:
        line = axes.axvline if along == "x" else axes.axhline
        line(
            chance, color="0.35", linewidth=1, linestyle=(0, (1, 2)), zorder=1, label=f"chance: {short(chance, metric)}"
        )
    axes.grid(axis=along, color="0.9", linewidth=0.7)


def short(value: float, metric: Metric) -> str:
    """Format a value briefly for figures: "91.6 %" or "0.412"."""
    return f"{100 * value:.3g} %" if metric.percent else metric.format(value)


def draw_legend(figure: Figure) -> None:
    """Draw one legend below all panels that have none of their own, each label once, and make room for it."""
    entries: dict[str, Any] = {}
    for axes in (axes for axes in figure.axes if axes.get_legend() is None):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = min(4, max(1, int(72 * WIDTH / (55 + 5.2 * max(map(len, entries))))))
    figure.legend(
        entries.values(),
        entries,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        handlelength=3.2,
    )
    figure.set_figheight(figure.get_figheight() + 0.21 * math.ceil(len(entries) / columns))
