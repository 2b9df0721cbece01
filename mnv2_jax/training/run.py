"""One run and its folder: a group of one, trained and summarised.

A run's folder holds `config.json` (what is asked for), `metrics.jsonl` and `tensorboard/` (what was logged),
`checkpoints/STEP` (where to continue), and at the end `summary.json`, `figure.png` and `network/`, which `load_weights`
reads. The same run started again continues from its newest checkpoint, to the same bits.
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
from mnv2_jax.results import FIGURES, METRICS, SUMMARY, check_folder, claim_folder, plain, read_json, write_json
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.checkpoint import CHECKPOINTS, NETWORK, RunCheckpoints
from mnv2_jax.training.config import Execution, Run
from mnv2_jax.training.create import check_batch_norm, create_dataset, create_learner, network_of
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.distributed import wait_for_processes, watch_for_preemption
from mnv2_jax.training.finetune import Start, open_trained, with_settings_of
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.optimizer import create_schedule
from mnv2_jax.training.plots import save_run
from mnv2_jax.training.progress import Reporter
from mnv2_jax.training.step import TrainState
from mnv2_jax.training.trainer import Member, Programs, Trainer, trace_programs
from mnv2_jax.wording import counted

TENSORBOARD, TRACE = "tensorboard", "trace"
DATA_FILES = "data_files"
CONTENTS = (CHECKPOINTS, NETWORK, METRICS, SUMMARY, TENSORBOARD, TRACE, *FIGURES)


def train_run(
    run: Run,
    execution: Execution,
    folder: Path,
    reporter: Reporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train what is missing of a run and write its files; returns its summary.

    Raises:
        UserError: for bad input, before anything is written; for a loss that is no number; for a full disk.
        Preempted: after SIGTERM, when the run is saved.
    """
    with said_in_one_line(folder), watch_for_preemption() as should_stop, contextlib.ExitStack() as held:
        run, dataset, start = prepare(run, execution, reporter)
        settings = {**run.settings(), "data_sha256": dataset.fingerprint()}
        if start is not None:
            settings["weights_sha256"] = tree_digest(start.variables)
        # Where one's own images lie is for `evaluate`; that they are the same, their digest says.
        where = {DATA_FILES: str(run.data_files.resolve())} if run.dataset == FOLDER and run.data_files else {}
        check_folder(settings, folder, overwrite, "run", extends=DATA_FILES)
        if jax.process_count() > 1 and ODD.search(str(folder.absolute())):
            raise UserError(f"--out {folder}: several processes take no name with *, ?, [ or \\; name another folder")
        if (folder / SUMMARY).exists() and not overwrite:
            reporter.say("This run was finished before.")
            tested = {"loss": float, TASKS[run.task].metric.name: float, str: float}
            again = "remove it, and the same command makes it again"
            return read_json(folder / SUMMARY, {"test": tested}, again)
        steps = run.training.steps(dataset.train_images)
        if execution.profiled[1] > steps:
            raise UserError(f"--profile ends at step {execution.profiled[1]}, and the run has {steps}")
        devices = Devices.create(parallel=execution.parallel)
        devices.check_divides(run.training.batch_size, run.training.accumulation)
        for line in check_batch_norm(run, dataset, devices.per_run):
            reporter.say(line)
        if jax.process_index() == 0:
            held.enter_context(claim_folder(settings, folder, overwrite, CONTENTS, DATA_FILES, where))
        wait_for_processes("folder")
        reporter.say(f"compiling for {counted(devices.mesh.size, 'device')} ({devices.kind})")
        learner = create_learner(run, dataset, devices.per_run)
        programs = trace_programs(learner, dataset, run.training, devices)()
        reporter.say(f"compiled in {programs.compile_seconds:.0f} s")

        trainer = create_trainer(run, execution, folder, programs, dataset, reporter, should_stop, start)
        with contextlib.closing(trainer.checkpoints), contextlib.closing(trainer.log):
            reporter.expect(steps, learner.task.metric)
            try:
                state = trainer.train()
            finally:
                reporter.stop()
            (test,) = trainer.test(state)
        found: dict[str, Any] = {
            **summarize(run, trainer, state, test),
            "settings": settings,
            "command": command,
            "environment": dict(environment or {}),
        }
        if skipped := trainer.skipped():
            reporter.say(f"{counted(len(skipped), 'damaged image')} skipped, the first of them: {skipped[0]}")
        finish(run, folder, dataset, state, found)
    return plain(found)


def summarize(run: Run, trainer: Trainer, state: TrainState, test: Mapping[str, float]) -> dict[str, Any]:
    """What came out of a run, for its summary."""
    return {
        "dataset": run.dataset,
        "steps": trainer.steps,
        "test": dict(test),
        "parameters_sha256": tree_digest(state.params),
        "train_images": trainer.dataset.train_images,
        "skipped_images": trainer.skipped(),
        "compile_seconds": round(trainer.programs.compile_seconds, 2),
        "train_seconds": round(trainer.seconds, 2),
    }


def prepare(run: Run, execution: Execution, reporter: Reporter) -> tuple[Run, Dataset, Start | None]:
    """(the run as it is trained, its data, what it starts from)."""
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


def create_trainer(run, execution, folder, programs: Programs, dataset, reporter, should_stop, start) -> Trainer:
    """The trainer of a group of one, which keeps its files in the run's folder."""
    member = Member(name_of(run), run.seed)
    steps = run.training.steps(dataset.train_images)
    # All of them at once: asking the schedule while the devices work would wait for them.
    rates = np.broadcast_to(np.asarray(create_schedule(run.training, dataset.train_images)(np.arange(steps))), (steps,))
    return Trainer(
        programs,
        dataset,
        run.training,
        [member],
        Log(folder / METRICS, {(member.arm, member.seed): folder / TENSORBOARD}, reporter),
        RunCheckpoints(folder / CHECKPOINTS, execution.keep, execution.keep_every),
        execution,
        should_stop=should_stop,
        start=start,
        rates=rates,
        notes={"network": describe(network_of(run, dataset))},
        trace=folder / TRACE,
    )


def name_of(run: Run) -> str:
    """What the run's records are called."""
    return run.model.get("name") or "mobilenet_v2"


def finish(run: Run, folder: Path, dataset: Dataset, state: TrainState, found: Mapping[str, Any]) -> None:
    """Write network, figure, and last the summary, by which a run is known to be finished."""
    variables = jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], state.variables(averaged=True))
    network = network_of(run, dataset).replace(variables=variables)
    if jax.process_index() == 0:
        save_network(folder / NETWORK, network)
        title = f"{name_of(run)} on {run.dataset}"
        save_run(read_records(folder / METRICS, network.task.metric.name), title, folder, network.task.metric)
        write_json(folder / SUMMARY, plain(found))
    wait_for_processes("summary")


@contextlib.contextmanager
def said_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever cannot be written of a run, the user can mend, and continue."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}); mend that, and the same "
            "command continues from the last checkpoint"
        ) from error
