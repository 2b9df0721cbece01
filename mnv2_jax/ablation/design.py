"""What a study asks: its arms, what they have in common, and what the paper found. Described without loading JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mnv2_jax.training.config import TrainConfig


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
        model: what it changes in the study's network, as attributes of `MobileNetV2`.
        paper: the paper's own result for it, if there is one.
    """

    name: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: PaperResult | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        experiment: name of the script.
        question: one sentence, for the report.
        claim: the paper's answer, with the section, for the report.
        dataset: name in the catalog.
        arms: the first is the baseline.
        model: attributes of `MobileNetV2` that all arms share.
        training: how each run is trained.
        seeds: run with seeds 0, 1, ..., seeds - 1.
        train_images: train on the first of the training split only; None for all.
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

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]


def identity(study: Study) -> dict[str, Any]:
    """What makes two studies the same one, flat, as in config.json. More seeds extend a study."""
    return {
        "experiment": study.experiment,
        "dataset": study.dataset,
        "train_images": study.train_images,
        "arms": [arm.name for arm in study.arms],
        **study.model,
        **dataclasses.asdict(study.training),
    }
