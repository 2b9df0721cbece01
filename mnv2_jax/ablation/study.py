"""The networks of a study, and which of its arms share a program."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mnv2_jax.ablation.design import Arm, Study
from mnv2_jax.data.resident import Dataset
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.create import MODELS, create_model, setting_names
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.step import Learner
from mnv2_jax.weights.load import Weights

BASE = "mobilenet_v2"
"""The network of an arm that names none."""


def families(study: Study) -> list[tuple[Arm, ...]]:
    """The arms, those together that one program serves: they differ in what follows the bottlenecks, and in nothing else.

    To compile a program takes as long as to train some of a study's runs; to choose between activations, next to nothing.
    """
    found: dict[str, list[Arm]] = {}
    for arm in study.arms:
        rest = {**model_of(study, arm), "resolution": arm.resolution}
        if "bottleneck_activation" in setting_names(MODELS[rest["name"]]):
            rest["bottleneck_activation"] = None
        else:
            rest["arm"] = arm.name
        found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(arm)
    return [tuple(arms) for arms in found.values()]


def with_shared(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings, as `create_model` takes them: the shared ones as far as it has them, and its own."""
    name = own.get("name", BASE)
    known = setting_names(MODELS[name])
    return {"name": name, **{key: value for key, value in shared.items() if key in known}, **own}


def model_of(study: Study, arm: Arm) -> dict[str, Any]:
    """The settings of an arm's network."""
    return with_shared(study.model, arm.model)


def create_network(study: Study, arm: Arm, dataset: Dataset) -> ImageClassifier:
    """The network of an arm."""
    momentum = study.training.norm_momentum(study.training.steps(dataset.train_images))
    return create_model(num_classes=dataset.num_classes, batch_norm_momentum=momentum, **model_of(study, arm))


def create_learner(study: Study, family: Sequence[Arm], dataset: Dataset) -> Learner:
    """What the steps of a family need; of several arms, a run chooses its own by its number in the family."""
    optimizer = create_optimizer(study.training, dataset.train_images)
    networks = [create_network(study, arm, dataset) for arm in family]
    network = networks[0]
    if len(family) > 1:
        network = network.clone(bottleneck_activation=tuple(each.bottleneck_activation for each in networks))  # type: ignore[attr-defined]
    return Learner(network, Classification(dataset.num_classes), optimizer, choices=len(family), rated=study.tune)


def trained_weights(study: Study, arm: Arm, dataset: Dataset, variables: dict[str, Any]) -> Weights:
    """A trained network with what it takes to use it on other images."""
    return Weights(
        create_network(study, arm, dataset),
        variables,
        source=study.experiment,
        preprocessing=dataset.preprocessing,
        resolution=dataset.image_shape[0],
        class_names=dataset.class_names,
        image_channels=dataset.image_shape[2],
    )
