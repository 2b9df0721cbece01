"""Train a group of runs: resume, step, evaluate, log and save. The only training loop.

`train` is a group of one run, a study is several groups. The runs of a group train side by side on a mesh of
seed x data. They share a program and differ in their seeds, and possibly in an activation, the learning rate or the
weights they start from.
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
"""Number of dispatched steps beyond which the host waits for the oldest, if each step brings its own batch."""


class Interval(NamedTuple):
    """Totals of the steps after `first`, up to and including `last`; still on the devices."""

    first: int
    last: int
    totals: Any


class Trainer:
    """Trains a group of runs, from resuming to the last step.

    Args:
        programs: compiled for the runs' network.
        dataset: their data.
        recipe: their training settings.
        members: the runs, one per seed of the mesh; one may be repeated to fill the mesh.
        log: receives the records.
        checkpoints: of the group's state.
        execution: how often to log and to save.
        should_stop: called after every step; if it returns True, training saves and stops.
        on_validation: called with the states, the step and each run's metrics after every evaluation on the validation
            split.
        start: trained weights for the members that start from them.
        save_seconds: minimum time between two checkpoints in seconds. If set, the last step is not saved, since the
            results are written after it.
        rates: learning rate of each step, for the log; None to leave it out.
        notes: saved with every checkpoint.
        trace: folder for a profiler trace.
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
        """Wall time of the runs in seconds, summed over resumes."""
        return self._seconds_before + time.perf_counter() - self._began

    def train(self) -> TrainState:
        """Do the remaining steps and return the states after the last one.

        Metrics are fetched without stalling the devices: those of an interval once the next interval has been
        dispatched, or when training pauses to evaluate or save.

        Raises:
            Diverged: if the loss of a run is no longer finite.
            Preempted: after SIGTERM, once the state is saved.
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
                    # Limits how many batches are in device memory at once.
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
        """Return (states, steps done, data position) from the newest readable checkpoint, or of a new run."""
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
            reporter.say(str(error))
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
        # A preempted run saves without evaluating; the resumed run evaluates.
        if done in self._evaluations and not self.log.has("validation", done):
            self._validate(state, done)
        return state, done, position

    def _pause(self, state: TrainState, step: int, position: Any, stop: bool) -> None:
        """Evaluate, save or stop, as due after a step; the state is donated to the next step."""
        if step == self._last_traced:
            self._tracing.close()
        if step in self._evaluations and not stop:
            self._validate(state, step)
        due = step in self._saves and time.perf_counter() - self._last_save >= self._save_seconds
        if due or stop:
            self._save(state, step, position)
        if stop:
            self.checkpoints.wait()
            raise Preempted(f"SIGTERM: saved after step {step}; run the same command to resume.")
        self._trace_if(step == self._first_traced - 1)
        self._clock = time.perf_counter()

    def _save(self, state: TrainState, step: int, position: Any) -> None:
        if self.programs.devices.parallel == "pmap":
            # Arrays from pmap are local to a process; checkpoints need global arrays.
            state = self.programs.devices.put_global(jax.device_get(state), SEED)
        notes = {"position": position, "seconds": self.seconds, "skipped": self.skipped(), **self._notes}
        self.checkpoints.save(state, step, notes)
        self._last_save = time.perf_counter()

    def _trace_if(self, begins: bool) -> None:
        if begins and self._trace is not None and self._last_traced:
            self._tracing.enter_context(jax.profiler.trace(str(self._trace)))

    def _flush(self, keep: int) -> None:
        """Fetch and log all pending intervals except the last `keep`.

        They share one speed: the devices may have finished several while the host waited.
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
                    f"the loss of step {first + finite + 1} is not finite; use a smaller --learning-rate",
                    tuple(index for index, run in enumerate(sums) if int(run[FINITE]) < last - first),
                )
            metrics = [metrics_of(self.programs.learner.task, run) for run in sums]
            self.log.reporter.interval(last, sum(run["loss"] for run in metrics) / len(metrics), speed)
            self._write("train", last, metrics, speed)

    def evaluate(self, state: TrainState, split: str) -> list[dict[str, float]]:
        """Return metrics over a whole split, one entry per run."""
        devices = self.programs.devices
        batches = self.dataset.evaluation(split, evaluation_size(devices), jax.process_index(), jax.process_count())
        return evaluate(self.programs.evaluate, state, batches, self.programs.learner.task, devices)

    def _validate(self, state: TrainState, step: int) -> None:
        found = self.evaluate(state, "validation")
        # Before the record: a resumed run takes the record as proof that this was done.
        self._on_validation(state, step, found)
        self._write("validation", step, found)

    def test(self, state: TrainState) -> list[dict[str, float]]:
        """Evaluate on the test split, once, and log and return the metrics."""
        found = self.evaluate(state, "test")
        self._write("test", self.steps, found)
        return found

    def _write(self, split: str, step: int, each: Sequence[dict[str, float]], speed: float | None = None) -> None:
        """Log one record per run."""
        for member, found in dict(zip(self.members, each, strict=True)).items():
            metrics = dict(found)
            images = int(metrics.pop("examples"))
            if split == "train" and self._rates is not None:
                metrics["learning_rate"] = float(self._rates[step - 1]) * member.rate
            self.log.write(Record(member.arm, member.seed, step, split, round(self.seconds, 3), metrics, images, speed))

    def skipped(self) -> list[str]:
        """Return the images that could not be read so far."""
        return sorted(getattr(self.dataset, "skipped", ()))

    def _label(self) -> str:
        arms, seeds = (dict.fromkeys(each) for each in zip(*(member[:2] for member in self.members), strict=True))
        rates = dict.fromkeys(member.rate for member in self.members)
        label = f"{', '.join(arms)} seed {', '.join(map(str, seeds))}"
        return label if set(rates) == {1.0} else f"{label} learning rate x {', '.join(f'{rate:g}' for rate in rates)}"
