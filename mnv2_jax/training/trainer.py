"""Trains a group of runs: resumed, stepped, evaluated, logged and saved. The only loop.

`train` is a group of one, a study is several groups. The runs of a group are side by side on a mesh of seeds x data;
they share a program and differ in their seeds, and perhaps in an activation, a learning rate, or what they start from.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from mnv2_jax.data.batch import Dataset
from mnv2_jax.errors import Diverged, Preempted, UserError
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.config import Execution, Recipe, evaluation_steps, log_interval
from mnv2_jax.training.devices import DATA, REPLICATED, SEED
from mnv2_jax.training.evaluation import evaluate, evaluation_size, fetch, metrics_of
from mnv2_jax.training.finetune import Start
from mnv2_jax.training.log import Log
from mnv2_jax.training.metrics import Record
from mnv2_jax.training.programs import FINITE, Member, Programs
from mnv2_jax.training.step import TrainState

STREAM_AHEAD = 3
"""Steps that are given to the devices before the oldest is waited for, where each brings a batch of its own."""


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
        on_validation: called with the states, the step and each run's metrics whenever the validation split was read.
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
        on_validation: Callable[[TrainState, int, Sequence[dict[str, float]]], None] = lambda *found: None,
        start: Start | None = None,
        save_seconds: float = 0.0,
        rates: np.ndarray | None = None,
        notes: dict[str, Any] | None = None,
        trace: Path | None = None,
    ):
        self.programs, self.dataset, self.members, self.log = programs, dataset, tuple(members), log
        self.checkpoints = checkpoints
        self._should_stop, self._on_validation, self._start = should_stop, on_validation, start
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
            self._validate(state, done)
        return state, done, position

    def _pause(self, state: TrainState, step: int, position: Any, stop: bool) -> None:
        """What happens between the steps: evaluate, save, stop. The next step takes over the state's memory."""
        if step == self._last_traced:
            self._tracing.close()
        if step in self._evaluations and not stop:
            self._validate(state, step)
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

    def _validate(self, state: TrainState, step: int) -> None:
        found = self.evaluate(state, "validation")
        # Before the record, by which a resumed run knows that this was done.
        self._on_validation(state, step, found)
        self._write("validation", step, found)

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
