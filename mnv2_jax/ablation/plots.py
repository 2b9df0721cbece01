"""The figure of a study: how every run learnt, where it ended, and what the arms differ by."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.training.metrics import Record

# Okabe and Ito's palette, told apart by colour-blind readers; line style and marker serve the grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = "osD^vPX"


def _style(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def draw(summary: dict[str, Any], records: list[Record], title: str) -> Figure:
    """Draw three panels: learning curves, test accuracy of every run, paired differences with the paper's own.

    Args:
        summary: as in summary.json.
        records: of all its runs.
        title: of the data set.
    """
    arms = list(summary["arms"])
    seeds = summary["seeds"]
    figure, (curves, runs, effects) = plt.subplots(
        1, 3, figsize=(13, 4.4), width_ratios=(1.5, 1, 1.3), layout="constrained"
    )

    for index, arm in enumerate(arms):
        style = _style(index)
        points = [record for record in records if record.arm == arm and record.split == "validation"]
        by_seed = [[r for r in points if r.seed == seed] for seed in seeds]
        images = [record.step * summary["training"]["batch_size"] for record in by_seed[0]]
        accuracy = np.array([[record.metrics["accuracy"] for record in run] for run in by_seed])
        curves.plot(images, accuracy.T, linewidth=0.7, alpha=0.45, **style)
        curves.plot(images, accuracy.mean(axis=0), linewidth=2.6, label=f"{arm} (mean of {len(seeds)})", **style)
    curves.set(title="Validation accuracy in training", xlabel="training images seen", ylabel="validation accuracy")
    curves.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    curves.set_ylim(0, 1)
    curves.legend(loc="best", frameon=False)

    values = np.array([summary["arms"][arm]["test_accuracy"] for arm in arms])
    for column in values.T:
        runs.plot(range(len(arms)), column, color="0.75", linewidth=0.8, zorder=1)
    for index, row in enumerate(values):
        runs.scatter(
            np.full(len(row), index),
            row,
            s=34,
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % 7],
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
        )
        runs.hlines(row.mean(), index - 0.2, index + 0.2, color="black", linewidth=1.6, zorder=3)
    runs.set_xticks(range(len(arms)), arms)
    runs.set_xlim(-0.5, len(arms) - 0.5)
    runs.set(title="Test accuracy, a line a seed", xlabel="after the bottleneck", ylabel="test accuracy")
    runs.yaxis.set_major_formatter(PercentFormatter(1))

    comparisons = summary["comparisons"]
    for index, comparison in enumerate(comparisons):
        differences = (values[index + 1] - values[0]) * 100
        low, high = (100 * bound for bound in comparison["ci95"])
        mean = 100 * comparison["mean_difference"]
        color = COLORS[(index + 1) % len(COLORS)]
        spread = np.linspace(-0.13, 0.13, len(differences))
        effects.scatter(
            differences,
            index + spread,
            s=34,
            color=color,
            marker=MARKERS[(index + 1) % 7],
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
            label="a seed" if index == 0 else None,
        )
        effects.errorbar(
            mean,
            index - 0.28,
            xerr=[[mean - low], [high - mean]],
            fmt="o",
            color="black",
            capsize=4,
            label="mean and 95 % interval" if index == 0 else None,
            zorder=3,
        )
        paper = comparison["paper"]
        if paper is not None:
            effects.plot(
                100 * paper["difference"],
                index + 0.28,
                marker="*",
                markersize=13,
                color="black",
                markerfacecolor="white",
                linestyle="none",
                label=f"paper, {paper['where']} ({paper['how']}), ImageNet: {100 * paper['difference']:+.1f}",
                zorder=4,
            )
    effects.margins(x=0.08)
    effects.axvline(0, color="0.4", linewidth=1, linestyle=":")
    effects.set_yticks(range(len(comparisons)), [f"{c['arm']}\n− {c['baseline']}" for c in comparisons])
    effects.set_ylim(-0.6, len(comparisons) + 0.1)
    effects.set(title="Difference in test accuracy", xlabel="percentage points")
    effects.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)

    for axes in (curves, runs, effects):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if axes is effects else "y", color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.suptitle(f"{summary['question']}   {title}", fontsize=12)
    return figure


def save(figure: Figure, folder: Path) -> None:
    """Write figure.png and figure.svg, each in one go; the same study gives the same bytes."""
    # SVG ids and dates would otherwise change from one time to the next.
    with matplotlib.rc_context({"svg.hashsalt": "mnv2_jax"}):
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            temporary = folder / f".figure.new.{suffix}"
            figure.savefig(temporary, dpi=150, metadata=metadata)
            temporary.replace(folder / f"figure.{suffix}")
    plt.close(figure)
