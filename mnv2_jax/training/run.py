"""One run from its settings to its files: resume, train, evaluate, log, save.

A run's folder holds `config.json` (what is asked), `metrics.jsonl` and `tensorboard/` (what was logged),
`checkpoints/STEP` (where to go on), and at the end `summary.json`, `figure.png` and `network/`, which `load_weights` reads. The
same run started again goes on from its newest checkpoint, to the same bits.
"""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mnv2_jax.data import resident, stream
from mnv2_jax.data.catalog import CATALOG
from mnv2_jax.data.names import OnBadImage
from mnv2_jax.errors import Preempted, UserError
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.create import create_model
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.checkpoint import RunCheckpoints, tree_digest
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.folder import check_folder, claim_folder, plain
from mnv2_jax.training.log import Log
from mnv2_jax.training.loop import (
    Logged,
    Pause,
    Programs,
    compile_programs,
    evaluate,
    evaluation_size,
    evaluation_steps,
    log_interval,
    train,
)
from mnv2_jax.training.metrics import Record, read_records, write_atomically
from mnv2_jax.training.optimizer import create_optimizer, create_schedule
from mnv2_jax.training.parallel import SEED, Parallel, check_divides, create_mesh, place
from mnv2_jax.training.plots import save_run
from mnv2_jax.training.progress import RunReporter
from mnv2_jax.training.step import DATA_AXIS, Learner, TrainState
from mnv2_jax.weights.load import Weights, describe, save_weights

CHECKPOINTS, NETWORK, METRICS, SUMMARY = "checkpoints", "network", "metrics.jsonl", "summary.json"
TENSORBOARD, TRACE, FIGURE = "tensorboard", "trace", "figure.png"
CONTENTS = (CHECKPOINTS, NETWORK, METRICS, SUMMARY, TENSORBOARD, TRACE, FIGURE)

OWN = "mnv2_jax"
"""The source of networks that were trained here."""

Dataset = resident.Dataset | stream.StreamedDataset


@dataclasses.dataclass(frozen=True)
class Run:
    """What is asked: everything that the result depends on.

    Attributes:
        dataset: a name for `load_dataset`.
        model: settings of `create_model`, "name" included; classes, dropout and batch norm follow from the rest.
        training: how it is trained.
        seed: of the initial weights, the order of the data, and every other chance.
        resolution: side of the images in pixels; None for the data set's own.
        train_images: train on so many only.
        streamed: whether the data are read while they are used; None where the set is too large for the device.
        data_files: the user's own files.
    """

    dataset: str
    model: Mapping[str, Any]
    training: TrainConfig
    seed: int = 0
    resolution: int | None = None
    train_images: int | None = None
    streamed: bool | None = None
    data_files: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Flat, for JSON; two runs with the same are the same run."""
        own = {name: getattr(self, name) for name in ("dataset", "seed", "resolution", "train_images", "streamed")}
        return {**own, **self.model, **dataclasses.asdict(self.training)}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is executed; nothing here changes what comes out, but for rounding.

    Attributes:
        parallel: how the step is compiled.
        log_every: steps between two records of training; None for some fifty a run.
        checkpoint_every: steps between two checkpoints; None for one at every evaluation.
        keep: newest checkpoints that are kept.
        keep_every: besides, those of every multiple of so many steps.
        profile: first and last step of a trace for XProf or Perfetto; None for none.
        on_bad_image: of streamed data.
    """

    parallel: Parallel = "jit"
    log_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    keep_every: int | None = None
    profile: tuple[int, int] | None = None
    on_bad_image: OnBadImage = "stop"

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise UserError(
                f"--profile must be FIRST:LAST with steps from 1 on, got {self.profile[0]}:{self.profile[1]}"
            )


def load_dataset(run: Run, on_bad_image: OnBadImage = "stop") -> Dataset:
    """The run's data, resident where the catalog says so and nothing else was asked."""
    entry = CATALOG.get(run.dataset)
    streamed = run.streamed if run.streamed is not None else entry is None or not entry.resident
    common: dict[str, Any] = dict(data_files=run.data_files, train_images=run.train_images, resolution=run.resolution)
    if not streamed:
        if entry is None or entry.shift is None:
            raise UserError(f"{run.dataset} has images of many sizes, so it is streamed; leave --input resident out")
        return resident.load(run.dataset, **common)
    return stream.load_stream(
        run.dataset,
        **common,
        convention=run.model.get("convention", "tensorflow"),
        smallest_crop=run.training.smallest_crop,
        color=run.training.color_distortion,
        on_bad_image=on_bad_image,
    )


def create_network(run: Run, dataset: Dataset) -> ImageClassifier:
    """The run's network; its batch norm is of one device, see `create_learner`."""
    settings = {name: value for name, value in run.model.items() if value is not None}
    entry = CATALOG.get(run.dataset)
    settings.setdefault("unit_strides", unit_strides_for(dataset.image_shape[0], entry.source_size if entry else None))
    momentum = run.training.norm_momentum(run.training.steps(dataset.train_images))
    return create_model(
        **settings,
        num_classes=dataset.num_classes,
        dropout_rate=run.training.dropout_rate,
        batch_norm_momentum=momentum,
    )


def create_learner(run: Run, dataset: Dataset, devices: int) -> Learner:
    """What the run's steps need on a number of devices."""
    network, training = create_network(run, dataset), run.training
    if training.batch_norm == "global" and devices > 1:
        network = network.clone(batch_norm_axis=DATA_AXIS)
    return Learner(
        network,
        Classification(dataset.num_classes, training.label_smoothing),
        create_optimizer(training, dataset.train_images),
        training.accumulation,
        training.ema_decay,
    )


def network_of(run: Run, dataset: Dataset) -> Weights:
    """The run's network with what it takes to use it on other images, and without its variables."""
    return Weights(
        create_network(run, dataset),
        {},
        source=OWN,
        preprocessing=dataset.preprocessing,
        resolution=dataset.image_shape[0],
        class_names=dataset.class_names,
        image_channels=dataset.image_shape[2],
    )


@contextlib.contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after a step, because SIGTERM came: to this process, or with several to any of them."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def execute(
    run: Run,
    execution: Execution,
    folder: Path,
    reporter: RunReporter,
    overwrite: bool = False,
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train what is missing of a run and write its files; returns its summary.

    Raises:
        UserError: for bad input, before anything is written; for a loss that is no number; for a full disk.
        Preempted: after SIGTERM, when the run is saved.
    """
    with _said_in_one_line(folder), watch_for_preemption() as stopping:
        dataset = load_shared(run, execution.on_bad_image)
        settings = {**run.settings(), "data_sha256": dataset.fingerprint()}
        check_folder(settings, folder, overwrite, "run")
        summary_file = folder / SUMMARY
        if summary_file.exists() and not overwrite:
            reporter.say("This run was finished before.")
            return json.loads(summary_file.read_text())
        steps = run.training.steps(dataset.train_images)
        if execution.profile is not None and execution.profile[1] > steps:
            raise UserError(f"--profile ends at step {execution.profile[1]}, and the run has {steps}")
        mesh = create_mesh()
        check_divides(run.training.batch_size, run.training.accumulation, mesh)
        if jax.process_index() == 0:
            claim_folder(settings, folder, overwrite, CONTENTS)
        wait_for_processes("folder")
        reporter.say(f"compiling for {mesh.size} devices ({mesh.devices.flat[0].device_kind})")
        learner = create_learner(run, dataset, mesh.size)
        programs = compile_programs(learner, dataset, run.training, mesh, execution.parallel)
        reporter.say(f"compiled in {programs.compile_seconds:.0f} s")
        checkpoints = RunCheckpoints(folder / CHECKPOINTS, execution.keep, execution.keep_every)
        with contextlib.closing(checkpoints):
            state, done, notes = _resume(run, programs, checkpoints, reporter)
            if isinstance(dataset, stream.StreamedDataset):
                dataset.skipped.update(dict.fromkeys(notes.get("skipped", ())))
            log = Log(folder / METRICS, folder / TENSORBOARD, reporter, done)
            with contextlib.closing(log):
                trainer = _Trainer(
                    run, execution, folder, dataset, programs, checkpoints, log, notes.get("seconds", 0.0)
                )
                reporter.start(done, steps)
                try:
                    state = trainer.train(state, range(done, steps), notes.get("position"), stopping)
                finally:
                    reporter.stop()
                test = trainer.evaluate(state, "test", steps)
            skipped = trainer.skipped()
            if skipped:
                reporter.say(f"{len(skipped)} damaged images were skipped, the first of them: {skipped[0]}")
            variables = jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], state.variables(averaged=True))
            weights = network_of(run, dataset)._replace(variables=variables)
            summary = {
                "dataset": run.dataset,
                "steps": steps,
                "test": test,
                "parameters_sha256": tree_digest(state.params),
                "settings": settings,
                "train_images": dataset.train_images,
                "skipped_images": skipped,
                "compile_seconds": round(programs.compile_seconds, 2),
                "train_seconds": round(trainer.seconds(), 2),
                "command": command,
                "environment": dict(environment or {}),
            }
            if jax.process_index() == 0:
                save_weights(folder / NETWORK, weights)
                save_run(read_records(folder / METRICS), f"{run.model['name']} on {run.dataset}", folder / FIGURE)
                write_atomically(summary_file, json.dumps(plain(summary), indent=2) + "\n")
            wait_for_processes("summary")
    return plain(summary)


@contextlib.contextmanager
def _said_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever cannot be written of a run, the user can mend, and go on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}); mend that, and the same command "
            "goes on from the last checkpoint"
        ) from error


def wait_for_processes(where: str) -> None:
    """Until all have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def load_shared(run: Run, on_bad_image: OnBadImage) -> Dataset:
    """`load_dataset` in every process; what has to be prepared first, the first one prepares."""
    if jax.process_index() == 0:
        dataset = load_dataset(run, on_bad_image)
    wait_for_processes("data")
    return dataset if jax.process_index() == 0 else load_dataset(run, on_bad_image)


def _resume(
    run: Run, programs: Programs, checkpoints: RunCheckpoints, reporter: RunReporter
) -> tuple[TrainState, int, dict[str, Any]]:
    """(state, steps done, notes): of the newest checkpoint that is whole, or of a run that begins."""
    state = programs.start([run.seed])
    sharding = NamedSharding(programs.mesh, SEED)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
    saved = checkpoints.restore(like)
    if saved is None:
        return state, 0, {}
    done = int(saved.state.step.addressable_data(0)[0])
    for step, why in saved.damaged:
        checkpoints.set_aside(step)
        reporter.say(f"the checkpoint of step {step} cannot be read ({why}); going on from the one of step {done}")
    reporter.say(f"going on from step {done}")
    return saved.state, done, saved.notes


class _Trainer:
    """The steps of one run, with what happens between them."""

    def __init__(self, run, execution, folder, dataset, programs, checkpoints, log, seconds):
        self._run, self._execution, self._folder = run, execution, folder
        self._dataset, self._programs, self._checkpoints, self._log = dataset, programs, checkpoints, log
        # All of them at once: asking the schedule while the devices work would wait for them.
        schedule = create_schedule(run.training, dataset.train_images)
        steps = run.training.steps(dataset.train_images)
        self._rates = np.broadcast_to(np.asarray(schedule(np.arange(steps))), (steps,))
        self._network = describe(network_of(run, dataset))
        self._before, self._began = seconds, time.perf_counter()

    def seconds(self) -> float:
        """Since the run began, over all its parts."""
        return self._before + time.perf_counter() - self._began

    def _write(self, split: str, step: int, metrics: Mapping[str, float], speed: float | None = None) -> None:
        metrics = dict(metrics)
        images = int(metrics.pop("examples"))
        name, seed = self._run.model["name"], self._run.seed
        self._log.write(Record(name, seed, step, split, round(self.seconds(), 3), metrics, images, speed))

    def evaluate(self, state: TrainState, split: str, step: int) -> dict[str, float]:
        """Metrics over all of a split, logged."""
        batches = self._dataset.evaluation(
            split, evaluation_size(self._programs.mesh), jax.process_index(), jax.process_count()
        )
        (metrics,) = evaluate(self._programs, state, batches)
        self._write(split, step, metrics)
        return metrics

    def train(self, state: TrainState, todo: range, position: Any, stopping: Callable[[int], bool]) -> TrainState:
        """Do the steps, and return the last state."""
        steps = self._run.training.steps(self._dataset.train_images)
        evaluations = evaluation_steps(steps, self._run.training.evaluations)
        every = self._execution.checkpoint_every
        saves = evaluations if every is None else frozenset(range(every, steps + 1, every)) | {steps}
        log_every = self._execution.log_every or log_interval(steps)
        first, last = self._execution.profile or (0, 0)
        pauses = evaluations | saves | ({first - 1, last} if last else set())
        if todo.start in evaluations and not self._log.has("validation", todo.start):
            self.evaluate(state, "validation", todo.start)
        with contextlib.ExitStack() as tracing:
            if first == todo.start + 1:
                tracing.enter_context(jax.profiler.trace(str(self._folder / TRACE)))
            events = train(self._programs, state, self._run.seed, todo, log_every, pauses, position, stopping)
            return self._follow(events, state, evaluations, saves, first, last, tracing)

    def _follow(
        self,
        events: Iterator[Logged | Pause],
        state: TrainState,
        evaluations: frozenset[int],
        saves: frozenset[int],
        first: int,
        last: int,
        tracing: contextlib.ExitStack,
    ) -> TrainState:
        """What happens between the steps."""
        for event in events:
            if isinstance(event, Logged):
                metrics = {**event.metrics[0], "learning_rate": float(self._rates[event.step - 1])}
                self._write("train", event.step, metrics, event.examples_per_second)
                continue
            state = event.state
            if event.step == last:
                tracing.close()
            # Where there is little time left, the state goes first; what it scores, the next start finds out.
            if event.step in evaluations and not event.stopping:
                self.evaluate(state, "validation", event.step)
            if event.step in saves or event.stopping:
                # pmap's arrays are each process's own; a checkpoint is of all.
                whole = state
                if self._programs.parallel == "pmap":
                    whole = place(jax.device_get(state), self._programs.mesh, SEED)
                self._checkpoints.save(whole, event.step, self._notes(event.position))
            if event.stopping:
                self._checkpoints.wait()
                raise Preempted(f"SIGTERM: saved after step {event.step}; the same command goes on from there.")
            if event.step == first - 1:
                tracing.enter_context(jax.profiler.trace(str(self._folder / TRACE)))
        return state

    def _notes(self, position: Any) -> dict[str, Any]:
        return {
            "position": position,
            "seconds": self.seconds(),
            "network": self._network,
            "skipped": self.skipped(),
        }

    def skipped(self) -> list[str]:
        """Which images could not be read so far."""
        return sorted(getattr(self._dataset, "skipped", ()))
