"""Train one run (a group of one) and write its folder.

The folder holds `config.json` (settings), `metrics.jsonl` and `tensorboard/` (logs), `checkpoints/STEP` and
`best_network/` (the best so far on the validation split). A finished run adds `summary.json`, `figure.png` and
`network/`; `load_weights` reads both networks. The same command resumes a run from its newest checkpoint, with
bitwise equal results (on a GPU only with deterministic ops). With more epochs or images it trains a finished run
longer.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnv2_jax.data.batch import Dataset
from mnv2_jax.data.catalog import FOLDER
from mnv2_jax.errors import UserError
from mnv2_jax.network import ODD, Network, describe, save_network, tree_digest
from mnv2_jax.results import (
    FIGURES,
    METRICS,
    SUMMARY,
    check_folder,
    claim_folder,
    plain,
    write_json,
)
from mnv2_jax.tasks.metric import Metric
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.best import Best, variables_of
from mnv2_jax.training.checkpoint import BEST, CHECKPOINTS, NETWORK, RunCheckpoints
from mnv2_jax.training.config import Execution, Run
from mnv2_jax.training.create import check_batch_norm, create_dataset, create_learner, network_of
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.distributed import wait_for_processes, watch_for_preemption
from mnv2_jax.training.finetune import Start, open_trained, with_settings_of
from mnv2_jax.training.log import Log
from mnv2_jax.training.longer import LENGTH, SHORTER, describe_longer, earlier_runs, finished_shorter, read_summary
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.optimizer import create_schedule
from mnv2_jax.training.plots import save_run
from mnv2_jax.training.programs import Member, Programs, trace_programs
from mnv2_jax.training.progress import Reporter
from mnv2_jax.training.step import TrainState
from mnv2_jax.training.trainer import Trainer
from mnv2_jax.wording import counted

TENSORBOARD, TRACE = "tensorboard", "trace"
DATA_FILES = "data_files"
CONTENTS = (CHECKPOINTS, NETWORK, BEST, METRICS, SUMMARY, TENSORBOARD, TRACE, *FIGURES)
FEW_STEPS = 100
"""A run with fewer steps is called a smoke test if it has not learnt much."""


def train_run(
    run: Run,
    execution: Execution,
    folder: Path,
    reporter: Reporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a run, or resume it, and write its files. Returns its summary.

    Raises:
        UserError: for bad input, before anything is written; for a loss that is not finite; for a full disk.
        Preempted: after SIGTERM, once the run is saved.
    """
    with said_in_one_line(folder), watch_for_preemption() as should_stop, contextlib.ExitStack() as held:
        run, dataset, start = prepare(run, execution, reporter)
        settings = {**run.settings(), "data_sha256": dataset.fingerprint()}
        if start is not None:
            settings["weights_sha256"] = tree_digest(start.variables)
        steps = run.training.steps(dataset.train_images)
        shorter = None if overwrite else finished_shorter(run, folder, dataset.train_images)
        noted = (DATA_FILES, SHORTER)
        check_folder(settings, folder, overwrite, "run", noted, LENGTH if shorter else ())
        if jax.process_count() > 1 and ODD.search(str(folder.absolute())):
            raise UserError(
                f"--out {folder}: with several processes, its path must not contain *, ?, [ or \\; choose another folder"
            )
        if (folder / SUMMARY).exists() and not overwrite:
            summary = read_summary(folder, TASKS[run.task].metric)
            if summary["steps"] == steps:
                reporter.say("This run is already finished.")
                return summary
        if execution.profiled[1] > steps:
            raise UserError(f"--profile ends at step {execution.profiled[1]}, but the run has only {steps} steps")
        devices = Devices.create(parallel=execution.parallel)
        devices.check_divides(run.training.batch_size, run.training.accumulation, run.training.mixup)
        for line in (*check_batch_norm(run, dataset, devices.per_run), *run.training.remarks()):
            reporter.say(line)
        # The path of the user's images is for `evaluate`; a digest in the settings shows whether they changed.
        notes: dict[str, Any] = {}
        if run.dataset == FOLDER and run.data_files:
            notes[DATA_FILES] = str(run.data_files.resolve())
        if shorter is not None:
            notes[SHORTER] = [*earlier_runs(folder), shorter]
            reporter.say(describe_longer(run.training, shorter, dataset.train_images))
        if jax.process_index() == 0:
            changes = LENGTH if shorter else ()
            held.enter_context(claim_folder(settings, folder, overwrite, CONTENTS, noted, notes, changes))
        wait_for_processes("folder")
        reporter.say(f"compiling for {counted(devices.mesh.size, 'device')} ({devices.kind})")
        learner = create_learner(run, dataset, devices.per_run)
        programs = trace_programs(learner, dataset, run.training, devices)()
        reporter.say(f"compiled in {programs.compile_seconds:.0f} s")
        made = {**notes, "settings": settings, "command": command, "environment": dict(environment or {})}
        return train_to_the_end(run, execution, folder, programs, dataset, reporter, should_stop, start, made)


def train_to_the_end(
    run, execution, folder, programs: Programs, dataset, reporter, should_stop, start, made: Mapping[str, Any]
) -> dict[str, Any]:
    """Do the remaining steps and write the results. Returns the summary, which includes `made`."""
    best = Best(folder / BEST, network_of(run, dataset))
    trainer = create_trainer(run, execution, folder, programs, dataset, reporter, should_stop, best, start)
    metric = programs.learner.task.metric
    with contextlib.closing(trainer.checkpoints), contextlib.closing(trainer.log):
        reporter.expect(trainer.steps, metric)
        try:
            state = trainer.train()
        except KeyboardInterrupt:
            trainer.checkpoints.wait()
            saved = trainer.checkpoints.steps
            if saved:
                reporter.say(f"interrupted; run the same command to resume from step {saved[0]}")
            else:
                reporter.say("interrupted before anything was saved; run the same command to start over")
            raise
        finally:
            reporter.stop()
        (test,) = trainer.test(state)
    found = {**summarize(run, trainer, state, test, best), **made}
    if earlier := earlier_runs(folder):
        found[SHORTER] = earlier
    if skipped := trainer.skipped():
        reporter.say(f"skipped {counted(len(skipped), 'damaged image')}, the first of which is {skipped[0]}")
    if best.found is not None:
        value = metric.format(best.found["validation"][metric.name])
        reporter.say(f"best on the validation split: {metric.title} {value} at step {best.found['step']}")
    if remark := too_short(trainer.steps, metric, test[metric.name], dataset.num_classes):
        reporter.say(remark)
    finish(run, folder, dataset, state, found)
    return plain(found)


def summarize(run: Run, trainer: Trainer, state: TrainState, test: Mapping[str, float], best: Best) -> dict[str, Any]:
    """Return the results of a run for its summary."""
    return {
        "dataset": run.dataset,
        "steps": trainer.steps,
        "test": dict(test),
        "best": best.found,
        "parameters_sha256": tree_digest(state.params),
        "train_images": trainer.dataset.train_images,
        "skipped_images": trainer.skipped(),
        "compile_seconds": round(trainer.programs.compile_seconds, 2),
        "train_seconds": round(trainer.seconds, 2),
    }


def too_short(steps: int, metric: Metric, value: float, classes: int) -> str | None:
    """Return a remark on a run that ended near chance, or far from perfect after few steps; otherwise None."""
    chance = metric.chance(classes) if metric.chance else None
    if chance is None or not metric.higher_is_better:
        return None
    learnt = (value - chance) / (1 - chance)
    if value - chance >= min(chance, (1 - chance) / 10) and (steps >= FEW_STEPS or learnt >= 0.5):
        return None
    return (
        f"{steps:,} steps are only a smoke test: test {metric.title} {metric.format(value)} (chance: "
        f"{metric.format(chance)}) does not show what the network can learn; increase --epochs"
    )


def prepare(run: Run, execution: Execution, reporter: Reporter) -> tuple[Run, Dataset, Start | None]:
    """Return the run with all settings resolved, its data, and the trained weights it starts from, if any."""
    given: Network | None = None
    if run.weights is not None:
        given, _, said = open_trained(run.weights)
        run = with_settings_of(run, given)
        for line in (*said, *given.notes):
            reporter.say(line)
    dataset = create_dataset(run, execution.on_bad_image, given)
    for line in dataset.said:
        reporter.say(line)
    if given is None:
        return run, dataset, None
    model = network_of(run, dataset).model
    start = Start.of(given, model, dataset.class_names, str(run.weights))
    for line in start.said:
        reporter.say(line)
    return run, dataset, start


def create_trainer(run, execution, folder, programs: Programs, dataset, reporter, should_stop, best, start) -> Trainer:
    """Create the trainer of a group of one run, with its files in the run's folder."""
    member = Member(name_of(run), run.seed)
    # Earlier checkpoints followed another schedule: resuming from one would not reproduce the stopped run.
    oldest = max((earlier["steps"] for earlier in earlier_runs(folder)), default=0)
    steps = run.training.steps(dataset.train_images)
    # All at once, before training: evaluating the schedule later would block on the devices.
    rates = np.broadcast_to(np.asarray(create_schedule(run.training, dataset.train_images)(np.arange(steps))), (steps,))
    return Trainer(
        programs,
        dataset,
        run.training,
        [member],
        Log(folder / METRICS, {(member.arm, member.seed): folder / TENSORBOARD}, reporter),
        RunCheckpoints(folder / CHECKPOINTS, execution.keep, execution.keep_every, oldest=oldest),
        execution,
        should_stop=should_stop,
        on_validation=best,
        start=start,
        rates=rates,
        notes={"network": describe(network_of(run, dataset))},
        trace=folder / TRACE,
    )


def name_of(run: Run) -> str:
    """Return the arm name in the run's records."""
    return run.model.get("name") or "mobilenet_v2"


def finish(run: Run, folder: Path, dataset: Dataset, state: TrainState, found: Mapping[str, Any]) -> None:
    """Write the network, the figure and finally the summary, which marks the run as finished."""
    network = network_of(run, dataset).replace(variables=variables_of(state))
    if jax.process_index() == 0:
        save_network(folder / NETWORK, network)
        save_run(read_records(folder / METRICS, network.task.metric.name), found, folder, network.task.metric)
        write_json(folder / SUMMARY, plain(found))
    wait_for_processes("summary")


@contextlib.contextmanager
def said_in_one_line(folder: Path) -> Iterator[None]:
    """Turn an OSError into a one-line UserError: the user can fix the cause and resume."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}); fix this and run the "
            "same command to resume from the last checkpoint"
        ) from error
