"""Trains a group of runs: compiled once, resumed, stepped, evaluated, logged and saved. The only loop.

`train` is a group of one, a study is several groups. The runs of a group are side by side on a mesh of seeds x data;
they share a program and differ in their seeds, and perhaps in an activation, a learning rate, or what they start from.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mnv2_jax.data.batch import Batch, Dataset, TrainData
from mnv2_jax.errors import Diverged, Preempted, UserError
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.config import Execution, Recipe, evaluation_steps, log_interval
from mnv2_jax.training.devices import DATA, REPLICATED, SEED, Devices, Program
from mnv2_jax.training.evaluation import (
    describe_evaluation,
    evaluate,
    evaluation_shapes,
    evaluation_size,
    fetch,
    metrics_of,
    stacked_zeros,
)
from mnv2_jax.training.finetune import Start
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import Record
from mnv2_jax.training.step import Learner, TrainState, device_index, init_state, train_step

STREAM_AHEAD = 3
"""Steps that are given to the devices before the oldest is waited for, where each brings a batch of its own."""

FINITE = "finite_steps"
"""Beside the task's sums: how many steps had a finite loss. The first that had none spoils all behind it."""


class Member(NamedTuple):
    """One run of a group: what its records are called, and in what it differs from the others.

    Attributes:
        arm, seed: the run's name in records.
        rate: factor of the learning rate, where the learner has them.
        choice: number of its activation among the learner's.
        started: whether it starts from the group's trained weights, where there are any.
    """

    arm: str
    seed: int
    rate: float = 1.0
    choice: int = 0
    started: bool = True


# --- Programs --------------------------------------------------------------------------------------------


def describe_programs(
    learner: Learner, dataset: Dataset, recipe: Recipe, devices: Devices, evaluation_images: int | None = None
) -> dict[str, Program]:
    """All that runs of a network need: "init", "train" and "evaluate".

    `evaluation_images` are those of a batch of evaluation, `evaluation_size(devices)` if not given.

    Raises:
        UserError: if the batch does not divide by the devices.
    """
    data = dataset.train_data(recipe.batch_size, recipe.accumulation)
    value_spec = REPLICATED if data.shared else DATA
    devices.check_divides(recipe.batch_size, recipe.accumulation, recipe.mixup)

    def init(run):
        return init_state(run["seed"], learner, dataset.image_shape, run.get("choice"), run.get("rate"))

    def train(state, totals, value):
        index = device_index(recipe.batch_size, recipe.accumulation)
        batch = data.batch(value, state.seed, state.step, index)
        state, sums = train_step(state, batch, learner)
        sums[FINITE] = jnp.isfinite(sums["loss"]).astype(jnp.float32)
        # The last is returned so that the host can block on it: state and totals are donated to the next step.
        return state, jax.tree.map(jnp.add, totals, sums), sums["examples"]

    runs, shape = devices.runs, jax.ShapeDtypeStruct
    run = {"seed": shape((), jnp.int32)}
    if learner.activations:
        run["choice"] = shape((), jnp.int32)
    if learner.rated:
        run["rate"] = shape((), jnp.float32)

    def of_all_runs(tree):
        return jax.tree.map(lambda leaf: shape((runs, *leaf.shape), leaf.dtype), tree)

    state = of_all_runs(jax.eval_shape(init, run))
    totals = of_all_runs({**learner.task.zeros(), FINITE: np.zeros((), np.float32)})
    value = devices.shapes(data.shapes(), value_spec)
    batch = devices.shapes(evaluation_shapes(dataset, evaluation_images or evaluation_size(devices)), DATA)
    return {
        "init": Program(init, [SEED], [of_all_runs(run)], once=True),
        # State and totals are donated: their memory becomes the next ones'.
        "train": Program(train, [SEED, SEED, value_spec], [state, totals, value], [0, 1]),
        "evaluate": describe_evaluation(learner, state, batch, devices),
    }


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one network, each for all runs and devices of a group."""

    init: Callable[[dict[str, jax.Array]], TrainState]
    train: Callable[[TrainState, Any, Any], tuple[TrainState, Any, jax.Array]]
    evaluate: Callable[[TrainState, Any, Batch], Any]
    learner: Learner
    data: TrainData
    devices: Devices
    batch_size: int
    compile_seconds: float

    def start(self, members: Sequence[Member]) -> TrainState:
        """The states before the first step, initialised by their seeds."""
        runs = {"seed": np.asarray([member.seed for member in members], np.int32)}
        if self.learner.activations:
            runs["choice"] = np.asarray([member.choice for member in members], np.int32)
        if self.learner.rated:
            runs["rate"] = np.asarray([member.rate for member in members], np.float32)
        return self.init(self.devices.put(runs, SEED))

    def no_totals(self) -> Any:
        """Totals to add to, each of which can be used once."""
        finite = {FINITE: np.zeros(self.devices.runs, np.float32)}
        return self.devices.put({**stacked_zeros(self.learner.task, self.devices), **finite}, SEED)


def trace_programs(learner: Learner, dataset: Dataset, recipe: Recipe, devices: Devices) -> Callable[[], Programs]:
    """Trace all that runs of a network need, and begin to compile it; what this returns waits for that.

    XLA lets go of the interpreter while it compiles, on one core: meanwhile another can trace the next program.

    Raises:
        UserError: if the batch does not divide by the devices.
    """
    began = time.perf_counter()
    described = describe_programs(learner, dataset, recipe, devices)

    def timed(finish: Callable[[], Callable]) -> tuple[Callable, float]:
        return finish(), time.perf_counter()

    threads = ThreadPoolExecutor(len(described))
    pending = {name: threads.submit(timed, devices.trace(program)) for name, program in described.items()}
    threads.shutdown(wait=False)

    def finish() -> Programs:
        compiled = {name: each.result() for name, each in pending.items()}
        return Programs(
            **{name: program for name, (program, _) in compiled.items()},
            learner=learner,
            data=dataset.train_data(recipe.batch_size, recipe.accumulation),
            devices=devices,
            batch_size=recipe.batch_size,
            compile_seconds=max(ended for _, ended in compiled.values()) - began,
        )

    return finish


# --- The loop --------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Totals of the steps behind `first`, up to `last`; still on the devices."""

    first: int
    last: int
    totals: Any


class Trainer:
    """A group of runs, from resume to its last step.

    Args:
        programs: of the runs' network.
        dataset: their data.
        recipe: how they are trained.
        members: the runs, one for each seed of the mesh; one that fills up the mesh may come twice.
        log: where records go.
        checkpoints: where the state is kept.
        execution: how often to log and to save.
        should_stop: asked after every step whether to save and stop.
        start: trained weights of the members that start from some.
        save_seconds: save no more often than this; then not at the last step, after which there are results.
        rates: learning rate of each step, for the log; None to leave it out.
        notes, trace: kept with every checkpoint; folder for a profiler's trace.
    """

    def __init__(
        self,
        programs: Programs,
        dataset: Dataset,
        recipe: Recipe,
        members: Sequence[Member],
        log: Log,
        checkpoints: RunCheckpoints,
        execution: Execution = Execution(),  # noqa: B008 (frozen)
        *,
        should_stop: Callable[[int], bool] = lambda step: False,
        start: Start | None = None,
        save_seconds: float = 0.0,
        rates: np.ndarray | None = None,
        notes: dict[str, Any] | None = None,
        trace: Path | None = None,
    ):
        self.programs, self.dataset, self.members, self.log = programs, dataset, tuple(members), log
        self.checkpoints = checkpoints
        self._should_stop, self._start = should_stop, start
        self._rates, self._notes, self._trace = rates, notes or {}, trace
        self.steps = recipe.steps(dataset.train_images)
        self._log_every = execution.log_every or log_interval(self.steps)
        self._evaluations = evaluation_steps(self.steps, recipe.evaluations)
        self._saves, every = self._evaluations, execution.checkpoint_every
        if every is not None:
            self._saves = frozenset(range(every, self.steps + 1, every)) | {self.steps}
        if save_seconds:
            self._saves -= {self.steps}
        self._save_seconds, self._tracing = save_seconds, contextlib.ExitStack()
        self._first_traced, self._last_traced = execution.profiled
        self._pending: list[Interval] = []
        self._seconds_before, self._began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the runs began, over all their resumes."""
        return self._seconds_before + time.perf_counter() - self._began

    def train(self) -> TrainState:
        """Do the steps that are missing, and return the states behind the last.

        The devices are never waited for inside of a logging interval: what an interval measured is fetched when the next
        one has been given to the devices, or where the training pauses to evaluate or to save.

        Raises:
            Diverged: when the loss of a run is no longer a finite number.
            Preempted: after SIGTERM, when the state is saved.
        """
        state, done, position = self._resume()
        programs, data, devices = self.programs, self.programs.data, self.programs.devices
        pauses = self._evaluations | self._saves | {self.steps, self._first_traced - 1, self._last_traced}
        values = data.values(self.members[0].seed, done, position)
        on_device: Any = None
        in_flight: collections.deque[jax.Array] = collections.deque()
        totals, first = programs.no_totals(), done
        self._clock = self._last_save = time.perf_counter()
        with self._tracing:
            self._trace_if(done + 1 == self._first_traced)
            for step in range(done + 1, self.steps + 1):
                value, position = next(values)
                if on_device is None or not data.shared:
                    on_device = devices.put(value, REPLICATED if data.shared else DATA)
                state, totals, token = programs.train(state, totals, on_device)
                if not data.shared:
                    # Only as many batches at once as the devices' memory is meant to hold.
                    in_flight.append(token)
                    if len(in_flight) > STREAM_AHEAD:
                        jax.block_until_ready(in_flight.popleft())
                stop = step < self.steps and self._should_stop(step)
                pause = stop or step in pauses
                if pause or step % self._log_every == 0:
                    self._pending.append(Interval(first, step, totals))
                    totals, first = programs.no_totals(), step
                    self._flush(keep=0 if pause else 1)
                if pause:
                    self._pause(state, step, position, stop)
        return state

    def _resume(self) -> tuple[TrainState, int, Any]:
        """(states, steps done, position of the data): of the newest checkpoint that is whole, or of a new run."""
        programs, reporter = self.programs, self.log.reporter
        state = programs.start(self.members)
        if self._start is not None:
            state = self._start.overlay(state, programs.learner, programs.devices, [m.started for m in self.members])
        jax.block_until_ready(state)
        sharding = NamedSharding(programs.devices.mesh, SEED)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
        try:
            saved = self.checkpoints.restore(like)
        except UserError as error:
            if not self.checkpoints.disposable:
                raise
            reporter.say(f"{error}; these runs start from their beginning")
            for step in self.checkpoints.steps:
                self.checkpoints.set_aside(step)
            saved = None
        done, position = 0, None
        if saved is not None:
            state, position = saved.state, saved.notes.get("position")
            done = int(state.step.addressable_data(0)[0])
            self._seconds_before = saved.notes.get("seconds", 0.0)
            if hasattr(self.dataset, "skipped"):
                self.dataset.skipped.update(dict.fromkeys(saved.notes.get("skipped", ())))
            for step, why in saved.damaged:
                self.checkpoints.set_aside(step)
                reporter.say(
                    f"the checkpoint of step {step} cannot be read ({why}); resuming from the one of step {done}"
                )
            reporter.say(f"resuming from step {done}")
        self._began = time.perf_counter()
        self.log.start_from(done)
        reporter.begin(self._label(), self.steps, done)
        # On preemption the state was saved first: what it scores is found out now.
        if done in self._evaluations and not self.log.has("validation", done):
            self._write("validation", done, self.evaluate(state, "validation"))
        return state, done, position

    def _pause(self, state: TrainState, step: int, position: Any, stop: bool) -> None:
        """What happens between the steps: evaluate, save, stop. The next step takes over the state's memory."""
        if step == self._last_traced:
            self._tracing.close()
        if step in self._evaluations and not stop:
            self._write("validation", step, self.evaluate(state, "validation"))
        due = step in self._saves and time.perf_counter() - self._last_save >= self._save_seconds
        if due or stop:
            self._save(state, step, position)
        if stop:
            self.checkpoints.wait()
            raise Preempted(f"SIGTERM: saved after step {step}; the same command continues from there.")
        self._trace_if(step == self._first_traced - 1)
        self._clock = time.perf_counter()

    def _save(self, state: TrainState, step: int, position: Any) -> None:
        if self.programs.devices.parallel == "pmap":
            # pmap's arrays are each process's own; a checkpoint is of all.
            state = self.programs.devices.put_global(jax.device_get(state), SEED)
        notes = {"position": position, "seconds": self.seconds, "skipped": self.skipped(), **self._notes}
        self.checkpoints.save(state, step, notes)
        self._last_save = time.perf_counter()

    def _trace_if(self, begins: bool) -> None:
        if begins and self._trace is not None and self._last_traced:
            self._tracing.enter_context(jax.profiler.trace(str(self._trace)))

    def _flush(self, keep: int) -> None:
        """Fetch what all but the last `keep` intervals measured, and log it.

        The speed of several is taken over them together: the devices may have done both while the host waited.
        """
        ready, self._pending = self._pending[: len(self._pending) - keep], self._pending[len(self._pending) - keep :]
        if not ready:
            return
        sums_of = [fetch(interval.totals) for interval in ready]
        now, runs = time.perf_counter(), self.programs.devices.runs
        speed = (ready[-1].last - ready[0].first) * self.programs.batch_size * runs / (now - self._clock)
        self._clock = now
        for (first, last, _), sums in zip(ready, sums_of, strict=True):
            finite = min(int(run[FINITE]) for run in sums)
            if finite < last - first:
                raise Diverged(
                    f"the loss of step {first + finite + 1} is not a finite number; take a smaller --learning-rate",
                    tuple(index for index, run in enumerate(sums) if int(run[FINITE]) < last - first),
                )
            metrics = [metrics_of(self.programs.learner.task, run) for run in sums]
            self.log.reporter.interval(last, sum(run["loss"] for run in metrics) / len(metrics), speed)
            self._write("train", last, metrics, speed)

    def evaluate(self, state: TrainState, split: str) -> list[dict[str, float]]:
        """Metrics over all of a split, one entry a run."""
        devices = self.programs.devices
        batches = self.dataset.evaluation(split, evaluation_size(devices), jax.process_index(), jax.process_count())
        return evaluate(self.programs.evaluate, state, batches, self.programs.learner.task, devices)

    def test(self, state: TrainState) -> list[dict[str, float]]:
        """Metrics over the test split, which is read once, logged."""
        found = self.evaluate(state, "test")
        self._write("test", self.steps, found)
        return found

    def _write(self, split: str, step: int, each: Sequence[dict[str, float]], speed: float | None = None) -> None:
        """A record a run."""
        for member, found in dict(zip(self.members, each, strict=True)).items():
            metrics = dict(found)
            images = int(metrics.pop("examples"))
            if split == "train" and self._rates is not None:
                metrics["learning_rate"] = float(self._rates[step - 1]) * member.rate
            self.log.write(Record(member.arm, member.seed, step, split, round(self.seconds, 3), metrics, images, speed))

    def skipped(self) -> list[str]:
        """Which images could not be read so far."""
        return sorted(getattr(self.dataset, "skipped", ()))

    def _label(self) -> str:
        arms, seeds = (dict.fromkeys(each) for each in zip(*(member[:2] for member in self.members), strict=True))
        rates = dict.fromkeys(member.rate for member in self.members)
        label = f"{', '.join(arms)} seed {', '.join(map(str, seeds))}"
        return label if set(rates) == {1.0} else f"{label} learning rate x {', '.join(f'{rate:g}' for rate in rates)}"
