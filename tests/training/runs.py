"""Runs that take seconds, for the tests of runs."""

import contextlib
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rich.console import Console

from mnv2_jax.data.batch import Dataset
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.mobilenet_v2 import MobileNetV2
from mnv2_jax.training import run as run_module
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.config import Execution, Recipe, Run
from mnv2_jax.training.create import create_dataset
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import Record, read_records
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.programs import Programs, trace_programs
from mnv2_jax.training.progress import Reporter
from mnv2_jax.training.step import Learner, TrainState
from mnv2_jax.training.trainer import Trainer

# One block instead of seventeen, with everything that a block has; compiled in seconds.
STAGES = (Stage(2, 8, 1, 1),)
NETWORK = MobileNetV2(10, 0.1, stages=STAGES)
STEPS = 24
# Enough steps that some are left after twelve kills, even on a machine several times faster.
LONG = {"epochs": 50}
NEVER = 1e9
"""Seconds between checkpoints, if none are wanted."""


def results(records):
    """Return what is reproducible in records: everything but times."""
    return [(r.arm, r.seed, r.step, r.split, dict(r.metrics), r.images) for r in records]


# --- A run and its folder --------------------------------------------------------------------------------

_PROGRAMS: dict[Any, Programs] = {}
_DATASETS: dict[Any, Dataset] = {}


def open_once(run, on_bad_image="stop", start=None):
    """`create_dataset` with a cache of resident data."""
    if run.streamed:
        return create_dataset(run, on_bad_image, start)
    key = run.dataset, run.resolution, run.train_images, run.validation_images
    if key not in _DATASETS:
        _DATASETS[key] = create_dataset(run, on_bad_image)
    dataset = _DATASETS[key]
    return dataset if start is None else dataset.prepared_as(start.preprocessing, start.image_channels)


def compile_once(learner, dataset, recipe, devices):
    """`trace_programs` with a cache: runs of this process with the same programs share one compilation."""
    what = learner.model, learner.task, learner.trained_layers, recipe, devices
    key = (*what, type(dataset), dataset.preprocessing, dataset.image_shape, dataset.train_images)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = trace_programs(learner, dataset, recipe, devices)()
    data = dataset.train_data(recipe.batch_size, recipe.accumulation)
    programs = dataclasses.replace(_PROGRAMS[key], learner=learner, data=data)
    return lambda: programs


class _Starting(Reporter):
    """A reporter that calls a function when training begins."""

    def __init__(self, log, on_start):
        super().__init__(Console(file=log, width=200))
        self._on_start = on_start

    def begin(self, label, steps, done):
        super().begin(label, steps, done)
        self._on_start()


def tiny_run(training=None, model=None, **settings) -> Run:
    """Return a run of one block on digits at 12 pixels, with moving average, accumulation, dropout and evaluations."""
    usual = dict(
        epochs=4, batch_size=16, learning_rate=0.05, ema_decay=0.9, accumulation=2, dropout_rate=0.2, evaluations=3
    )
    network = {"name": "mobilenet_v2", "width_multiplier": 0.1, "stages": STAGES, "unit_strides": 0}
    return Run(
        **{
            "dataset": "digits",
            "model": network if model is None else model,
            "training": Recipe(**{**usual, **(training or {})}),
            "seed": 5,
            "resolution": 12,
            "train_images": 96,
            "validation_images": 40,
            **settings,
        }
    )


def run_tiny(
    folder: Path,
    on_start=lambda: None,
    log=None,
    devices=2,
    overwrite=False,
    drawn=False,
    execution=None,
    **settings,
) -> dict[str, Any]:
    """Train `tiny_run(**settings)` on a number of devices, or with None on all; return the summary.

    Runs of a process share images and programs, which take longer than their steps. Only `drawn` runs have a figure.
    """
    changes = {"create_dataset": open_once, "trace_programs": compile_once}
    if not drawn:
        changes["save_run"] = lambda *arguments: None
    create = functools.partial(Devices.create, per_run=devices)
    with mock.patch.multiple(run_module, **changes), mock.patch.object(Devices, "create", create):
        return run_module.train_run(
            tiny_run(**settings),
            Execution(**{"log_every": 7, **(execution or {})}),
            folder,
            _Starting(log or io.StringIO(), on_start),
            overwrite,
        )


# --- A group of runs -------------------------------------------------------------------------------------


def learner_of(network, task, recipe, train_images, **changes) -> Learner:
    """Return the learner of a recipe."""
    return Learner(
        network, task, create_optimizer(recipe, train_images), recipe.accumulation, recipe.ema_decay, **changes
    )


def compile_programs(network, task, dataset, recipe, devices, **changes) -> Programs:
    """Compile all programs of a group of runs."""
    return trace_programs(
        learner_of(network, task, recipe, dataset.train_images, **changes), dataset, recipe, devices
    )()


class Trained(NamedTuple):
    """Results of a group of runs."""

    state: TrainState
    records: list[Record]
    trainer: Trainer


def train(
    programs,
    dataset,
    recipe,
    members,
    folder: Path,
    execution=None,
    disposable=False,
    said=None,
    tested=False,
    **options,
) -> Trained:
    """Train a group of runs with their files in `folder`.

    With `tested`, also evaluate the test split. Output is printed to the file `said`; `options` go to the trainer.
    """
    reporter = Reporter(Console(file=said or io.StringIO(), width=200))
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "metrics.jsonl", {(member.arm, member.seed): None for member in members}, reporter)
    checkpoints = RunCheckpoints(folder / "checkpoints", disposable=disposable)
    with contextlib.closing(checkpoints), contextlib.closing(log):
        reporter.expect(recipe.steps(dataset.train_images), programs.learner.task.metric)
        trainer = Trainer(
            programs, dataset, recipe, members, log, checkpoints, Execution(**(execution or {})), **options
        )
        state = trainer.train()
        if tested:
            trainer.test(state)
    return Trained(state, read_records(folder / "metrics.jsonl"), trainer)
