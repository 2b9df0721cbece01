"""Trains a study, and goes on where it was stopped.

A study's folder holds `config.json` (what is asked), `metrics.jsonl` (every record of every run), `timings.jsonl` (how
long programs took to compile), `tuning.jsonl` (what learning rates were tried), `checkpoints/ARM-SEED` (the trained
networks), `running` (the state of runs that are not at their end), and what is made from these alone: `summary.json`,
`figure.png`, `figure.svg` and `report.html`. A run is finished when its record of the test split is there; the same
study started again trains only what is not finished, and an unfinished run goes on from its last saved state.
"""

import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax

from mnv2_jax.ablation.design import ARM, Arm, Run, Study, identity
from mnv2_jax.ablation.progress import Reporter
from mnv2_jax.ablation.study import create_learner, families, trained_weights
from mnv2_jax.ablation.summary import describe, summarize
from mnv2_jax.data.resident import Dataset
from mnv2_jax.environment import core_count
from mnv2_jax.errors import Diverged, UserError
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.folder import check_folder, claim_folder
from mnv2_jax.training.loop import (
    Logged,
    Programs,
    evaluate,
    evaluation_size,
    evaluation_steps,
    log_interval,
    trace_programs,
    train,
)
from mnv2_jax.training.metrics import (
    Record,
    append_line,
    from_line,
    read_lines,
    read_records,
    to_line,
    write_atomically,
    write_records,
)
from mnv2_jax.training.parallel import create_mesh, group_size, run_groups
from mnv2_jax.training.step import TrainState
from mnv2_jax.weights.load import save_weights

CHECKPOINTS, RUNNING = "checkpoints", "running"
CONTENTS = (
    "metrics.jsonl",
    "timings.jsonl",
    "tuning.jsonl",
    "summary.json",
    "figure.png",
    "figure.svg",
    "report.html",
    CHECKPOINTS,
    RUNNING,
)

SAVE_SECONDS = 60
"""A run's state is saved where it is evaluated, when the last time was longer ago than this."""
RATES = (0.5, 1.0, 2.0)
"""Factors of the study's learning rate that are tried for each arm when it is tuned."""
TUNING_SEEDS = (1000, 1001)
"""Of the runs that the learning rates are compared with, none of the study's own."""


def check_study(study: Study, folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else than this study, smaller perhaps. Writes nothing.

    Raises:
        UserError: says what differs.
    """
    check_folder(identity(study), folder, overwrite, "study", extends=ARM)


def open_folder(study: Study, folder: Path, overwrite: bool) -> list[Record]:
    """Make the folder the study's and return the records of its finished runs, of arms that are not asked for as well.

    Raises:
        UserError: if it cannot be written, or holds something else.
    """
    check_study(study, folder, overwrite)
    claim_folder(identity(study), folder, overwrite, CONTENTS, extends=ARM)
    records = read_records(folder / "metrics.jsonl")
    finished = {(record.arm, record.seed) for record in records if record.split == "test"}
    records = [record for record in records if (record.arm, record.seed) in finished]
    write_records(folder / "metrics.jsonl", records)
    return records


class Family:
    """Arms that share a program, and what it takes to train them."""

    def __init__(self, study: Study, arms: tuple[Arm, ...], dataset: Dataset, folder: Path, reporter: Reporter):
        self.arms, self.names = arms, [arm.name for arm in arms]
        self._study, self._folder, self._reporter, self._whole = study, folder, reporter, dataset
        self._size = group_size(len(arms) * study.seeds, jax.device_count())

    def groups(self, runs: Sequence[Run]) -> list[tuple[Run, ...]]:
        """The runs, as many together as are trained side by side."""
        return run_groups(runs, self._size)

    def train(self, group: Sequence[Run], final: bool = True) -> Iterator[Record]:
        """Train runs side by side to the end of their budget; see `train_group`."""
        programs = self._programs
        self._reporter.run(group)
        choices = [self.names.index(run.arm) for run in group] if len(self.arms) > 1 else None
        rates = [run.rate for run in group] if self._study.tune else None
        state = State(self._folder / RUNNING, self.names, group)
        save = self._save if final else None
        config = self._study.training
        yield from train_group(programs, group, choices, rates, self._dataset, config, self._reporter, state, save)
        state.remove()
        self._reporter.run_ended()

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return self._whole.at(self.arms[0].resolution or self._whole.image_shape[0])

    def compile(self) -> Callable[[], None]:
        """Begin to compile what the family needs; what this returns, waits for it. To be done before it is trained."""
        self._reporter.compiling(self.names)
        learner = create_learner(self._study, self.arms, self._dataset)
        finish = trace_programs(learner, self._dataset, self._study.training, create_mesh(self._size, 1))

        def wait() -> None:
            self._programs = finish()
            seconds = self._programs.compile_seconds
            self._reporter.compiled(self.names, seconds)
            append_line(self._folder / "timings.jsonl", {"arms": self.names, "compile_seconds": round(seconds, 3)})

        return wait

    def _save(self, group: Sequence[Run], state: TrainState) -> None:
        variables = jax.device_get(state.variables())
        for index, run in enumerate(group):
            if run in group[:index]:
                continue
            own = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
            weights = trained_weights(self._study, self.arms[self.names.index(run.arm)], self._dataset, own)
            save_weights(self._folder / CHECKPOINTS / f"{run.arm}-{run.seed}", weights)


def compile_families(families: Sequence[Family]) -> None:
    """Compile what they need side by side, since each keeps but one core busy."""
    for wait in [family.compile() for family in families]:
        wait()


def train_study(
    study: Study, dataset: Dataset, folder: Path, finished: list[Record], reporter: Reporter
) -> list[Record]:
    """Train what is not finished, family by family; every record is on disk before the next is made."""
    records = list(finished)
    done = {(record.arm, record.seed) for record in finished}
    tried = read_lines(folder / "tuning.jsonl") if study.tune else []
    plan = []
    for arms in families(study):
        # Seed by seed, so that what is compared is trained side by side.
        runs = [Run(arm.name, seed) for seed in range(study.seeds) for arm in arms]
        pending = [run for run in runs if (run.arm, run.seed) not in done]
        if pending:
            plan.append((Family(study, arms, dataset, folder, reporter), pending))
    count = sum(len(family.groups(pending)) for family, pending in plan)
    if study.tune:
        count += sum(len(family.groups(pending_trials(family.arms, tried))) for family, _ in plan)
    steps = study.training.steps(dataset.train_images)
    reporter.start(steps, count, sum(len(pending) for _, pending in plan), len(study.arms) * study.seeds)
    with (folder / "metrics.jsonl").open("a") as file:
        while plan:
            together, plan = plan[: core_count()], plan[core_count() :]
            compile_families([family for family, _ in together])
            while together:
                # Gone after its turn, with its programs and images.
                family, pending = together.pop(0)
                while study.tune and (trials := pending_trials(family.arms, tried)):
                    for trial in try_rates(family, family.groups(trials)[0]):
                        append_line(folder / "tuning.jsonl", trial)
                        tried.append(trial)
                        rate = f"learning rate {trial['rate'] * study.training.learning_rate:g}"
                        said = f"validation accuracy {trial['accuracy']:.1%}" if trial["accuracy"] else "diverged"
                        reporter.say(f"{trial['arm']} at {rate}, seed {trial['seed']}: {said}")
                best = best_rates(tried)
                for group in family.groups([run._replace(rate=best.get(run.arm, 1.0)) for run in pending]):
                    for record in family.train(group):
                        file.write(to_line(record))
                        file.flush()
                        records.append(record)
                        reporter.record(record)
    shutil.rmtree(folder / RUNNING, ignore_errors=True)
    return records


def try_rates(family: Family, group: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """How runs at some learning rates end on the validation split; of runs that diverge, only that they do."""
    runs = list(dict.fromkeys(group))
    try:
        validation = [record for record in family.train(group, final=False) if record.split == "validation"]
    except Diverged as error:
        for run in dict.fromkeys(group[index] for index in error.runs):
            yield {**run._asdict(), "accuracy": 0.0, "loss": None}
        return
    for run, record in zip(runs, validation[-len(runs) :], strict=True):
        yield {**run._asdict(), "accuracy": record.metrics["accuracy"], "loss": record.metrics["loss"]}


def pending_trials(arms: Sequence[Arm], tried: Sequence[Mapping[str, Any]]) -> list[Run]:
    """The runs that are still to be made to choose the arms' learning rates."""
    known = {(trial["arm"], trial["seed"], trial["rate"]) for trial in tried}
    trials = [Run(arm.name, seed, rate) for rate in RATES for arm in arms for seed in TUNING_SEEDS]
    return [trial for trial in trials if tuple(trial) not in known]


def best_rates(tried: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each arm the factor with the highest mean validation accuracy; of equals, the one with the lower loss."""
    scores: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for trial in tried:
        of_arm = scores.setdefault(trial["arm"], {})
        loss = math.inf if trial["loss"] is None else trial["loss"]
        of_arm.setdefault(trial["rate"], []).append((trial["accuracy"], -loss))

    def mean_score(trials: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return fmean(accuracy for accuracy, _ in trials), fmean(loss for _, loss in trials)

    return {
        arm: max(rates, key=lambda rate, rates=rates: mean_score(rates[rate]))  # type: ignore[misc]
        for arm, rates in scores.items()
    }


def train_group(
    programs: Programs,
    runs: Sequence[Run],
    choices: Sequence[int] | None,
    rates: Sequence[float] | None,
    dataset: Dataset,
    config: TrainConfig,
    reporter: Reporter,
    running: "State",
    on_end: Callable[[Sequence[Run], TrainState], None] | None = None,
) -> Iterator[Record]:
    """Train one group of runs to the end of their budget and yield their records as they come.

    Args:
        programs: of the family's network.
        runs: one for each place of the programs' mesh; a run that fills up the mesh may come twice.
        choices: the number of each run's arm in a family of several.
        rates: each run's factor of the learning rate, where they have one.
        dataset: its test split is read once, at the end.
        config: the runs' settings.
        reporter: told of every logged interval.
        running: the state between, from which the same runs go on.
        on_end: called with the last states, before the records of the test split; without it, there are none.

    Raises:
        Diverged: when the loss is no longer a number.
    """
    steps = config.steps(dataset.train_images)
    stops = evaluation_steps(steps, config.evaluations)
    start = programs.start([run.seed for run in runs], choices, rates)
    jax.block_until_ready(start)
    saved = running.restore(start, reporter)
    state, first, before = (saved.state, saved.step, saved.seconds) if saved else (start, 0, 0.0)
    records: list[Record] = []
    began = last_save = time.perf_counter()
    if saved:
        records = saved.records
        yield from records

    def measured(split: str, step: int, each: list[dict[str, float]], speed: float | None = None) -> Iterator[Record]:
        seconds = before + time.perf_counter() - began
        for run, metrics in dict(zip(runs, each, strict=True)).items():
            metrics = dict(metrics)
            record = Record(run.arm, run.seed, step, split, seconds, metrics, int(metrics.pop("examples")), speed)
            records.append(record)
            yield record

    for event in train(programs, state, 0, range(first, steps), log_interval(steps), stops):
        if isinstance(event, Logged):
            reporter.step(event)
            yield from measured("train", event.step, event.metrics, event.examples_per_second)
            continue
        state = event.state
        if event.step in stops:
            validation = evaluate(programs, state, dataset.evaluation("validation", evaluation_size(programs.mesh)))
            yield from measured("validation", event.step, validation)
        if event.step < steps and time.perf_counter() - last_save > SAVE_SECONDS:
            running.save(state, event.step, before + time.perf_counter() - began, records)
            last_save = time.perf_counter()
    if on_end is not None:
        on_end(runs, state)
        test = evaluate(programs, state, dataset.evaluation("test", evaluation_size(programs.mesh)))
        yield from measured("test", steps, test)


class Saved(NamedTuple):
    """Where a group of runs was when it was saved."""

    state: TrainState
    step: int
    seconds: float
    records: list[Record]


class State:
    """The state of a group of runs that is not at its end, on disk.

    Args:
        folder: for one group at a time.
        names: of the family's arms, among which a run's choice is a number.
        runs: the group.
    """

    def __init__(self, folder: Path, names: Sequence[str], runs: Sequence[Run]):
        self._folder, self._owner = folder, folder / "runs.json"
        self._mine = json.dumps({"arms": list(names), "runs": runs})

    def _is_mine(self) -> bool:
        return self._owner.exists() and self._owner.read_text() == self._mine

    def save(self, state: TrainState, step: int, seconds: float, records: Sequence[Record]) -> None:
        """Save in place of what was saved before, whole or not at all."""
        if not self._is_mine():
            self.remove()
            self._folder.mkdir(parents=True)
            write_atomically(self._owner, self._mine)
        checkpoints = RunCheckpoints(self._folder / "state", keep=1)
        try:
            notes = {"step": step, "seconds": seconds, "records": [to_line(record) for record in records]}
            checkpoints.save(state, step, notes)
        finally:
            checkpoints.close()

    def restore(self, like: TrainState, reporter: Reporter) -> Saved | None:
        """What was saved of these runs; what was saved of others, or cannot be read, is removed."""
        if not self._is_mine():
            self.remove()
            return None
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        checkpoints = RunCheckpoints(self._folder / "state", keep=1)
        try:
            saved = checkpoints.restore(shapes)
        except UserError as error:
            reporter.say(f"{error}; these runs begin anew")
            saved = None
        finally:
            checkpoints.close()
        if saved is None:
            self.remove()
            return None
        notes = saved.notes
        reporter.resumed(notes["step"])
        return Saved(saved.state, notes["step"], notes["seconds"], [from_line(line) for line in notes["records"]])

    def remove(self) -> None:
        """Nothing is saved any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


def run_study(
    study: Study,
    dataset: Dataset,
    folder: Path,
    reporter: Reporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Record]]:
    """Train what is missing and write `summary.json`; returns the summary and all records of its runs.

    Raises:
        UserError: for bad settings or a folder that cannot be used; nothing is written then.
    """
    if study.seeds < 2:
        raise UserError(f"--seeds must be 2 or more, for a spread to be seen, got {study.seeds}")
    study.training.steps(dataset.train_images)
    finished = open_folder(study, folder, overwrite)
    began = time.perf_counter()
    try:
        records = train_study(study, dataset, folder, finished, reporter)
    finally:
        reporter.stop()
    names = {arm.name for arm in study.arms}
    records = [record for record in records if record.arm in names and record.seed < study.seeds]
    tried = read_lines(folder / "tuning.jsonl") if study.tune else []
    described = describe(study, dataset, best_rates(tried) if study.tune else None, command, environment or {})
    summary = summarize(described, records)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    reporter.say(f"{reporter.trained} runs trained in {time.perf_counter() - began:.0f} s, compilation included.")
    return summary, records
