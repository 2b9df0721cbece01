"""The command line that all studies share, and the way from its flags to the files of a study."""

import dataclasses
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnv2_jax.ablation.progress import Reporter, create_console
from mnv2_jax.ablation.study import Arm, Study, check_folder, run_study
from mnv2_jax.data.catalog import CATALOG, DatasetName, Entry
from mnv2_jax.errors import UserError
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Flags of a study. What follows a field is its help."""

    dataset: DatasetName = "digits"
    """Data to train and test on; prepared on first use."""
    data_files: Path | None = None
    """Folder with your copy of the data set's files (fashion_mnist: the four IDX files), where it cannot be downloaded."""
    train_images: int | None = None
    """Train on this many images of the training split; all of them if not given."""
    seeds: int = 6
    """Runs an arm. Fewer than 6 cannot reach p < 0.05."""
    epochs: int = 2
    """Passes over the training images."""
    batch_size: int = 16
    """Images a step."""
    learning_rate: float = 0.02
    """Highest learning rate; warm-up before it, a cosine to zero after it."""
    width_multiplier: float = 0.35
    """Scales the channels of every layer."""
    expansion: float = 6.0
    """t: the inner width of a block over that of its bottleneck."""
    out: Path | None = None
    """Folder for the results; runs/EXPERIMENT-DATASET-ARMS if not given."""
    overwrite: bool = False
    """Replace the study that --out holds instead of continuing it."""


def unit_strides_of(entry: Entry) -> int:
    """The rule of `unit_strides_for`, less one for every whole factor of two by which the images were enlarged.

    An enlarged image has no detail that the strides given back would lose.
    """
    enlargement = int(math.log2(entry.image_size / entry.source_size))
    return max(0, unit_strides_for(entry.image_size) - enlargement)


def environment() -> dict[str, Any]:
    """What the results depend on besides the command."""
    import jax

    source = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "mnv2_jax": version("mnv2_jax"),
        "jax": version("jax"),
        "flax": version("flax"),
        "optax": version("optax"),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "git": commit,
    }


def study_command(
    options: StudyOptions, experiment: str, question: str, claim: str, arms: Sequence[Arm]
) -> dict[str, Any]:
    """Run the study that the flags describe, write all its files, and end with its table; returns the summary.

    Raises:
        UserError: for bad input, before anything is written.
    """
    for name in ("width_multiplier", "expansion"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(options, name)}")
    entry = CATALOG[options.dataset]
    study = Study(
        experiment=experiment,
        question=question,
        claim=claim,
        dataset=options.dataset,
        arms=tuple(arms),
        model={
            "width_multiplier": options.width_multiplier,
            "expansion": options.expansion,
            "unit_strides": unit_strides_of(entry),
        },
        training=TrainConfig(options.epochs, options.batch_size, options.learning_rate),
        seeds=options.seeds,
        train_images=options.train_images,
    )
    names = "-".join(arm.name for arm in arms[1:])
    folder = options.out or Path("runs") / f"{experiment}-{options.dataset}-{names}"
    check_folder(study, folder, options.overwrite)

    # Only now the slow imports and the data.
    from mnv2_jax.ablation import plots
    from mnv2_jax.ablation.report import arms_table, write_report
    from mnv2_jax.data.resident import load

    console = create_console()
    console.print(f"{experiment} on {entry.title}", markup=False)
    dataset = load(options.dataset, options.data_files, train_images=options.train_images)
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    summary, records = run_study(study, dataset, folder, Reporter(console), options.overwrite, command, environment())
    plots.save(plots.draw(summary, records, entry.title), folder)
    write_report(summary, folder, entry.title)
    console.print()
    console.print(arms_table(summary))
    for name in ("figure.png", "report.html", "summary.json", "metrics.jsonl"):
        console.print(str(folder / name), markup=False)
    return summary
