"""The networks of a study's arms, and which arms share a program."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from mnv2_jax.ablation.design import Arm, Study
from mnv2_jax.data.batch import Dataset
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import layer_costs
from mnv2_jax.models.create import find_model, model_settings, setting_names
from mnv2_jax.network import Network
from mnv2_jax.training.config import Recipe, Run
from mnv2_jax.training.create import (
    check_batch_norm,
    create_dataset,
    create_learner,
    create_network,
    data_settings,
    network_of,
)
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.step import Learner

BASE = "mobilenet_v2"
"""The network of an arm that names none."""


SIZES = ("width_multiplier", "expansion", "reduction", "stages")
"""Settings that are all in the layers' shapes."""

IDLE = {
    "batch_norm": "with one device a run",
    "smallest_crop": "for images of one size",
    "color_distortion": "for images of one size",
}
"""Settings of training that may change nothing, and where."""


def with_shared(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings, as `create_model` takes them: the shared ones as far as it has them, and its own."""
    name = own.get("name") or shared.get("name") or BASE
    known = setting_names(find_model(name))
    return {"name": name, **{key: value for key, value in shared.items() if key in known}, **own}


def run_of(study: Study, arm: Arm, seed: int = 0) -> Run:
    """A run of an arm, with all settings of its network."""
    return dataclasses.replace(study.run(arm, seed), model=with_shared(study.model, arm.model))


def network_of_arm(study: Study, arm: Arm, dataset: Dataset) -> nn.Module:
    """The network of an arm."""
    return create_network(run_of(study, arm), dataset)


def image_shape(arm: Arm, dataset: Dataset) -> tuple[int, int, int]:
    """(height, width, channels) of what an arm sees."""
    side = arm.resolution or dataset.image_shape[0]
    return side, side, dataset.image_shape[2]


def data_of_arm(study: Study, arm: Arm, dataset: Dataset, start: Network | None = None) -> Dataset:
    """The study's data as an arm sees them: varied as its own training asks, and at its resolution.

    `start` is the trained network that the study's data are prepared for, if there is one.
    """
    common = dataclasses.replace(study.run(study.baseline), resolution=study.resolution, weights=study.weights)
    own = dataclasses.replace(common, training=arm.recipe(study.training))
    if data_settings(own) != data_settings(common):
        dataset = create_dataset(own, start=start)
    return dataset if arm.resolution is None else dataset.at(arm.resolution)


def devices_a_run(recipe: Recipe, dataset: Dataset) -> int:
    """One, but for a stream, which belongs to one run, and on several hosts: there a run has all devices."""
    shared = dataset.train_data(recipe.batch_size, recipe.accumulation).shared
    return 1 if shared and jax.process_count() == 1 else jax.device_count()


def check_arms(study: Study, dataset: Dataset, start: Network | None = None) -> None:
    """Refuse an arm that cannot be trained, and two that are the same, which would only tell how two runs of it differ.

    Raises:
        UserError: names them.
    """
    known: list[tuple[Any, Arm]] = []
    for arm in study.arms:
        try:
            what = _seen(study, arm, data_of_arm(study, arm, dataset, start))
        except (UserError, ValueError) as error:
            raise UserError(f"the arm {arm.name}: {error}") from error
        same = next((other for seen, other in known if seen == what), None)
        if same is not None:
            theirs, own = (dataclasses.asdict(each.recipe(study.training)) for each in (same, arm))
            idle = " and ".join(f"{name} changes nothing {IDLE[name]}" for name in own if own[name] != theirs[name])
            raise UserError(
                f"the arms {same.name} and {arm.name} are the same network, trained alike"
                + (f" ({idle})" if idle else "")
                + "; leave one of them out"
            )
        known.append((what, arm))


def _seen(study: Study, arm: Arm, data: Dataset) -> Any:
    """All that an arm's results follow from; of two arms with the same, one is too many."""
    recipe = study.run(arm).training
    recipe.steps(data.train_images)
    devices = devices_a_run(recipe, data)
    Devices.create(1, None if devices > 1 else 1).check_divides(recipe.batch_size, recipe.accumulation, recipe.mixup)
    network = network_of_arm(study, arm, data)
    # Two widths may round to the same channels.
    layers = layer_costs(network, data.image_shape)
    model = {name: value for name, value in model_settings(network).items() if name not in SIZES}
    training = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in IDLE}
    varied = [getattr(data, name, None) for name in ("augmentation", "crop", "color")]
    norm = recipe.batch_norm if devices > 1 else None
    return layers, model, training, norm, varied, arm.resolution, arm.started


def batch_norm_notes(study: Study, dataset: Dataset) -> list[str]:
    """What has to be said of the images that batch norm takes its statistics over; see `check_batch_norm`."""
    notes: dict[str, None] = {}
    for arm in study.arms:
        run = run_of(study, arm)
        own = dataset if arm.resolution is None else dataset.at(arm.resolution)
        notes |= dict.fromkeys(check_batch_norm(run, own, devices_a_run(run.training, own)))
    return list(notes)


def batch_notes(study: Study, dataset: Dataset) -> list[str]:
    """What has to be said of batches of several sizes: how many steps each arm has, and what is not paired any more."""
    if len(study.batch_sizes) == 1:
        return []
    recipes = {arm.name: arm.recipe(study.training) for arm in study.arms}
    steps = [f"{name} {each.steps(dataset.train_images):,} of {each.batch_size}" for name, each in recipes.items()]
    return [
        f"Every run sees {study.training.images:,} images, in steps: {', '.join(steps)}. Batches of other sizes keep "
        "the order of the images within an epoch, and shift and mirror them differently."
    ]


def families(study: Study) -> list[tuple[Arm, ...]]:
    """The arms, those together that one program serves: they differ in what follows the bottlenecks, or in what they start
    from, and in nothing else, their training included.

    To compile a program takes as long as to train some of a study's runs; to choose between activations, next to nothing.
    """
    found: dict[str, list[Arm]] = {}
    for arm in study.arms:
        model = with_shared(study.model, arm.model)
        if "bottleneck_activation" in setting_names(find_model(model["name"])):
            model["bottleneck_activation"] = None
        key = [model, dataclasses.asdict(arm.recipe(study.training)), arm.resolution]
        found.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(arm)
    return [tuple(arms) for arms in found.values()]


def learner_of(study: Study, family: Sequence[Arm], dataset: Dataset, devices: int = 1) -> Learner:
    """What the steps of a family need on so many devices; of several activations, a run has its own by its number."""
    networks = [network_of_arm(study, arm, dataset) for arm in family]
    activations: list[Any] = [getattr(network, "bottleneck_activation", None) for network in networks]
    differ = activations if len(set(activations)) > 1 else []
    # Of a frozen backbone the recipe says so, whether or not this arm has the weights.
    run = run_of(study, next((arm for arm in family if arm.started), family[0]))
    return create_learner(run, dataset, devices, activations=differ, rated=study.tune)


def trained_network(study: Study, arm: Arm, dataset: Dataset, variables: Mapping[str, Any]) -> Network:
    """A trained network with what it takes to use it on other images."""
    network = network_of(run_of(study, arm), dataset, source=study.experiment)
    return network.replace(variables=variables)
