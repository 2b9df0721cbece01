"""The compiled programs of a group of runs: initialisation, training step, and evaluation of a batch."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnv2_jax.data.batch import Batch, Dataset, TrainData
from mnv2_jax.training.config import Recipe
from mnv2_jax.training.devices import DATA, REPLICATED, SEED, Devices, Program
from mnv2_jax.training.evaluation import describe_evaluation, evaluation_shapes, evaluation_size, stacked_zeros
from mnv2_jax.training.step import Learner, TrainState, device_index, init_state, train_step

FINITE = "finite_steps"
"""Key beside the task's sums: number of steps with a finite loss. Once the loss is not finite, it stays so."""


class Member(NamedTuple):
    """One run of a group: its name in records, and how it differs from the others.

    Attributes:
        arm, seed: the run's name in records.
        rate: learning-rate factor; has an effect if the learner is `rated`.
        choice: index of its activation in the learner's `activations`.
        started: whether it starts from the group's trained weights, if there are any.
    """

    arm: str
    seed: int
    rate: float = 1.0
    choice: int = 0
    started: bool = True


def describe_programs(
    learner: Learner, dataset: Dataset, recipe: Recipe, devices: Devices, evaluation_images: int | None = None
) -> dict[str, Program]:
    """Return all programs that runs of a network need: "init", "train" and "evaluate".

    `evaluation_images` is the size of an evaluation batch; None takes `evaluation_size(devices)`.

    Raises:
        UserError: if the batch does not divide evenly among the devices.
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
        # The last output is there for the host to block on: state and totals are donated to the next step.
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
        # State and totals are donated: the new ones reuse their memory.
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
        """Return the states before the first step, initialised from the members' seeds."""
        runs = {"seed": np.asarray([member.seed for member in members], np.int32)}
        if self.learner.activations:
            runs["choice"] = np.asarray([member.choice for member in members], np.int32)
        if self.learner.rated:
            runs["rate"] = np.asarray([member.rate for member in members], np.float32)
        return self.init(self.devices.put(runs, SEED))

    def no_totals(self) -> Any:
        """Return new zero totals; they are donated, so each can be used once."""
        finite = {FINITE: np.zeros(self.devices.runs, np.float32)}
        return self.devices.put({**stacked_zeros(self.learner.task, self.devices), **finite}, SEED)


def trace_programs(learner: Learner, dataset: Dataset, recipe: Recipe, devices: Devices) -> Callable[[], Programs]:
    """Trace all programs of a network and start compiling them; the returned function waits for the result.

    XLA compiles on one core and releases the interpreter lock, so that another core can trace the next program.

    Raises:
        UserError: if the batch does not divide evenly among the devices.
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
