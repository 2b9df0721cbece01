"""Studies for tests: one block instead of seventeen, and each program compiled once."""

import contextlib
import dataclasses
import functools
import io
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from rich.console import Console

from mnv2_jax.ablation import study as study_module
from mnv2_jax.ablation.design import Arm, PaperResult, Study
from mnv2_jax.ablation.study import run_study
from mnv2_jax.ablation.summary import summarize
from mnv2_jax.training import evaluation, programs
from mnv2_jax.training.config import Recipe
from mnv2_jax.training.devices import Devices, group_size
from mnv2_jax.training.metrics import Record
from mnv2_jax.training.progress import Reporter

STUDY = Study(
    experiment="test",
    question="Is <linear> better?",
    claim="Yes.",
    dataset="digits",
    arms=(
        Arm("linear"),
        Arm("relu6", {"bottleneck_activation": "relu6"}, PaperResult(-0.006, "Fig. 6a", "digitized")),
    ),
    # Strides reduce maps to 3 x 3 pixels: the last layers have 1280 channels, and tests run unoptimised code.
    model={"width_multiplier": 0.1, "unit_strides": 0, "stages": ((1, 16, 1, 2),)},
    training=Recipe(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2),
    seeds=2,
)
"""Four steps on the 70 digits of `tiny`, two runs side by side."""

ALONE = dataclasses.replace(STUDY, arms=(Arm("base"),))
"""A study with only a baseline."""

ENVIRONMENT = {"jax": "0", "device": "cpu", "device_count": 8, "git": "abc"}


def with_accuracies(described, **accuracies):
    """Return a summary of the same study with these test accuracies."""
    records = [
        Record(arm, seed, 4, "test", 0.0, {"accuracy": value, "loss": 1.0}, 50)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return summarize({**described, "seeds": list(range(len(records) // len(accuracies)))}, records)


def comparison(difference, verdict, n=6, **changed):
    """Return a comparison as in a summary."""
    return {
        "arm": "relu6", "baseline": "linear", "n": n, "mean_difference": difference, "ci95": [-0.1, 0.1], "p_value": 0.03,
        "p_holm": 0.03, "baseline_spread": 0.01, "verdict": verdict, "paper": dataclasses.asdict(STUDY.arms[1].paper),
        "estimand": "mean", "median_difference": -0.02, "failed": {"arm": 0, "baseline": 0}, "detectable": 0.05, **changed,
    }  # fmt: skip


# --- Trained in seconds ----------------------------------------------------------------------------------

_programs: dict[Any, Callable[[], programs.Programs]] = {}


def _compiled_once(learner, dataset, recipe, devices):
    """`trace_programs` with a cache of compiled programs over all studies."""
    key = (learner.model, learner.task, learner.activations, learner.rated, recipe, devices, dataset.fingerprint())
    if key not in _programs:
        _programs[key] = functools.cache(programs.trace_programs(learner, dataset, recipe, devices))
    data = dataset.train_data(recipe.batch_size, recipe.accumulation)
    return lambda: dataclasses.replace(_programs[key](), data=data)


@contextlib.contextmanager
def quick():
    """Train two runs side by side on any devices, in small evaluation batches, and compile every program once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "group_size", lambda runs, devices: group_size(runs, 2))
        patch.setattr(study_module, "trace_programs", _compiled_once)
        patch.setattr(evaluation, "EVALUATION_BATCH", 64)
        yield


class Trained(NamedTuple):
    """Results and log of a study; `runs` is the number of runs trained in this call."""

    summary: dict[str, Any]
    records: list[Record]
    runs: int
    log: str


def run(dataset, folder: Path, study: Study = STUDY, reporter: type[Reporter] = Reporter, **options) -> Trained:
    """Train the missing runs of a study."""
    log = io.StringIO()
    summary, records = run_study(
        study,
        dataset,
        folder,
        reporter(Console(file=log, soft_wrap=True)),
        command="python x",
        environment=ENVIRONMENT,
        **options,
    )
    (runs,) = re.findall(r"^(\d+) runs? trained", log.getvalue(), re.MULTILINE)
    return Trained(summary, records, int(runs), log.getvalue())


def measured(records: list[Record]) -> list[tuple[Any, ...]]:
    """Return the records without times and learning rates, which a study's records do not have."""
    metrics = [{name: value for name, value in r.metrics.items() if name != "learning_rate"} for r in records]
    return [(r.arm, r.seed, r.step, r.split, r.images, each) for r, each in zip(records, metrics, strict=True)]


def stopping(step: int, stop) -> type[Reporter]:
    """Return a reporter class that calls `stop` when a group has logged this step."""

    class Stopping(Reporter):
        def interval(self, at, loss, examples_per_second):
            super().interval(at, loss, examples_per_second)
            if at == step:
                stop()

    return Stopping


def interrupt():
    """Interrupt like Ctrl-C."""
    raise KeyboardInterrupt


def terminate():
    """Send SIGTERM, as on preemption."""
    os.kill(os.getpid(), signal.SIGTERM)


def one_device():
    """Return the devices of a run that is trained on a single device."""
    return Devices.create(1, 1, devices=jax.devices()[:1])
