"""A split, once: every example counted once, whatever the batch, the devices and the processes."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnv2_jax.data.batch import Batch, Dataset
from mnv2_jax.data.catalog import FOLDER, OnBadImage
from mnv2_jax.data.stream import load_stream
from mnv2_jax.errors import UserError
from mnv2_jax.network import OWN, Network
from mnv2_jax.tasks.task import Task
from mnv2_jax.training.devices import DATA, SEED, Devices, Program
from mnv2_jax.training.step import Learner, TrainState, eval_step

EVALUATION_BATCH = 256
"""Images of a batch of evaluation, or one a device where there are more of them."""


def evaluation_size(devices: Devices) -> int:
    """Images of an evaluation batch: near `EVALUATION_BATCH`, and the same number on each device."""
    return devices.per_run * max(1, EVALUATION_BATCH // devices.per_run)


def evaluation_shapes(dataset: Dataset, size: int) -> Batch:
    """The shapes of an evaluation batch."""

    def empty() -> Batch:
        targets = jax.tree.map(lambda leaf: jnp.zeros((size, *np.shape(leaf)), leaf.dtype), dataset.targets.empty())
        index = jnp.zeros(size, jnp.int32)
        return Batch(jnp.zeros((size, *dataset.image_shape)), targets, index.astype(jnp.float32), index)

    return jax.eval_shape(empty)


def describe_evaluation(learner: Learner, state: Any, batch: Batch, devices: Devices) -> Program:
    """The program that adds a batch's sums to totals, and returns what the task's evaluator asks for.

    Args:
        learner: model and task.
        state, batch: shapes of what all runs' states and one batch are, or such arrays.
        devices: of the runs.
    """

    def evaluate(state, totals, batch):
        sums, asked = eval_step(state, batch, learner)
        return jax.tree.map(jnp.add, totals, sums), asked

    totals = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices.runs, *leaf.shape), leaf.dtype), learner.task.zeros()
    )
    return Program(evaluate, [SEED, SEED, DATA], [state, totals, batch], [1])


def stacked_zeros(task: Task, devices: Devices) -> dict[str, np.ndarray]:
    """The sums over no examples, of each run, on the host."""
    return {name: np.zeros((devices.runs, *leaf.shape), leaf.dtype) for name, leaf in task.zeros().items()}


def fetch(totals: Any) -> list[dict[str, Any]]:
    """Totals that the devices have summed up, of each run; waits for them. Scalars become floats."""
    fetched = {name: np.asarray(leaf, np.float64) for name, leaf in jax.device_get(totals).items()}
    return [
        {name: float(value) if np.ndim(value) == 0 else value for name, value in zip(fetched, run, strict=True)}
        for run in zip(*fetched.values(), strict=True)
    ]


def metrics_of(task: Task, sums: dict[str, Any]) -> dict[str, float]:
    """The task's metrics of one run, and "examples"."""
    return {**task.metrics(sums), "examples": int(sums["examples"])}


def evaluate(
    program: Callable, state: TrainState, batches: Iterable[Batch], task: Task, devices: Devices
) -> list[dict[str, float]]:
    """Metrics over every example of a split, each counted once; one entry a run.

    Args:
        program: compiled from `describe_evaluation`.
        state: of all runs.
        batches: this process's share of each.
        task: whose metrics.
        devices: of the runs.
    """
    totals = devices.put(stacked_zeros(task, devices), SEED)
    asked = []
    for batch in batches:
        totals, own = program(state, totals, devices.put(batch, DATA))
        if own is not None:
            asked.append(jax.device_get(own))
    found = [metrics_of(task, sums) for sums in fetch(totals)]
    if task.evaluator is not None:
        for run, metrics in enumerate(found):
            own = [jax.tree.map(lambda leaf, run=run: leaf[run], batch) for batch in asked]
            metrics.update(task.evaluator.metrics(own))
    return found


def evaluate_network(network: Network, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a network, whoever trained it, over every example of a split."""
    devices = Devices.create()
    learner = Learner(network.model, network.task, optax.identity())
    params, batch_stats = network.variables["params"], network.variables["batch_stats"]
    state = TrainState(np.int32(0), np.int32(0), params, batch_stats, (), None)
    state = devices.put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), SEED)
    batches = iter(dataset.evaluation(split, evaluation_size(devices), jax.process_index(), jax.process_count()))
    first = next(batches, None)
    if first is None:
        raise UserError(f"the split {split} has no images")
    program = devices.compile(describe_evaluation(learner, state, devices.put(first, DATA), devices))
    return evaluate(program, state, _chain(first, batches), network.task, devices)[0]


def _chain(first: Batch, others: Iterable[Batch]) -> Iterable[Batch]:
    yield first
    yield from others


def _some(names: Sequence[str] | None) -> str:
    return ", ".join(list(names or ())[:3]) + ", ..."


def evaluate_on(
    network: Network,
    dataset: str,
    split: str,
    data_files: Path | None = None,
    resolution: int | None = None,
    on_bad_image: OnBadImage = "stop",
) -> tuple[dict[str, float], list[str]]:
    """Metrics of a network over all of a data set's split, with the preprocessing that belongs to it, and what was skipped.

    Raises:
        UserError: if the data are not there, or of other classes than the network.
    """
    data = load_stream(
        dataset,
        data_files=data_files,
        resolution=resolution or network.resolution,
        on_bad_image=on_bad_image,
        targets=network.task.targets,
    )
    classes = network.model.num_classes
    if classes != data.num_classes:
        raise UserError(f"the network has {classes} classes and {dataset} {data.num_classes}")
    # Other code bases name the same classes in other words; our own runs name them as their folders do.
    if dataset == FOLDER and network.source == OWN and network.class_names != data.class_names:
        raise UserError(
            f"the network's classes ({_some(network.class_names)}) are not those of {data_files} ({_some(data.class_names)})"
        )
    data = data.prepared_as(network.preprocessing, network.image_channels)
    metrics = evaluate_network(network, data, split)
    return metrics, sorted(data.skipped)
