"""Train a finished run longer: the same command with more epochs or images resumes it from its last step.

It keeps its weights, optimizer state and data position, and from there follows the schedule of its new length.
If it is stopped, it resumes exactly from checkpoints at the old last step or later. Older checkpoints, whose steps
followed another schedule, are no longer used.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv2_jax.errors import UserError
from mnv2_jax.results import ANEW, CONFIG, SUMMARY, kind_of, misfit, read_json
from mnv2_jax.tasks.metric import Metric
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.checkpoint import CHECKPOINTS
from mnv2_jax.training.config import Recipe, Run
from mnv2_jax.training.optimizer import create_schedule

LENGTH = ("epochs", "images")
"""Settings that may be increased once a run has finished."""
SHORTER = "shorter_runs"
"""Key in config.json and summary.json of the finished runs that a run continues."""


def read_summary(folder: Path, metric: Metric) -> dict[str, Any]:
    """Read the summary of a finished run.

    Raises:
        UserError: if it is damaged.
    """
    shape = {"steps": int, "test": {"loss": float, metric.name: float, str: float}, str: object}
    return read_json(folder / SUMMARY, shape, "remove it and run the same command to recreate it")


def earlier_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the finished, shorter runs that the run in a folder continues, oldest first.

    Raises:
        UserError: if its config.json is damaged.
    """
    if not (folder / CONFIG).exists():
        return []
    earlier = read_json(folder / CONFIG, {}).get(SHORTER, [])
    if problem := misfit(earlier, [{"steps": int, str: object}], SHORTER):
        raise UserError(f"{folder / CONFIG} is damaged ({problem}); {ANEW}")
    return earlier


def finished_shorter(run: Run, folder: Path, train_images: int) -> dict[str, Any] | None:
    """Return the results of the finished run in a folder if this run continues it, otherwise None.

    Raises:
        UserError: if the finished run has no checkpoint of its last step.
    """
    if not ((folder / CONFIG).is_file() and (folder / SUMMARY).is_file()):
        return None
    known = read_json(folder / CONFIG, object)
    length = {name: known.get(name) for name in LENGTH} if kind_of(known) == "run" else {}
    if misfit(length, {"epochs": int, "images": (int, type(None))}):
        return None
    summary = read_summary(folder, TASKS[run.task].metric)
    before = dataclasses.replace(run.training, **length).steps(train_images)
    if summary["steps"] != before or before >= run.training.steps(train_images):
        return None
    if not (folder / CHECKPOINTS / str(before)).is_dir():
        raise UserError(
            f"--out {folder} has no checkpoint of step {before} to train its finished run longer from; "
            "use --overwrite to start over"
        )
    return {**length, **{name: summary.get(name) for name in ("steps", "test", "best", "parameters_sha256")}}


def describe_longer(training: Recipe, shorter: Mapping[str, Any], train_images: int) -> str:
    """Return the message shown when a finished run is trained longer."""
    before, steps = shorter["steps"], training.steps(train_images)
    finished = dataclasses.replace(training, **{name: shorter[name] for name in LENGTH})
    last = float(create_schedule(finished, train_images)(before - 1))
    following = float(create_schedule(training, train_images)(before))
    return (
        f"training longer: the finished run of {before:,} steps resumes from its weights, up to step {steps:,}; "
        f"the learning rate jumps from {last:.2e} to {following:.2e}, so this is not the same as {steps:,} steps from "
        "scratch"
    )
