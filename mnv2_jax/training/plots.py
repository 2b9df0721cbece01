"""Figure of one run: its settings and learning curves."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.data.catalog import CATALOG
from mnv2_jax.results import save_figure
from mnv2_jax.tasks.task import Metric
from mnv2_jax.training.metrics import Record

# Okabe and Ito's palette; line styles and markers distinguish the splits in grey.
TRAINING: dict[str, Any] = {"color": "#0072B2", "linestyle": "-"}
VALIDATION: dict[str, Any] = {"color": "#D55E00", "linestyle": "--", "marker": "o", "markersize": 4}
BEST: dict[str, Any] = {"color": "#D55E00", "linestyle": "none", "marker": "o", "markersize": 11, "fillstyle": "none"}
TEST: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "*", "markersize": 13}

WINDOWS = 50
"""Maximum number of windows per run; each point of the training curve is a mean over one window."""

OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSProp", "adamw": "AdamW"}


def windows(records: Sequence[Record], name: str, steps: int) -> tuple[list[float], list[float]]:
    """Return (centres in steps, means of a metric) of the training records in each window of a run of `steps` steps.

    Records end early where the run pauses for evaluation, and a mean over a few steps is mostly noise. Within a window
    every image has the same weight.
    """
    middles, means, first = [], [], 0
    for _, grouped in itertools.groupby(records, lambda record: (record.step - 1) * WINDOWS // steps):
        group = list(grouped)
        images = sum(record.images for record in group)
        middles.append((first + group[-1].step) / 2)
        means.append(sum(record.metrics[name] * record.images for record in group) / images)
        first = group[-1].step
    return middles, means


def draw_run(records: Sequence[Record], summary: Mapping[str, Any], metric: Metric) -> Figure:
    """Plot loss and the task's metric by step: training batches, validation split and, at the end, test split."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    shown = (("loss", "loss (nats per image)", "{:.3f}".format), (metric.name, metric.title, metric.format))
    for axes, (name, label, text) in zip(panels, shown, strict=True):
        by_split = {
            split: [record for record in records if record.split == split and name in record.metrics]
            for split in ("train", "validation", "test")
        }
        middles, means = windows(by_split["train"], name, summary["steps"])
        over = round(summary["steps"] / max(1, len(means)))
        curve = "training (mixed images)" if summary["settings"].get("mixup") else "training"
        axes.plot(middles, means, label=f"{curve}, mean of about {over} steps" if over > 1 else curve, **TRAINING)
        scored = by_split["validation"]
        axes.plot([r.step for r in scored], [r.metrics[name] for r in scored], label="validation", **VALIDATION)
        for record in scored:
            if record.step == (summary.get("best") or {}).get("step"):
                axes.plot(record.step, record.metrics[name], label=f"best {text(record.metrics[name])}", **BEST)
        for record in by_split["test"]:
            axes.plot(record.step, record.metrics[name], label=f"test {text(record.metrics[name])}", **TEST)
        axes.set(xlabel="steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylim(bottom=0)
    if metric.percent:
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    title, *details = describe_training(summary)
    figure.suptitle("\n".join([title, *details]), fontsize=11)
    return figure


def describe_training(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """Describe what a run trained, on what data and how, in three lines. Takes summaries of any version."""
    settings = summary["settings"]
    entry = CATALOG.get(settings["dataset"])
    name, width = settings.get("name") or "mobilenet_v2", settings.get("width_multiplier")
    images = entry.title if entry else Path(summary.get("data_files") or settings["dataset"]).name
    sized = settings.get("resolution") or (entry.image_size if entry else None)
    train, epochs = f"{summary['train_images']:,}", settings["epochs"]
    seen = f"{epochs} epoch{'s' * (epochs != 1)} of {train} images"
    if settings.get("images"):
        seen = f"{settings['images']:,} images drawn from {train}"
    network = [
        f"{settings[key]}" if key == "bottleneck_activation" else f"{key} {settings[key]:g}"
        for key in ("expansion", "bottleneck_activation")
        if settings.get(key) is not None
    ]
    what = [
        f"width {1 if width is None else width:g}",
        *network,
        *([f"{sized} pixels"] if sized else []),
        *([f"from {settings['weights']}"] if settings.get("weights") else []),
        *(["backbone frozen"] if settings.get("freeze") else []),
        f"seed {settings['seed']}",
    ]
    how = [
        f"{seen} ({summary['steps']:,} steps, batch size {settings['batch_size']})",
        f"{OPTIMIZERS[settings['optimizer']]}, learning rate {settings['learning_rate']:g}",
        *([f"mixup {settings['mixup']:g}"] if settings.get("mixup") else []),
        *([f"RandAugment {settings['rand_augment']}"] if settings.get("rand_augment") else []),
    ]
    return f"{name} on {images}", ", ".join(what), ", ".join(how)


def save_run(records: Sequence[Record], summary: Mapping[str, Any], folder: Path, metric: Metric) -> None:
    """Write figure.png of a run; equal records give equal bytes."""
    save_figure(draw_run(records, summary, metric), folder, ["png"])
