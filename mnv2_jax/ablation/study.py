"""A study: arms that differ in one thing, each trained with the same seeds."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mnv2_jax.data.resident import Dataset
from mnv2_jax.errors import UserError
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.create import MODELS, create_model, setting_names
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.optimizer import create_optimizer
from mnv2_jax.training.step import Learner
from mnv2_jax.weights.load import Weights

FORMAT = 2
"""Of a study's folder; another one's is not continued."""
BASE = "mobilenet_v2"
"""The network of an arm that names none."""

FigureKind = Literal["arms", "sweep", "tradeoff", "memory"]
"""How a study is drawn: its arms side by side; against a number; against what they cost; and layer by layer."""


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """What the paper found: `difference` in top-1 accuracy (a fraction) to its baseline, `where`, and `how` read."""

    difference: float
    where: str
    how: str


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network under study.

    Attributes:
        name: in files and figures.
        model: what it changes in the study's network, as `create_model` takes it; "name" is another network's.
        paper: the paper's own result for it, if there is one.
        resolution: side of its images in pixels; None for the data set's.
        series: arms of one series are joined in figures that draw them against something.
        value: what the arms of a sweep differ in.
    """

    name: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: PaperResult | None = None
    resolution: int | None = None
    series: str = ""
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        experiment: name of the script, and of the question where a script has several.
        question: one sentence, for the report.
        claim: the paper's answer, with the section, for the report.
        dataset: name in the catalog.
        arms: the first is the baseline.
        model: settings that all arms share, each as far as its network has it.
        training: how each run is trained.
        seeds: run with seeds 0, 1, ..., seeds - 1.
        train_images: train on the first of the training split only; None for all.
        tune: choose a learning rate for each arm first, on the validation split.
        figure: how it is drawn.
        axis: what the arms of a sweep differ in, for the figure.
        notes: sentences for the report: what was matched, what the reader should know.
    """

    experiment: str
    question: str
    claim: str
    dataset: str
    arms: tuple[Arm, ...]
    model: Mapping[str, Any]
    training: TrainConfig
    seeds: int
    train_images: int | None = None
    tune: bool = False
    figure: FigureKind = "arms"
    axis: str = ""
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    def with_arms(self, names: Sequence[str]) -> "Study":
        """The study of these arms and the baseline alone.

        Raises:
            UserError: for a name that no arm has; says which there are.
        """
        known = [arm.name for arm in self.arms]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"--arms: there is no arm {unknown[0]!r}; this study has {', '.join(known)}")
        kept = tuple(arm for arm in self.arms if arm is self.baseline or arm.name in names)
        return dataclasses.replace(self, arms=kept)


ARM = "arm "
"""What the settings of an arm are kept under in a study's config.json, before its name."""


def identity(study: Study) -> dict[str, Any]:
    """What makes two studies the same one, flat, as in config.json. More seeds and more arms extend a study."""
    return {
        "format": FORMAT,
        "experiment": study.experiment,
        "dataset": study.dataset,
        "train_images": study.train_images,
        "baseline": study.baseline.name,
        "tune": study.tune,
        **study.model,
        **dataclasses.asdict(study.training),
        **{f"{ARM}{arm.name}": {**arm.model, "resolution": arm.resolution} for arm in study.arms},
    }


def families(study: Study) -> list[tuple[Arm, ...]]:
    """The arms, those together that one program serves: they differ in what follows the bottlenecks, and in nothing else.

    To compile a program takes as long as to train some of a study's runs; to choose between activations, next to nothing.
    """
    found: dict[str, list[Arm]] = {}
    for arm in study.arms:
        rest = {**study.model, **arm.model, "bottleneck_activation": None, "resolution": arm.resolution}
        found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(arm)
    return [tuple(arms) for arms in found.values()]


def images_of(study: Study, family: Sequence[Arm], dataset: Dataset) -> Dataset:
    """The images of a family, at its resolution."""
    resolution = family[0].resolution
    return dataset if resolution is None else dataset.at(resolution)


def model_of(study: Study, arm: Arm) -> dict[str, Any]:
    """The settings of an arm's network, as `create_model` takes them: the study's, as far as it has them, and its own."""
    name = arm.model.get("name", BASE)
    shared = {key: value for key, value in study.model.items() if key in setting_names(MODELS[name])}
    return {"name": name, **shared, **arm.model}


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
