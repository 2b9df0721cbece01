"""The figure of one run: how it learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.results import save_figure
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record

# Of Okabe and Ito's palette; lines and markers tell the splits apart in grey.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "-"},
    "validation": {"color": "#D55E00", "linestyle": "--", "marker": "o", "markersize": 4},
}


def draw_run(records: Sequence[Record], title: str, metric: Metric) -> Figure:
    """Loss and the task's metric by step, of the training batches and of the validation split, and the test split's last word."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    shown = (("loss", "loss (nats an image)", "{:.3f}".format), (metric.name, metric.title, metric.format))
    for axes, (name, label, text) in zip(panels, shown, strict=True):
        for split, style in STYLES.items():
            chosen = [record for record in records if record.split == split and name in record.metrics]
            axes.plot([r.step for r in chosen], [r.metrics[name] for r in chosen], label=split, **style)
        for record in (record for record in records if record.split == "test"):
            value = record.metrics[name]
            star = {"marker": "*", "markersize": 13, "color": "black", "linestyle": "none"}
            axes.plot(record.step, value, label=f"test {text(value)}", **star)
        axes.set(xlabel="steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.legend(frameon=False)
    panels[0].set_ylim(bottom=0)
    if metric.percent:
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title, fontsize=12)
    return figure


def save_run(records: Sequence[Record], title: str, folder: Path, metric: Metric) -> None:
    """Write figure.png of a run; the same records give the same bytes."""
    save_figure(draw_run(records, title, metric), folder, ["png"])
