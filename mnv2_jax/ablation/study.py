"""Train a study, or resume it.

A study's folder holds `config.json` (the study's settings), `metrics.jsonl` (every record of every run),
`tensorboard/`, `timings.jsonl` (compile times), `tuning.jsonl` (the learning rates tried), `reused.jsonl` (the runs
taken from other studies), `checkpoints/ARM-SEED` (the trained networks) and `running/` (the state of unfinished runs). `summary.json`, `figure.png`, `figure.svg` and
`report.html` are made from these. A run is finished once its record of the test split exists. Running the same study
again trains only unfinished runs, each from its last saved state.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mnv2_jax.ablation import reuse, tuning
from mnv2_jax.ablation.arms import (
    batch_norm_notes,
    batch_notes,
    check_arms,
    data_of_arm,
    devices_a_run,
    families,
    learner_of,
    network_of_arm,
    trained_network,
)
from mnv2_jax.ablation.design import ARM, Arm, Study, StudyOptions, identity
from mnv2_jax.ablation.report import write_files
from mnv2_jax.ablation.statistics import seeds_needed
from mnv2_jax.ablation.summary import describe, summarize
from mnv2_jax.ablation.tables import arms_table
from mnv2_jax.data.batch import Dataset
from mnv2_jax.data.catalog import FOLDER
from mnv2_jax.environment import core_count, environment
from mnv2_jax.errors import UserError
from mnv2_jax.network import Network, save_network, tree_digest
from mnv2_jax.results import (
    FIGURES,
    METRICS,
    SUMMARY,
    append_line,
    check_folder,
    claim_folder,
    command_line,
    write_json,
)
from mnv2_jax.tasks.task import TASKS, Metric
from mnv2_jax.training.checkpoint import CHECKPOINTS, RunCheckpoints
from mnv2_jax.training.create import create_dataset
from mnv2_jax.training.devices import Devices, group_size, run_groups
from mnv2_jax.training.distributed import wait_for_processes, watch_for_preemption
from mnv2_jax.training.finetune import Start, open_trained, with_settings_of
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import Record, read_records
from mnv2_jax.training.programs import Member, trace_programs
from mnv2_jax.training.progress import Reporter, create_console
from mnv2_jax.training.run import TENSORBOARD, said_in_one_line
from mnv2_jax.training.step import TrainState
from mnv2_jax.training.trainer import Trainer
from mnv2_jax.wording import counted

RUNNING, TIMINGS, REPORT = "running", "timings.jsonl", "report.html"
CONTENTS = (METRICS, TIMINGS, tuning.FILE, reuse.FILE, SUMMARY, *FIGURES, REPORT, CHECKPOINTS, RUNNING, TENSORBOARD)

EXTENDS = (ARM, reuse.RUN)
"""Prefixes of settings that a study's folder may have more of: those of arms that --arms left out."""

SAVE_SECONDS = 60
"""Minimum time between saves of a group's state, in seconds. It is saved at evaluations only."""


# --- The command -----------------------------------------------------------------------------------------


def study_command(options: StudyOptions, study: Study, label: str = "") -> dict[str, Any]:
    """Run a study, write all its files and print its table; returns the summary.

    `label` is appended to the default folder name, for scripts with several studies.

    Raises:
        UserError: for bad input, before anything is written.
    """
    name = "-".join(part for part in (study.experiment, study.dataset, label) if part)
    folder = options.out or Path("runs") / name
    # Otherwise the settings depend on the weights or the images, and `run_study` checks the folder once they are known.
    if study.weights is None and study.dataset != FOLDER and len(study.batch_sizes) == 1:
        check_folder(identity(study), folder, options.overwrite, "study", extends=EXTENDS)
    spread_over_cores()
    console = create_console()
    console.print(f"{study.experiment} on {study.title}", markup=False)
    for arm in study.arms:
        if arm.note:
            console.print(arm.note, markup=False)
    reporter = Reporter(console)
    study, start = with_weights(study, reporter)
    # At the study's resolution even if the baseline has its own: such arms resize these images.
    whole = dataclasses.replace(study.run(study.baseline), resolution=study.resolution)
    dataset = create_dataset(whole, start=start)
    for line in dataset.said:
        reporter.say(line)
    summary, records = run_study(
        study, dataset, folder, reporter, options.overwrite, command_line(), environment(), start, options.reuse
    )
    write_files(summary, records, folder)
    console.print()
    console.print(arms_table(summary))
    needed = seeds_needed(len(summary["comparisons"]))
    if study.seeds < needed:
        console.print(f"Fewer than {needed} seeds cannot reach p < 0.05 here; use --seeds {needed} to add runs.")
    for name in (FIGURES[0], REPORT, SUMMARY, METRICS):
        console.print(str(folder / name), markup=False)
    return summary


def spread_over_cores() -> None:
    """Give JAX one CPU device per core, unless the user set the number, so that each parallel run has its own core.

    A study's steps are so small that one run leaves half of two cores idle. Two in parallel take 1.3 times less time
    per run.
    """
    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not told and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is already initialized
            jax.config.update("jax_num_cpu_devices", core_count())


def with_weights(study: Study, reporter: Reporter) -> tuple[Study, Network | None]:
    """Open the study's trained weights; returns the study with their network in all arms, and the network or None."""
    if study.weights is None:
        return study, None
    start, _, said = open_trained(study.weights)
    for line in (*said, *start.notes):
        reporter.say(line)
    run = with_settings_of(dataclasses.replace(study.run(study.baseline), weights=study.weights), start)
    shared = {name: value for name, value in run.model.items() if name not in study.baseline.model}
    return dataclasses.replace(study, model=shared), start


def run_study(
    study: Study,
    dataset: Dataset,
    folder: Path,
    reporter: Reporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
    start: Network | None = None,
    reused: Sequence[Path] = (),
) -> tuple[dict[str, Any], list[Record]]:
    """Train all unfinished runs and write `summary.json`; returns the summary and all records of its runs.

    Args:
        study, dataset: the study and its images.
        folder: for the study's files.
        reporter: prints progress to the terminal.
        overwrite: replace another study in the folder.
        command, environment: recorded in the summary.
        start: trained network for the arms that start from one.
        reused: folders of studies whose runs are taken over where they are the same.

    Raises:
        UserError: for bad settings or an unusable folder, before anything is written.
        Preempted: after SIGTERM, once the running group is saved.
    """
    if study.seeds < 2:
        raise UserError(f"--seeds must be 2 or more, to show a spread, got {study.seeds}")
    study = study.at_equal_images(dataset.train_images)
    study.training.steps(dataset.train_images)
    check_arms(study, dataset, start)
    notes = batch_notes(study, dataset)
    for line in (*notes, *batch_norm_notes(study, dataset)):
        reporter.say(line)
    # A folder of images is identified by its contents, a named data set by its name.
    data = {"data_sha256": dataset.fingerprint()} if study.dataset == FOLDER else {}
    settings = {**identity(study), **data}
    if start is not None:
        settings["weights_sha256"] = tree_digest(start.variables)
    check_folder(settings, folder, overwrite, "study", extends=EXTENDS)
    reuse.check_sources(reused)
    digests = reuse.run_digests(study, dataset, settings.get("weights_sha256"))
    metric = study_metric(study)
    began = time.perf_counter()
    with said_in_one_line(folder), watch_for_preemption() as should_stop, contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            held.enter_context(claim_folder(settings, folder, overwrite, CONTENTS, EXTENDS, digests))
            for line in reuse.take_runs(study, folder, reused, digests, metric):
                reporter.say(line)
        wait_for_processes("folder")
        try:
            trained = StudyTrainer(study, dataset, folder, reporter, should_stop, start).train()
        finally:
            reporter.stop()
        names = {arm.name for arm in study.arms}
        records = [r for r in read_records(folder / METRICS, metric.name) if r.arm in names and r.seed < study.seeds]
        rates = tuning.best_rates(tuning.read_trials(folder, metric), metric) if study.tune else None
        described = describe(study, dataset, rates, command, environment or {})
        notes = [*described["notes"], *notes, *reuse.reuse_notes(folder)]
        summary = summarize({**described, "notes": notes, **data}, records)
        write_json(folder / SUMMARY, summary)
    reporter.say(f"{counted(trained, 'run')} trained in {time.perf_counter() - began:.0f} s, including compilation.")
    return summary, records


# --- The runs --------------------------------------------------------------------------------------------


class Family:
    """Arms that share a compiled program, with their data, recipe, devices and `pending` runs, (arm, seed) each."""

    def __init__(
        self, owner: "StudyTrainer", study: Study, arms: tuple[Arm, ...], pending: Sequence[tuple[str, int]] = ()
    ):
        self.study, self.arms, self.names, self.owner = study, arms, [arm.name for arm in arms], owner
        self.pending = pending
        whole = owner.dataset
        self.recipe = study.run(next((arm for arm in arms if arm.started), arms[0])).training
        self.dataset = data_of_arm(study, arms[0], whole, owner.start)
        alone = devices_a_run(self.recipe, self.dataset) > 1
        self._size = 1 if alone else group_size(len(arms) * study.seeds, jax.device_count())
        self._devices = Devices.create(self._size, None if alone else 1)

    def member(self, arm: str, seed: int, rate: float = 1.0) -> Member:
        """Return a run of an arm."""
        index = self.names.index(arm)
        return Member(arm, seed, rate, index, self.arms[index].started)

    def groups(self, members: Sequence[Member]) -> list[tuple[Member, ...]]:
        """Split runs into groups that train side by side."""
        return run_groups(members, self._size)

    def steps(self, members: Sequence[Member]) -> int:
        """Return the number of steps of these runs, in groups."""
        return len(self.groups(members)) * self.recipe.steps(self.dataset.train_images)

    def compile(self) -> Callable[[], None]:
        """Start compiling the family's programs; returns a function that waits for them. Call both before `train`."""
        self.owner.reporter.describe(f"{', '.join(self.names)}: compiling")
        learner = learner_of(self.study, self.arms, self.dataset, self._devices.per_run)
        finish = trace_programs(learner, self.dataset, self.recipe, self._devices)

        def wait() -> None:
            self._programs = finish()
            seconds = self._programs.compile_seconds
            self.owner.reporter.say(f"{', '.join(self.names)}: compiled in {seconds:.0f} s")
            line = {"arms": self.names, "compile_seconds": round(seconds, 3)}
            append_line(self.owner.folder / TIMINGS, line)

        return wait

    @functools.cached_property
    def _start(self) -> Start | None:
        if self.owner.start is None or not any(arm.started for arm in self.arms):
            return None
        model = network_of_arm(self.study, self.arms[0], self.dataset)
        start = Start.of(self.owner.start, model, self.dataset.class_names, str(self.study.weights))
        for line in start.said:
            self.owner.reporter.say(line)
        return start

    def train(self, group: Sequence[Member], final: bool = True) -> list[Record]:
        """Train runs side by side for their whole budget; returns their records.

        Final runs are tested, and their records and networks are kept. The others are for choosing learning rates.
        """
        owner = self.owner
        key = hashlib.sha256(json.dumps([self.names, group]).encode()).hexdigest()[:16]
        running = owner.folder / RUNNING / key
        running.mkdir(parents=True, exist_ok=True)
        metrics = owner.folder / METRICS if final else running / METRICS
        board = owner.folder / TENSORBOARD
        runs = {(run.arm, run.seed): board / f"{run.arm}-{run.seed}" if final else None for run in group}
        log = Log(metrics, runs, owner.reporter)
        checkpoints = RunCheckpoints(running / "state", keep=1, disposable=True)
        with contextlib.closing(checkpoints), contextlib.closing(log):
            trainer = Trainer(
                self._programs,
                self.dataset,
                self.recipe,
                group,
                log,
                checkpoints,
                should_stop=owner.should_stop,
                start=self._start,
                save_seconds=SAVE_SECONDS,
            )
            try:
                state = trainer.train()
            finally:
                owner.reporter.end()
            if final:
                self._save(group, state)
                trainer.test(state)
        shutil.rmtree(running)
        return log.records

    def _save(self, group: Sequence[Member], state: TrainState) -> None:
        # With several processes, each holds a full copy of the run that they train.
        whole = lambda leaf: leaf if leaf.is_fully_addressable else leaf.addressable_data(0)  # noqa: E731
        variables = jax.device_get(jax.tree.map(whole, state.variables(averaged=True)))
        for index, member in enumerate(group):
            if member in group[:index] or jax.process_index() != 0:
                continue
            own = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
            network = trained_network(self.study, self.arms[self.names.index(member.arm)], self.dataset, own)
            save_network(self.owner.folder / CHECKPOINTS / f"{member.arm}-{member.seed}", network)


class StudyTrainer:
    """Trains a study's unfinished runs, family by family."""

    def __init__(
        self,
        study: Study,
        dataset: Dataset,
        folder: Path,
        reporter: Reporter,
        should_stop: Callable[[int], bool] = lambda step: False,
        start: Network | None = None,
    ):
        self.study, self.dataset, self.folder, self.reporter = study, dataset, folder, reporter
        self.should_stop, self.start = should_stop, start

    def train(self) -> int:
        """Train all unfinished runs; returns their number. Each record is on disk before the next is made."""
        study, reporter = self.study, self.reporter
        records = read_records(self.folder / METRICS, study_metric(study).name)
        finished = {(r.arm, r.seed) for r in records if r.split == "test"}
        metric = study_metric(study)
        plan, trials = [], []
        tried = tuning.read_trials(self.folder, metric) if study.tune else []
        steps = count = 0
        for arms in families(study):
            # Seed by seed, so that runs that are compared train side by side.
            runs = [(arm.name, seed) for seed in range(study.seeds) for arm in arms]
            pending = [run for run in runs if run not in finished]
            if not pending:
                continue
            plan.append(Family(self, study, arms, pending))
            count += len(pending)
            steps += plan[-1].steps([plan[-1].member(*run) for run in pending])
            if study.tune:
                trial = Family(self, tuning.shortened(study, self.dataset.train_images), arms)
                if left := tuning.pending(trial, tried, metric):
                    trials.append(trial)
                    steps += trial.steps(left)
        wanted = len(study.arms) * study.seeds
        if count < wanted:
            reporter.say(f"{wanted - count} of {counted(wanted, 'run')} are already finished.")
        reporter.expect(steps, metric, several=True)
        for family in compiled(trials):
            tuning.tune(family, tried, self.folder / tuning.FILE, metric)
        best = tuning.best_rates(tried, metric)
        for family in compiled(plan):
            for group in family.groups([family.member(*run, best.get(run[0], 1.0)) for run in family.pending]):
                family.train(group)
        shutil.rmtree(self.folder / RUNNING, ignore_errors=True)
        return count


def compiled(families: list[Family]) -> Iterator[Family]:
    """Yield the families with their programs compiled, and empty the list, so that each can be freed after its turn."""
    while families:
        # Several at a time, since each compilation keeps only one core busy.
        together, families[:] = families[: core_count()], families[core_count() :]
        for wait in [family.compile() for family in together]:
            wait()
        while together:
            yield together.pop(0)


def study_metric(study: Study) -> Metric:
    """Return the metric that decides a study: its task's."""
    return TASKS[study.run(study.baseline).task].metric
