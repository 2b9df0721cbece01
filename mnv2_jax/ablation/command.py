"""The command line that all studies share, and the way from its flags to the files of a study."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2_jax.ablation.design import ARM, Arm, Study, identity
from mnv2_jax.commands.options import check_unit_strides
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
    validation_images: int | None = None
    """Draw learning curves, and choose learning rates, on this many images of the validation split; all if not given."""
    arms: tuple[str, ...] = ()
    """Only these arms, besides the baseline; all of them if not given."""
    seeds: int | None = None
    """Runs an arm; if not given, the fewest with which p < 0.05 can be reached for every comparison that is made."""
    epochs: int = 2
    """Passes over the training images."""
    images: int | None = None
    """Train for so many images in all, in place of --epochs."""
    evaluations: int = 10
    """How often a run is evaluated on the validation split, at equal distances."""
    tune: bool = False
    """Choose each arm's learning rate first, of half, once and twice --learning-rate, on the validation split."""
    batch_size: int = 16
    """Images a step."""
    learning_rate: float = 0.02
    """Highest learning rate; warm-up before it, a cosine to zero after it."""
    width_multiplier: float = 0.35
    """Scales the channels of every layer."""
    expansion: float = 6.0
    """t: the inner width of a block over that of its bottleneck."""
    unit_strides: int | None = None
    """How many of the first stride-2 layers take stride 1; by the size of the images if not given."""
    layers: Layers = "fitted"
    """Layers written so that the platform compiles them well, or plain, as JAX has them."""
    out: Path | None = None
    """Folder for the results; runs/EXPERIMENT-DATASET if not given."""
    overwrite: bool = False
    """Replace the study that --out holds instead of continuing it."""


def create_study(options: StudyOptions, *, arms: Sequence[Arm], **described: Any) -> Study:
    """The study that the flags describe.

    Args:
        options: the flags.
        arms: all arms, the baseline first; the flags may ask for fewer.
        described: the other attributes of `Study`.

    Raises:
        UserError: for bad input.
    """
    for name in ("width_multiplier", "expansion"):
        check_size(name, getattr(options, name))
    if options.unit_strides is not None:
        check_unit_strides(options.unit_strides)
    from mnv2_jax.ablation.statistics import seeds_needed

    training = TrainConfig(
        options.epochs,
        options.batch_size,
        options.learning_rate,
        evaluations=options.evaluations,
        images=options.images,
    )
    study = Study(
        dataset=options.dataset,
        arms=tuple(arms),
        model=shared_settings(options),
        training=training,
        seeds=0,
        train_images=options.train_images,
        validation_images=options.validation_images,
        tune=options.tune,
        **described,
    )
    if options.arms:
        study = study.with_arms(options.arms)
    seeds = seeds_needed(len(study.arms) - 1) if options.seeds is None else options.seeds
    return dataclasses.replace(study, seeds=seeds)


def check_size(name: str, value: float) -> None:
    """Refuse a width multiplier or expansion that no network has.

    Raises:
        UserError: names the flag.
    """
    if not 0 < value < 100:
        raise UserError(f"--{name.replace('_', '-')} must be greater than 0 and below 100, got {value:g}")


def shared_settings(options: StudyOptions) -> dict[str, Any]:
    """What the networks of all arms have in common."""
    from mnv2_jax.data.catalog import CATALOG

    entry = CATALOG[options.dataset]
    fitting = unit_strides_for(entry.image_size, entry.source_size)
    return {
        "width_multiplier": options.width_multiplier,
        "expansion": options.expansion,
        "layers": options.layers,
        "unit_strides": fitting if options.unit_strides is None else options.unit_strides,
    }


def spread_over_cores() -> None:
    """Let JAX see a CPU device a core, where it has not been told how many: runs side by side share a core with none.

    Steps as small as a study's leave half of two cores idle; two at a time take 1.3 times less for each.
    """
    import jax

    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not told and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the devices are there already
            jax.config.update("jax_num_cpu_devices", core_count())


def study_command(options: StudyOptions, study: Study, label: str = "") -> dict[str, Any]:
    """Run a study, write all its files, and end with its table; returns the summary.

    `label` ends the name of the study's folder, where it is not given and one script has several.

    Raises:
        UserError: for bad input, before anything is written.
    """
    name = "-".join(part for part in (study.experiment, options.dataset, label) if part)
    folder = options.out or Path("runs") / name
    check_folder(identity(study), folder, options.overwrite, "study", extends=ARM)

    spread_over_cores()
    # Only now the slow imports and the data.
    from mnv2_jax.ablation.engine import run_study
    from mnv2_jax.ablation.progress import Reporter
    from mnv2_jax.ablation.report import arms_table, write_files
    from mnv2_jax.data.catalog import CATALOG
    from mnv2_jax.data.resident import load
    from mnv2_jax.training.progress import create_console

    console = create_console()
    console.print(f"{study.experiment} on {CATALOG[options.dataset].title}", markup=False)
    for arm in study.arms:
        if arm.note:
            console.print(arm.note, markup=False)
    dataset = load(
        options.dataset,
        options.data_files,
        train_images=options.train_images,
        validation_images=options.validation_images,
    )
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    summary, records = run_study(study, dataset, folder, Reporter(console), options.overwrite, command, environment())
    write_files(summary, records, folder)
    console.print()
    console.print(arms_table(summary))
    for name in ("figure.png", "report.html", "summary.json", "metrics.jsonl"):
        console.print(str(folder / name), markup=False)
    return summary
