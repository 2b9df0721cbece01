"""Evaluate a split: every example counts once, whatever the batch size and the number of devices and processes."""

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnv2_jax.data.batch import Batch, ClassTargets, Dataset
from mnv2_jax.data.catalog import FOLDER, ExifOrientation, OnBadImage
from mnv2_jax.data.stream import load_stream
from mnv2_jax.errors import UserError
from mnv2_jax.network import Network
from mnv2_jax.tasks.classification import Classification, ConfusionCounts
from mnv2_jax.tasks.task import Task
from mnv2_jax.training.devices import DATA, SEED, Devices, Program
from mnv2_jax.training.step import Learner, TrainState, eval_step
from mnv2_jax.weights.load import SOURCES
from mnv2_jax.wording import counted

EVALUATION_BATCH = 256
"""Images per evaluation batch; one per device if there are more devices than this."""


MOST_CONFUSED = 4096
"""Maximum number of classes for a confusion matrix; a larger one would take too much device memory."""


def evaluation_size(devices: Devices) -> int:
    """Return the size of an evaluation batch: close to `EVALUATION_BATCH`, with as many images on each device."""
    return devices.per_run * max(1, EVALUATION_BATCH // devices.per_run)


def evaluation_shapes(dataset: Dataset, size: int) -> Batch:
    """Return the shapes of an evaluation batch."""

    def empty() -> Batch:
        targets = jax.tree.map(lambda leaf: jnp.zeros((size, *np.shape(leaf)), leaf.dtype), dataset.targets.empty())
        index = jnp.zeros(size, jnp.int32)
        return Batch(jnp.zeros((size, *dataset.image_shape)), targets, index.astype(jnp.float32), index)

    return jax.eval_shape(empty)


def describe_evaluation(learner: Learner, state: Any, batch: Batch, devices: Devices) -> Program:
    """Return the program that adds a batch's sums to totals, and outputs what the task's evaluator needs.

    Args:
        learner: model and task.
        state, batch: the states of all runs and one batch, or their shapes.
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
    """Return zero sums for every run, on the host."""
    return {name: np.zeros((devices.runs, *leaf.shape), leaf.dtype) for name, leaf in task.zeros().items()}


def fetch(totals: Any) -> list[dict[str, Any]]:
    """Fetch totals from the devices, one dictionary per run. Blocks until they are ready. Scalars become floats."""
    fetched = {name: np.asarray(leaf, np.float64) for name, leaf in jax.device_get(totals).items()}
    return [
        {name: float(value) if np.ndim(value) == 0 else value for name, value in zip(fetched, run, strict=True)}
        for run in zip(*fetched.values(), strict=True)
    ]


def metrics_of(task: Task, sums: dict[str, Any]) -> dict[str, float]:
    """Return the task's metrics of one run and "examples", rounded because weights of mixed images sum inexactly."""
    return {**task.metrics(sums), "examples": round(sums["examples"])}


def evaluate(
    program: Callable, state: TrainState, batches: Iterable[Batch], task: Task, devices: Devices
) -> list[dict[str, float]]:
    """Return metrics over every example of a split, each counted once; one entry per run. See `measure`."""
    return [metrics for metrics, _ in measure(program, state, batches, task, devices)]


def measure(
    program: Callable, state: TrainState, batches: Iterable[Batch], task: Task, devices: Devices
) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Return (metrics, underlying sums) over every example of a split, each counted once; one entry per run.

    Args:
        program: compiled from `describe_evaluation`.
        state: of all runs.
        batches: this process's part of each batch.
        task: defines the metrics.
        devices: of the runs.
    """
    totals = devices.put(stacked_zeros(task, devices), SEED)
    asked = []
    for batch in batches:
        totals, own = program(state, totals, devices.put(batch, DATA))
        if own is not None:
            asked.append(jax.device_get(own))
    found = [(metrics_of(task, sums), sums) for sums in fetch(totals)]
    if task.evaluator is not None:
        for run, (metrics, _) in enumerate(found):
            own = [jax.tree.map(lambda leaf, run=run: leaf[run], batch) for batch in asked]
            metrics.update(task.evaluator.metrics(own))
    return found


def evaluate_network(network: Network, dataset: Dataset, split: str) -> dict[str, float]:
    """Return the metrics of any network over every example of a split."""
    return measure_network(network, dataset, split)[0]


def measure_network(network: Network, dataset: Dataset, split: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return (metrics, sums) of a network over every example of a split."""
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
    return measure(program, state, _chain(first, batches), network.task, devices)[0]


def _chain(first: Batch, others: Iterable[Batch]) -> Iterable[Batch]:
    yield first
    yield from others


class Evaluation(NamedTuple):
    """Results of a network on a split.

    Attributes:
        metrics: the task's metrics, and "examples", the number of examples counted.
        skipped: images that were skipped, and why.
        said: what was found and how it was read, one line each.
        class_names: of the data, in the network's order.
        confusion: number of images of each true class (row) predicted as each class (column). None if the task has no
            classes or more than `MOST_CONFUSED`, or if some outputs of the network are NaN.
    """

    metrics: dict[str, float]
    skipped: list[str]
    said: list[str]
    class_names: tuple[str, ...]
    confusion: np.ndarray | None


def evaluate_on(
    network: Network,
    dataset: str,
    split: str,
    data_files: Path | None = None,
    resolution: int | None = None,
    on_bad_image: OnBadImage = "stop",
    exif_orientation: ExifOrientation = "apply",
    trained_on: str | None = None,
    named: bool = True,
) -> Evaluation:
    """Evaluate a network on a whole split of a data set, with the network's own preprocessing.

    Args:
        network: the network.
        dataset, data_files, on_bad_image, exif_orientation: see `load_stream`. Classes are matched by name.
        resolution: side of the images in pixels; the network's own if None.
        split: "train", "validation" or "test", or "all" for all images.
        trained_on: fingerprint of the training data, if these should be the same data; None skips the check.
        named: whether the user named the data. If not, data that changed since the training raise an error.

    Raises:
        UserError: if the data are missing, have other classes than the network, or have changed and were not named.
    """
    data = load_stream(
        dataset,
        data_files=data_files,
        resolution=resolution or network.resolution,
        on_bad_image=on_bad_image,
        targets=network.task.targets,
        exif_orientation=exif_orientation,
        whole=split == "all",
    )
    numbers, said = match_classes(network, data.class_names, data.name)
    if numbers is not None:
        data = dataclasses.replace(data, targets=ClassTargets(numbers))
    said = [*data.said, *said]
    if dataset == FOLDER and split != "all":
        images = sum(map(data.count, data.sources))
        said.append(
            f"evaluates {data.count(split):,} of {counted(images, 'image')}: the {split} split "
            "(use --split all for all of them)"
        )
    if split != "all" and trained_on not in (None, data.fingerprint()):
        changed = "files were added, removed or renamed since training"
        if not named:
            raise UserError(
                f"{data.name}: {changed}, so its splits differ; use --data-files {data.name} to evaluate them as "
                "they are"
            )
        said.append(f"{changed}: images that it was trained on may be evaluated")
    data = data.prepared_as(network.preprocessing, network.image_channels)
    if type(network.task) is Classification:
        if network.task.num_classes <= MOST_CONFUSED:
            network = network.replace(task=ConfusionCounts(**dataclasses.asdict(network.task)))
        else:
            said.append(f"no results per class: there are more than {MOST_CONFUSED} classes")
    metrics, sums = measure_network(network, data, split)
    confusion = sums.get("confusion")
    if confusion is not None and math.isnan(metrics["loss"]):
        said.append("no results per class: for some images the network's outputs are not finite")
        confusion = None
    names = data.class_names if numbers is None else tuple(network.class_names or ())
    return Evaluation(metrics, sorted(data.skipped), said, names, confusion)


def match_classes(network: Network, names: Sequence[str], dataset: str) -> tuple[tuple[int, ...] | None, list[str]]:
    """Match the classes of the data to those of the network.

    Returns:
        The network's index of each class of the data, or None if the order is the same; and remarks, one line each.

    Raises:
        UserError: if the classes differ; names those that only one side has.
    """
    theirs = [unicodedata.normalize("NFC", name) for name in network.class_names or ()]
    if tuple(theirs) == tuple(names):
        return None, []
    count = network.model.num_classes
    if set(theirs) == set(names) and len(theirs) == len(names):
        return tuple(theirs.index(name) for name in names), [
            "the network's classes are in a different order; matched by name"
        ]
    # Other code bases have other names for the same classes, or none.
    foreign = not theirs or (network.source in SOURCES and not set(theirs) & set(names))
    if foreign and count == len(names):
        first = f"its first is {theirs[0]!r}" if theirs else "it has no class names"
        return None, [f"the network's classes are matched by index: {first}, the first of the data is {names[0]!r}"]
    odd = [f"{count} in the network, {len(names)} in the data"] if count != len(names) else []
    for owner, own, other in (("network", theirs, names), ("data", names, theirs)):
        if theirs and (lacking := sorted(set(own) - set(other))):
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            odd.append(f"only in the {owner}: {', '.join(lacking[:5])}{more}")
    raise UserError(f"the network's classes differ from those of {dataset}: {'; '.join(odd)}")
