"""Runs from the first step to the test split: compile once, then train seed after seed, or side by side."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mnv2_jax.data.resident import Batch, Dataset, Examples, evaluation_batches, training_batch
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.classification import Sums
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.metrics import Record
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.parallel import REPLICATED, SEED, over_seeds
from mnv2_jax.training.step import TrainState, eval_step, init_state, train_step

EVALUATION_BATCH = 256
PROGRESS_SECONDS = 0.5


class Programs(NamedTuple):
    """The compiled programs of one network, each for one group of seeds."""

    init: Callable[[jax.Array], TrainState]
    train: Callable[[TrainState, Examples], tuple[TrainState, Sums]]
    evaluate: Callable[[TrainState, Batch], Sums]
    train_examples: Examples  # on the devices
    mesh: Mesh
    compile_seconds: float


class Progress(NamedTuple):
    """A sign of life between two records."""

    step: int
    loss: float
    images_per_second: float


def compile_programs(model: nn.Module, dataset: Dataset, config: TrainConfig, mesh: Mesh) -> Programs:
    """Compile all that a run of `model` needs: once, whatever the number of seeds."""
    start = time.perf_counter()
    optimizer = create_optimizer(config, config.steps(len(dataset.train.labels)))

    def init(seed):
        return init_state(seed, model, optimizer, dataset.image_shape)

    def train(state, examples):
        batch = training_batch(state.data_key, state.step, examples, config.batch_size, dataset.augmentation)
        return train_step(state, batch, model, optimizer)

    def evaluate(state, batch):
        return eval_step(state, batch, model)

    init_program = over_seeds(init, mesh, [SEED])
    seeds = jnp.zeros(mesh.size, jnp.int32)
    state = jax.eval_shape(init_program, seeds)
    examples = jax.device_put(Examples(*dataset.train), NamedSharding(mesh, REPLICATED))
    batch = next(evaluation_batches(dataset.test, EVALUATION_BATCH))
    return Programs(
        init=init_program.lower(seeds).compile(),
        train=over_seeds(train, mesh, [SEED, REPLICATED], donate=[0]).lower(state, examples).compile(),
        evaluate=over_seeds(evaluate, mesh, [SEED, REPLICATED]).lower(state, batch).compile(),
        train_examples=examples,
        mesh=mesh,
        compile_seconds=time.perf_counter() - start,
    )


def evaluate(programs: Programs, state: TrainState, examples: Examples) -> list[Sums]:
    """Sums over every example of a split, each counted once; one entry a seed of the group."""
    totals = np.zeros((len(Sums._fields), programs.mesh.size))
    for batch in evaluation_batches(examples, EVALUATION_BATCH):
        batch = jax.device_put(batch, NamedSharding(programs.mesh, REPLICATED))
        totals += np.asarray(jax.device_get(programs.evaluate(state, batch)), np.float64)
    return [Sums(*column) for column in totals.T]


def train(
    programs: Programs,
    arm: str,
    seeds: Sequence[int],
    dataset: Dataset,
    config: TrainConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_end: Callable[[TrainState], None] = lambda state: None,
) -> Iterator[Record]:
    """Train one group of seeds to the end of their budget and yield their records as they come.

    Args:
        programs: of the arm's network.
        arm: its name, for the records.
        seeds: one for each device of the programs' mesh.
        dataset: read once for testing, at the end.
        config: the run's settings.
        on_progress: called about twice a second.
        on_end: called with the last state, before the record of the test split.

    Raises:
        UserError: when the loss is no longer a number.
    """
    steps = config.steps(len(dataset.train.labels))
    stops = {round(steps * (index + 1) / config.evaluations) for index in range(config.evaluations)} - {0}
    state = programs.init(jax.device_put(np.asarray(seeds, np.int32), NamedSharding(programs.mesh, SEED)))
    jax.block_until_ready(state)
    start = training_start = last_progress = time.perf_counter()
    interval: list[Sums] = []

    def records(split: str, step: int, sums: Sequence[Sums], speed: float | None = None) -> Iterator[Record]:
        seconds = time.perf_counter() - start
        for seed, run in zip(seeds, sums, strict=True):
            loss, accuracy = float(run.loss / run.images), float(run.correct / run.images)
            yield Record(arm, seed, step, split, seconds, loss, accuracy, int(run.images), speed)

    for step in range(1, steps + 1):
        state, sums = programs.train(state, programs.train_examples)
        interval.append(sums)
        now = time.perf_counter()
        if now - last_progress > PROGRESS_SECONDS:
            loss = float(np.mean(jax.device_get(sums.loss)) / config.batch_size)
            last_progress = now = time.perf_counter()
            on_progress(Progress(step, loss, len(interval) * config.batch_size * len(seeds) / (now - training_start)))
        if step in stops:
            totals = np.asarray(jax.device_get(interval), np.float64).sum(axis=0)
            speed = len(interval) * config.batch_size * len(seeds) / (time.perf_counter() - training_start)
            if not np.isfinite(totals).all():
                raise UserError(
                    f"the loss of arm {arm} is not a number by step {step}; take a smaller --learning-rate "
                    f"than {config.learning_rate}"
                )
            on_progress(Progress(step, float(totals[0].sum() / totals[2].sum()), speed))
            yield from records("train", step, [Sums(*column) for column in totals.T], speed)
            yield from records("validation", step, evaluate(programs, state, dataset.validation))
            interval, training_start = [], time.perf_counter()
    on_end(state)
    yield from records("test", steps, evaluate(programs, state, dataset.test))
