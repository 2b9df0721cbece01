"""The networks of a study's arms, and which arms share a compiled program."""

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
"""The network of an arm that does not name one."""


SIZES = ("width_multiplier", "expansion", "reduction", "stages")
"""Settings that only affect the layers' shapes."""

IDLE = {
    "batch_norm": "with one device per run",
    "smallest_crop": "for images of one size",
    "color_distortion": "for images of one size",
}
"""Training settings that may have no effect, and when."""


def with_shared(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the shared settings that the network has with its `own`; returns arguments of `create_model`."""
    name = own.get("name") or shared.get("name") or BASE
    known = setting_names(find_model(name))
    return {"name": name, **{key: value for key, value in shared.items() if key in known}, **own}


def run_of(study: Study, arm: Arm, seed: int = 0) -> Run:
    """Return a run of an arm, with all settings of its network."""
    return dataclasses.replace(study.run(arm, seed), model=with_shared(study.model, arm.model))


def network_of_arm(study: Study, arm: Arm, dataset: Dataset) -> nn.Module:
    """Create the network of an arm."""
    return create_network(run_of(study, arm), dataset)


def image_shape(arm: Arm, dataset: Dataset) -> tuple[int, int, int]:
    """Return (height, width, channels) of an arm's input images."""
    side = arm.resolution or dataset.image_shape[0]
    return side, side, dataset.image_shape[2]


def data_of_arm(study: Study, arm: Arm, dataset: Dataset, start: Network | None = None) -> Dataset:
    """Return the study's data with an arm's own augmentation and resolution.

    `start` is the trained network whose preprocessing the study's data use, if there is one.
    """
    common = dataclasses.replace(study.run(study.baseline), resolution=study.resolution, weights=study.weights)
    own = dataclasses.replace(common, training=arm.recipe(study.training))
    if data_settings(own) != data_settings(common):
        dataset = create_dataset(own, start=start)
    return dataset if arm.resolution is None else dataset.at(arm.resolution)


def devices_a_run(recipe: Recipe, dataset: Dataset) -> int:
    """Return the number of devices per run: one, or all devices for streamed data or with several processes.

    A stream cannot be shared between runs.
    """
    shared = dataset.train_data(recipe.batch_size, recipe.accumulation).shared
    return 1 if shared and jax.process_count() == 1 else jax.device_count()


def check_arms(study: Study, dataset: Dataset, start: Network | None = None) -> None:
    """Check that every arm can be trained and that no two are the same. Identical arms would only measure noise.

    Raises:
        UserError: if an arm cannot be trained, or two are the same; names them.
    """
    known: list[tuple[Any, Arm]] = []
    for arm in study.arms:
        try:
            what = _seen(study, arm, data_of_arm(study, arm, dataset, start))
        except (UserError, ValueError) as error:
            raise UserError(f"arm {arm.name}: {error}") from error
        same = next((other for seen, other in known if seen == what), None)
        if same is not None:
            theirs, own = (dataclasses.asdict(each.recipe(study.training)) for each in (same, arm))
            idle = " and ".join(f"{name} has no effect {IDLE[name]}" for name in own if own[name] != theirs[name])
            raise UserError(
                f"the arms {same.name} and {arm.name} are the same network, trained the same way"
                + (f" ({idle})" if idle else "")
                + "; remove one of them"
            )
        known.append((what, arm))


def _seen(study: Study, arm: Arm, data: Dataset) -> Any:
    """Return everything that determines an arm's results. Arms for which this is equal are duplicates."""
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
    """Return notes about batch norm over very few images; see `check_batch_norm`."""
    notes: dict[str, None] = {}
    for arm in study.arms:
        run = run_of(study, arm)
        own = dataset if arm.resolution is None else dataset.at(arm.resolution)
        notes |= dict.fromkeys(check_batch_norm(run, own, devices_a_run(run.training, own)))
    return list(notes)


def batch_notes(study: Study, dataset: Dataset) -> list[str]:
    """Return notes for arms with different batch sizes: the steps of each arm, and what is no longer paired by seed."""
    if len(study.batch_sizes) == 1:
        return []
    recipes = {arm.name: arm.recipe(study.training) for arm in study.arms}
    steps = [f"{name} {each.steps(dataset.train_images):,} of {each.batch_size}" for name, each in recipes.items()]
    return [
        f"Every run sees {study.training.images:,} images, in steps: {', '.join(steps)}. Batches of other sizes keep "
        "the order of the images within an epoch, and shift and mirror them differently."
    ]


def families(study: Study) -> list[tuple[Arm, ...]]:
    """Group the arms that can share one compiled program.

    Arms of a family may differ in the activation after the bottlenecks and in whether they start from trained weights.
    Everything else, including training, is the same. Compiling a program can take as long as training some of a
    study's runs, while switching between activations costs next to nothing.
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
    """Create the learner of a family for `devices` devices per run.

    If the arms' activations differ, each run selects its own by index.
    """
    networks = [network_of_arm(study, arm, dataset) for arm in family]
    activations: list[Any] = [getattr(network, "bottleneck_activation", None) for network in networks]
    differ = activations if len(set(activations)) > 1 else []
    # Prefer an arm that starts from trained weights: its recipe says whether the backbone is frozen.
    run = run_of(study, next((arm for arm in family if arm.started), family[0]))
    return create_learner(run, dataset, devices, activations=differ, rated=study.tune)


def trained_network(study: Study, arm: Arm, dataset: Dataset, variables: Mapping[str, Any]) -> Network:
    """Return a trained network with everything needed to use it on other images."""
    network = network_of(run_of(study, arm), dataset, source=study.experiment)
    return network.replace(variables=variables)
