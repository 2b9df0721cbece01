"""Create what a run's steps need from its settings: data, network, learner. Used by commands, studies and plans."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from mnv2_jax.data.batch import Dataset
from mnv2_jax.data.catalog import CATALOG, OnBadImage
from mnv2_jax.data.open import open_dataset
from mnv2_jax.data.rand_augment import RandAugment
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import layer_costs
from mnv2_jax.models.create import create_model
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.network import OWN, Network
from mnv2_jax.tasks.task import TASKS, Task
from mnv2_jax.training.config import Run
from mnv2_jax.training.distributed import wait_for_processes
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.step import DATA_AXIS, Learner


def data_settings(run: Run, start: Network | None = None) -> dict[str, Any]:
    """Return the arguments of `open_dataset` for a run; runs with equal ones see the same images, augmented alike."""
    entry = CATALOG.get(run.dataset)
    resolution = run.resolution
    if resolution is None and start is not None and (entry is None or entry.source_size is None):
        resolution = start.resolution  # images of many sizes are scaled to the network's resolution
    return dict(
        name=run.dataset,
        streamed=run.streamed,
        data_files=run.data_files,
        train_images=run.train_images,
        validation_images=run.validation_images,
        resolution=resolution,
        convention=run.model.get("convention") or "tensorflow",
        smallest_crop=run.training.smallest_crop,
        color=run.training.color_distortion,
        rand_augment=RandAugment(run.training.rand_augment, run.training.rand_augment_magnitude),
        exif_orientation=run.exif_orientation,
        targets=TASKS[run.task].targets,
    )


def create_dataset(run: Run, on_bad_image: OnBadImage = "stop", start: Network | None = None) -> Dataset:
    """Open the run's data, preprocessed as for the network it starts from, if any.

    Every process opens them, process 0 first, so that files that have to be prepared are written once.
    """
    settings = {**data_settings(run, start), "on_bad_image": on_bad_image}
    dataset = open_dataset(**settings) if jax.process_index() == 0 else None
    wait_for_processes("data")
    dataset = dataset or open_dataset(**settings)
    if not dataset.train_images:
        raise UserError(f"{run.data_files} contains only test images; expected a train folder next to them")
    return dataset if start is None else dataset.prepared_as(start.preprocessing, start.image_channels)


def create_task(run: Run, dataset: Dataset) -> Task:
    """Create the run's task."""
    return TASKS[run.task](dataset.num_classes, run.training.label_smoothing)


def create_network(run: Run, dataset: Dataset) -> nn.Module:
    """Create the run's network as it is saved; `create_learner` adds the settings that only training needs."""
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


def create_learner(
    run: Run, dataset: Dataset, devices: int, activations: Sequence[str] = (), rated: bool = False
) -> Learner:
    """Create what the steps of a run need besides state and batch.

    Args:
        run: the run, or any one of several that share a program.
        dataset: its data.
        devices: number of devices per run.
        activations: see `Learner`.
        rated: whether runs that share the program have their own learning-rate factors.
    """
    network, training = create_network(run, dataset), run.training
    changes: dict[str, Any] = {}
    if training.batch_norm == "global" and devices > 1:
        changes["batch_norm_axis"] = DATA_AXIS
    if training.frozen_batch_norm or training.freeze:
        changes["frozen_batch_norm"] = True
    layers = tuple(network.task_layers)  # type: ignore[attr-defined]
    return Learner(
        network.clone(**changes) if changes else network,
        create_task(run, dataset),
        create_optimizer(training, dataset.train_images, layers),
        training.accumulation,
        training.ema_decay,
        training.mixup,
        activations=tuple(activations),
        rated=rated,
        trained_layers=layers if training.freeze else None,
    )


def check_batch_norm(run: Run, dataset: Dataset, devices: int) -> list[str]:
    """Return warnings about batch statistics over too few images, for a run on this number of devices.

    Raises:
        UserError: if a layer would normalise over a single value per channel: its output is the same for every image.
    """
    training = run.training
    groups = training.accumulation * (devices if training.batch_norm == "replica" else 1)
    if training.frozen_batch_norm or training.freeze or training.batch_size // groups > 1:
        return []
    layers = layer_costs(create_network(run, dataset), dataset.image_shape)
    remedy = "use a larger --batch-size" + (", a smaller --accumulation or --batch-norm global" if groups > 1 else "")
    if any(layer.batch_norm_parameters and math.prod(layer.output_shape[:-1]) == 1 for layer in layers):
        raise UserError(
            f"batch norm would compute its statistics over one image of one pixel, so their variance is zero; {remedy}"
        )
    return [f"batch norm computes its statistics over one image at a time, unlike in evaluation; {remedy}"]


def network_of(run: Run, dataset: Dataset, source: str = OWN) -> Network:
    """Return the run's network without variables, with all that is needed to use it on other images."""
    return Network(
        create_network(run, dataset),
        {},
        create_task(run, dataset),
        source=source,
        preprocessing=dataset.preprocessing,
        resolution=dataset.image_shape[0],
        class_names=dataset.class_names,
        image_channels=dataset.image_shape[2],
    )
