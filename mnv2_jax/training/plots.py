"""The figure of one run: how it learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.training.metrics import Record

# Of Okabe and Ito's palette; lines and markers tell the splits apart in grey.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "-"},
    "validation": {"color": "#D55E00", "linestyle": "--", "marker": "o", "markersize": 4},
}


def draw_run(records: Sequence[Record], title: str) -> Figure:
    """Loss and accuracy by step, of the training batches and of the validation split, and the test split's last word."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, metric, label in zip(panels, ("loss", "accuracy"), ("loss (nats an image)", "accuracy"), strict=True):
        for split, style in STYLES.items():
            chosen = [record for record in records if record.split == split]
            axes.plot([r.step for r in chosen], [r.metrics[metric] for r in chosen], label=split, **style)
        for record in (record for record in records if record.split == "test"):
            value = record.metrics[metric]
            text = f"test {value:.2%}" if metric == "accuracy" else f"test {value:.3f}"
            axes.plot(record.step, value, marker="*", markersize=13, color="black", linestyle="none", label=text)
        axes.set(xlabel="steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.legend(frameon=False)
    panels[0].set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title, fontsize=12)
    return figure


def save_run(records: Sequence[Record], title: str, path: Path) -> None:
    """Write the figure in one go; the same records give the same bytes."""
    figure = draw_run(records, title)
    temporary = path.with_name(f".new.{path.name}")
    figure.savefig(temporary, dpi=150, metadata={"Software": None})
    temporary.replace(path)
    plt.close(figure)
