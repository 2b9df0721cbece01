"""The panel that answers a study's question: each arm's difference from the baseline, and the verdict in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mnv2_jax.ablation.style import draw_runs, explain_runs, wrapped
from mnv2_jax.ablation.summary import comparison_count, failed_of, metric_of
from mnv2_jax.ablation.verdicts import difference, interval, p_value, paper_difference, verdict_in
from mnv2_jax.tasks.task import Metric

SHAPES = {"mean": "o", "median": "D"}
"""Marker of each estimand."""
ROW = 0.66
"""Height of a comparison's row in inches."""


def draw_differences(axes: Axes, summary: Mapping[str, Any], styles: Mapping[str, int], order: Sequence[str]) -> None:
    """Draw every comparison as a row: the difference for each seed, the estimate with its interval, the verdict.

    Args:
        axes: to draw on.
        summary: as in summary.json.
        styles: style index of each arm's dots.
        order: names of the arms, the first on top.
    """
    metric = metric_of(summary)
    comparisons = sorted(summary["comparisons"], key=lambda comparison: order.index(comparison["arm"]))
    for height, comparison in enumerate(reversed(comparisons)):
        _draw_comparison(axes, summary, comparison, height, styles[comparison["arm"]])
    explain_runs(axes, summary)
    _explain(axes, comparisons, comparison_count(summary))
    axes.margins(x=0.08)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(comparisons))[::-1], [wrapped(comparison["arm"]) for comparison in comparisons])
    axes.set_ylim(-0.6, len(comparisons) - 0.4)
    p = "p" if comparison_count(summary) == 1 else "Holm's p"
    header: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9, "color": "0.35", "va": "top"}
    interval_too = any(comparison["ci95"] is not None for comparison in comparisons)
    axes.text(1.02, 1.0, f"verdict, difference{' (95 % interval)' if interval_too else ''}, {p}", **header)
    left, right = ("worse", "better") if metric.higher_is_better else ("better", "worse")
    axes.set(
        title=f"Difference from {summary['baseline']} in test {metric.title}, paired by seed",
        xlabel=f"← {left}        {metric.difference_unit}        {right} →",
    )
    axes.grid(axis="x", color="0.9", linewidth=0.7)


def _draw_comparison(
    axes: Axes, summary: Mapping[str, Any], comparison: Mapping[str, Any], height: int, style: int
) -> None:
    arms, metric = summary["arms"], metric_of(summary)
    tested, scale = f"test_{metric.name}", metric.scale
    differences = scale * (np.array(arms[comparison["arm"]][tested]) - arms[comparison["baseline"]][tested])
    failed = failed_of(summary)
    bad = failed[comparison["arm"]] | failed[comparison["baseline"]]
    draw_runs(axes, differences, height + np.linspace(-0.13, 0.13, len(differences)), bad, style)
    _draw_estimate(axes, comparison, metric, height - 0.28)
    if comparison["estimand"] == "median":
        axes.plot(scale * comparison["mean_difference"], height - 0.28, "|", color="black", markersize=11)
    if comparison["paper"] is not None:
        place = scale * comparison["paper"]["difference"], height + 0.28
        axes.plot(*place, "*", markersize=12, color="black", markerfacecolor="white", zorder=4)
    numbers = f"{difference(comparison, metric):+.2f} ({interval(comparison, metric)}), p = {p_value(comparison)}"
    if comparison["paper"] is not None:
        numbers += f"\npaper: {paper_difference(comparison, metric)}"
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 10}
    axes.text(1.02, height + 0.05, verdict_in(summary, comparison), va="bottom", fontweight="bold", **beside)
    axes.text(1.02, height, numbers.replace("-", "−"), va="top", **beside)


def _draw_estimate(axes: Axes, comparison: Mapping[str, Any], metric: Metric, height: float) -> None:
    """Draw the estimate and its interval, if bounded. Filled: conclusive. Circle: mean. Diamond: median."""
    value, bars = difference(comparison, metric), None
    if comparison["ci95"] is not None:
        low, high = (metric.scale * bound for bound in comparison["ci95"])
        bars = [[value - low], [high - value]]
    axes.errorbar(
        value,
        height,
        xerr=bars,
        fmt=SHAPES[comparison["estimand"]],
        color="black",
        markerfacecolor="white" if comparison["verdict"] == "inconclusive" else "black",
        capsize=4,
        zorder=3,
    )


def _explain(axes: Axes, comparisons: Sequence[Mapping[str, Any]], count: int) -> None:
    """Add the markers of the rows to the legend."""
    whole = "95 % interval" if count == 1 else "95 % simultaneous interval"
    for estimand, label in (("mean", "mean difference"), ("median", "median difference (runs failed)")):
        of_kind = [comparison for comparison in comparisons if comparison["estimand"] == estimand]
        if of_kind:
            unbounded = any(comparison["ci95"] is None for comparison in of_kind)
            bounds = f"no bound with {of_kind[0]['n']} seeds" if unbounded else whole
            filled = any(comparison["verdict"] != "inconclusive" for comparison in of_kind)
            style: dict[str, Any] = {"color": "black", "markerfacecolor": "black" if filled else "white"}
            axes.plot([], [], SHAPES[estimand], label=f"{label}, {bounds}", **style)
    if any(comparison["estimand"] == "median" for comparison in comparisons):
        axes.plot([], [], "|", color="black", markersize=11, label="mean difference, failed runs included")
    if any(comparison["verdict"] == "inconclusive" for comparison in comparisons):
        axes.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: inconclusive")
    papers = {comparison["paper"]["how"] for comparison in comparisons if comparison["paper"]}
    if papers:
        label = f"paper's difference on ImageNet ({', '.join(sorted(papers))})"
        axes.plot([], [], "*", markersize=12, color="black", markerfacecolor="white", label=label)
