"""The command line that all studies share, and the way from its flags to the files of a study."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2_jax.ablation.design import Arm, Study, identity
from mnv2_jax.data.names import ResidentName
from mnv2_jax.environment import core_count, environment
from mnv2_jax.errors import UserError
from mnv2_jax.models.names import Layers
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.folder import check_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Flags of a study. What follows a field is its help."""

    dataset: ResidentName = "digits"
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
    layers: Layers = "fitted"
    """Layers written so that the platform compiles them well, or plain, as JAX has them."""
    out: Path | None = None
    """Folder for the results; runs/EXPERIMENT-DATASET-ARMS if not given."""
    overwrite: bool = False
    """Replace the study that --out holds instead of continuing it."""


def create_study(options: StudyOptions, experiment: str, question: str, claim: str, arms: Sequence[Arm]) -> Study:
    """The study that the flags describe.

    Raises:
        UserError: for bad input.
    """
    for name in ("width_multiplier", "expansion"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(options, name)}")
    from mnv2_jax.data.catalog import CATALOG

    entry = CATALOG[options.dataset]
    return Study(
        experiment=experiment,
        question=question,
        claim=claim,
        dataset=options.dataset,
        arms=tuple(arms),
        model={
            "width_multiplier": options.width_multiplier,
            "expansion": options.expansion,
            "layers": options.layers,
            "unit_strides": unit_strides_for(entry.image_size, entry.source_size),
        },
        training=TrainConfig(options.epochs, options.batch_size, options.learning_rate),
        seeds=options.seeds,
        train_images=options.train_images,
    )


def spread_over_cores() -> None:
    """Let JAX see a CPU device a core, where it has not been told how many: runs side by side share a core with none.

    Steps as small as a study's leave half of two cores idle; two at a time take 1.3 times less for each.
    """
    import jax

    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not told and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the devices are there already
            jax.config.update("jax_num_cpu_devices", core_count())


def study_command(options: StudyOptions, study: Study) -> dict[str, Any]:
    """Run a study, write all its files, and end with its table; returns the summary.

    Raises:
        UserError: for bad input, before anything is written.
    """
    names = "-".join(arm.name for arm in study.arms[1:])
    folder = options.out or Path("runs") / f"{study.experiment}-{options.dataset}-{names}"
    check_folder(identity(study), folder, options.overwrite, "study")

    spread_over_cores()
    # Only now the slow imports and the data.
    from mnv2_jax.ablation import plots
    from mnv2_jax.ablation.progress import Reporter
    from mnv2_jax.ablation.report import arms_table, write_report
    from mnv2_jax.ablation.study import run_study
    from mnv2_jax.data.catalog import CATALOG
    from mnv2_jax.data.resident import load
    from mnv2_jax.training.progress import create_console

    entry = CATALOG[options.dataset]
    console = create_console()
    console.print(f"{study.experiment} on {entry.title}", markup=False)
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
