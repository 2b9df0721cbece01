"""From the first step to the last: programs compiled once, steps without waiting, metrics one interval late."""

import collections
import dataclasses
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from mnv2_jax.data.batch import Batch, TrainData
from mnv2_jax.errors import Diverged
from mnv2_jax.tasks.task import Task
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.parallel import (
    DATA,
    REPLICATED,
    SEED,
    Parallel,
    check_divides,
    compile_program,
    create_mesh,
    lower_program,
    place,
    shapes_of,
    trace_program,
)
from mnv2_jax.training.step import DATA_AXIS, Learner, TrainState, device_places, eval_step, init_state, train_step

EVALUATION_BATCH = 256
"""Images of a batch of evaluation, or one a device where there are more of them."""
STREAM_AHEAD = 3
"""Steps that are given to the devices before the oldest is waited for, where each brings a batch of its own."""


FINITE = "finite_steps"
"""Beside the task's sums: how many steps had a finite loss. The first that had none spoils all behind it."""


@runtime_checkable
class Dataset(Protocol):
    """What the loop asks of a data set, resident or streamed."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""

    @property
    def train_images(self) -> int:
        """How many images there are to train on."""

    def train_data(self, batch_size: int, accumulation: int = 1) -> TrainData:
        """Training batches of `batch_size` examples, of which a device takes `accumulation` parts."""

    def evaluation(self, split: str, batch_size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Every example of a split exactly once, process `part`'s share of every batch."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one network, each for all runs and devices of a mesh."""

    init: Callable[[dict[str, jax.Array]], TrainState]
    train: Callable[[TrainState, Any, Any], tuple[TrainState, Any, jax.Array]]
    evaluate: Callable[[TrainState, Any, Batch], Any]
    task: Task
    data: TrainData
    mesh: Mesh
    parallel: Parallel
    batch_size: int
    compile_seconds: float

    def start(
        self, seeds: Sequence[int], choices: Sequence[int] | None = None, rates: Sequence[float] | None = None
    ) -> TrainState:
        """The states before the first step, one for each run of the mesh.

        Args:
            seeds: of the runs.
            choices: the numbers of their networks, where the learner's model is several.
            rates: their factors of the learning rate, where the learner has them.
        """
        runs = {"seed": np.asarray(seeds, np.int32)}
        if choices is not None:
            runs["choice"] = np.asarray(choices, np.int32)
        if rates is not None:
            runs["rate"] = np.asarray(rates, np.float32)
        return self.init(place(runs, self.mesh, SEED, self.parallel))

    def no_totals(self) -> Any:
        """Totals to add to, each of which can be used once."""
        zeros = {name: np.zeros(self.mesh.shape["seed"], np.float32) for name in (*self.task.names, FINITE)}
        return place(zeros, self.mesh, SEED, self.parallel)


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """The steps after which a run is evaluated, at equal distances, the last one included."""
    return frozenset(round(steps * (index + 1) / evaluations) for index in range(evaluations)) - {0}


def log_interval(steps: int) -> int:
    """Steps between two records of training, if nothing else was asked for: some fifty a run."""
    return max(1, steps // 50)


def evaluation_size(mesh: Mesh) -> int:
    """Images of an evaluation batch: near `EVALUATION_BATCH`, and the same number on each device."""
    devices = mesh.shape[DATA_AXIS]
    return devices * max(1, EVALUATION_BATCH // devices)


class Program(NamedTuple):
    """A function of one run on one device, and what it takes to make a program of it; see `trace_program`."""

    function: Callable
    specs: Sequence[PartitionSpec]
    arguments: Sequence[Any]
    donate: Sequence[int] = ()
    once: bool = False

    def lower(self, mesh: Mesh, parallel: Parallel) -> jax.stages.Lowered:
        """Before it is compiled."""
        return lower_program(self.function, mesh, self.specs, self.arguments, self.donate, parallel)

    def trace(self, mesh: Mesh, parallel: Parallel) -> Callable[[], Callable]:
        """As far as Python is needed: what it returns, compiles."""
        return trace_program(self.function, mesh, self.specs, self.arguments, self.donate, parallel, self.once)


def describe_programs(
    learner: Learner,
    dataset: Dataset,
    config: TrainConfig,
    mesh: Mesh,
    parallel: Parallel = "jit",
    evaluation_images: int | None = None,
) -> dict[str, Program]:
    """All that runs of a network need, by the names of `Programs`: "init", "train" and "evaluate".

    `evaluation_images` are those of a batch of evaluation, `evaluation_size(mesh)` if not given.

    Raises:
        UserError: if the batch does not divide by the devices.
    """
    data = dataset.train_data(config.batch_size, config.accumulation)
    value_spec = REPLICATED if data.shared else DATA
    check_divides(config.batch_size, config.accumulation, mesh)

    def init(run):
        return init_state(run["seed"], learner, dataset.image_shape, run.get("choice"), run.get("rate"))

    def train(state, totals, value):
        places = device_places(config.batch_size, config.accumulation)
        batch = data.batch(value, state.seed, state.step, places)
        state, sums = train_step(state, batch, learner)
        sums[FINITE] = jnp.isfinite(sums["loss"]).astype(jnp.float32)
        # The last result is what one may wait for: the others' memory goes to the next step.
        return state, jax.tree.map(jnp.add, totals, sums), sums["examples"]

    def evaluate(state, totals, batch):
        return jax.tree.map(jnp.add, totals, {**eval_step(state, batch, learner), FINITE: jnp.ones(())})

    seeds, size = mesh.shape["seed"], evaluation_images or evaluation_size(mesh)
    shape = jax.ShapeDtypeStruct
    run = {"seed": shape((), jnp.int32)}
    if learner.choices > 1:
        run["choice"] = shape((), jnp.int32)
    if learner.rated:
        run["rate"] = shape((), jnp.float32)
    one = jax.eval_shape(init, run)
    state = jax.tree.map(lambda leaf: shape((seeds, *leaf.shape), leaf.dtype), one)
    totals = {name: shape((seeds,), jnp.float32) for name in (*learner.task.names, FINITE)}
    value = shapes_of(data.shapes(), mesh, value_spec, parallel)
    each = jnp.zeros(size, jnp.int32)
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((size, *dataset.image_shape)), each, each.astype(jnp.float32), each))
    batch = shapes_of(batch, mesh, DATA, parallel)
    return {
        "init": Program(init, [SEED], [{name: shape((seeds,), leaf.dtype) for name, leaf in run.items()}], once=True),
        "train": Program(train, [SEED, SEED, value_spec], [state, totals, value], [0, 1]),
        "evaluate": Program(evaluate, [SEED, SEED, DATA], [state, totals, batch], [1]),
    }


def trace_programs(
    learner: Learner, dataset: Dataset, config: TrainConfig, mesh: Mesh, parallel: Parallel = "jit"
) -> Callable[[], Programs]:
    """Trace all that runs of a network need, and begin to compile it: what this returns, waits for it.

    XLA lets go of the interpreter while it compiles, on one core: meanwhile another one can trace the next program.

    Raises:
        UserError: if the batch does not divide by the devices.
    """
    began = time.perf_counter()
    programs = describe_programs(learner, dataset, config, mesh, parallel)

    def timed(finish: Callable[[], Callable]) -> tuple[Callable, float]:
        return finish(), time.perf_counter()

    threads = ThreadPoolExecutor(len(programs))
    pending = {name: threads.submit(timed, program.trace(mesh, parallel)) for name, program in programs.items()}
    threads.shutdown(wait=False)

    def finish() -> Programs:
        compiled = {name: each.result() for name, each in pending.items()}
        return Programs(
            **{name: program for name, (program, _) in compiled.items()},
            task=learner.task,
            data=dataset.train_data(config.batch_size, config.accumulation),
            mesh=mesh,
            parallel=parallel,
            batch_size=config.batch_size,
            compile_seconds=max(ended for _, ended in compiled.values()) - began,
        )

    return finish


def compile_programs(
    learner: Learner, dataset: Dataset, config: TrainConfig, mesh: Mesh, parallel: Parallel = "jit"
) -> Programs:
    """`trace_programs`, and wait: once, whatever the number of seeds."""
    return trace_programs(learner, dataset, config, mesh, parallel)()


def fetch(totals: Any) -> list[dict[str, float]]:
    """Totals that the devices have summed up, of each run; waits for them."""
    fetched = {name: np.asarray(leaf, np.float64) for name, leaf in jax.device_get(totals).items()}
    return [
        {name: float(value) for name, value in zip(fetched, run, strict=True)}
        for run in zip(*fetched.values(), strict=True)
    ]


def metrics_of(task: Task, sums: dict[str, float]) -> dict[str, float]:
    """The task's metrics of one run, and "examples"."""
    return {**task.metrics(sums), "examples": int(sums["examples"])}


def evaluate(programs: Programs, state: TrainState, batches: Iterable[Batch]) -> list[dict[str, float]]:
    """Metrics over every example of a split, each counted once; one entry a run."""
    totals = programs.no_totals()
    for batch in batches:
        totals = programs.evaluate(state, totals, place(batch, programs.mesh, DATA, programs.parallel))
    return [metrics_of(programs.task, sums) for sums in fetch(totals)]


class Logged(NamedTuple):
    """What training measured since it was last logged.

    Attributes:
        step: steps done.
        metrics: of each run over these steps.
        examples_per_second: of all runs together; pauses for evaluation and checkpoints are left out.
    """

    step: int
    metrics: list[dict[str, float]]
    examples_per_second: float


class Pause(NamedTuple):
    """A step after which the training stands still: the state is whole and may be evaluated or saved.

    Attributes:
        step: steps done.
        state: after it; the next step takes its memory, so it is not to be kept.
        position: of the data behind it.
        stopping: whether the training ends here, before its last step.
    """

    step: int
    state: TrainState
    position: Any
    stopping: bool


def train(
    programs: Programs,
    state: TrainState,
    seed: int,
    steps: range,
    log_every: int,
    pauses: Container[int],
    position: Any = None,
    stopping: Callable[[int], bool] = lambda step: False,
) -> Iterator[Logged | Pause]:
    """Train from step `steps.start` to `steps.stop`; yields what was logged, and every pause.

    The devices are never waited for inside of a logging interval; what an interval measured is fetched when the
    next one has been given to the devices, or at a pause.

    Args:
        programs: of the network.
        state: after `steps.start` steps.
        seed: of the stream, for data that is streamed.
        steps: the steps to do.
        log_every: steps of a logging interval.
        pauses: steps after which to yield a `Pause`; the last step is always one.
        position: of the data, as a pause gave it.
        stopping: asked after every step whether to pause at once and end.

    Raises:
        Diverged: when the loss is no longer a finite number.
    """
    spec = REPLICATED if programs.data.shared else DATA
    values = programs.data.values(seed, steps.start, position)
    held: Any = None
    tokens: collections.deque[jax.Array] = collections.deque()
    totals, first = programs.no_totals(), steps.start
    clock = time.perf_counter()
    late: tuple[int, int, Any] | None = None  # (first step, last step, totals) of the interval before

    def logged(*intervals: tuple[int, int, Any]) -> Iterator[Logged]:
        """Of neighbouring intervals, over which the speed is taken together: the devices may have done both."""
        nonlocal clock
        runs_of = [fetch(totals) for _, _, totals in intervals]
        now = time.perf_counter()
        runs = programs.mesh.shape["seed"]
        speed = (intervals[-1][1] - intervals[0][0]) * programs.batch_size * runs / (now - clock)
        clock = now
        for (start, end, _), sums in zip(intervals, runs_of, strict=True):
            finite = min(int(run[FINITE]) for run in sums)
            if finite < end - start:
                raise Diverged(
                    f"the loss of step {start + finite + 1} is not a finite number; take a smaller --learning-rate",
                    tuple(index for index, run in enumerate(sums) if int(run[FINITE]) < end - start),
                )
            yield Logged(end, [metrics_of(programs.task, run) for run in sums], speed)

    for step in range(steps.start + 1, steps.stop + 1):
        value, position = next(values)
        if held is None or not programs.data.shared:
            held = place(value, programs.mesh, spec, programs.parallel)
        state, totals, token = programs.train(state, totals, held)
        if not programs.data.shared:
            # Only as many batches at once as the devices' memory is meant to hold.
            tokens.append(token)
            if len(tokens) > STREAM_AHEAD:
                jax.block_until_ready(tokens.popleft())
        stop = step < steps.stop and stopping(step)
        pausing = stop or step in pauses or step == steps.stop
        if step % log_every == 0 or pausing:
            interval, totals = (first, step, totals), programs.no_totals()
            first = step
            if late is not None and not pausing:
                yield from logged(late)
            elif pausing:
                yield from logged(*([late] if late is not None else []), interval)
            late = None if pausing else interval
        if pausing:
            yield Pause(step, state, position, stop)
            clock = time.perf_counter()
        if stop:
            return


def evaluate_network(model: nn.Module, variables: PyTree, task: Task, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a network, whoever trained it, over every example of a split."""
    mesh = create_mesh()
    learner = Learner(model, task, optax.identity())
    state = TrainState(np.int32(0), np.int32(0), variables["params"], variables["batch_stats"], (), None)
    state = place(jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), mesh, SEED)
    size = evaluation_size(mesh)

    def step(state, totals, batch):
        return jax.tree.map(jnp.add, totals, eval_step(state, batch, learner))

    totals = place({name: np.zeros(1, np.float32) for name in task.names}, mesh, SEED)
    program = None
    for batch in dataset.evaluation(split, size, jax.process_index(), jax.process_count()):
        batch = place(batch, mesh, DATA)
        program = program or compile_program(step, mesh, [SEED, SEED, DATA], [state, totals, batch], [1])
        totals = program(state, totals, batch)
    return metrics_of(task, fetch(totals)[0])
