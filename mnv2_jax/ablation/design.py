"""What a study asks: its arms, what they have in common, and what the paper found. Described without loading JAX."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mnv2_jax.errors import UserError
from mnv2_jax.training.config import TrainConfig

FORMAT = 2
"""Of a study's folder; another one's is not continued."""
FigureKind = Literal["arms", "sweep", "tradeoff", "memory", "grid"]
"""How a study is drawn: its arms side by side; against a number; against what they cost; layer by layer; against two numbers."""


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
        series: arms of one series are joined in figures that draw them against something; a grid's row.
        value: what the arms of a sweep differ in; a grid's column. Arms of a grid without one stand beside it.
        note: a sentence for the report, of how it was matched for instance.
    """

    name: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: PaperResult | None = None
    resolution: int | None = None
    series: str = ""
    value: float | None = None
    note: str = ""


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
        validation_images: of the learning curves, and of the choice of learning rates; None for the whole split.
        tune: choose a learning rate for each arm first, on the validation split.
        figure: how it is drawn.
        axis: what the arms of a sweep differ in, for the figure; of a grid, what its columns and its rows are, "X|Y".
        published: (series, multiply-adds, top-1 as a fraction) of the paper's own networks, for the figure.
        paper_range: (lowest, highest, what the paper says of values between), for a sweep's figure.
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
    validation_images: int | None = None
    tune: bool = False
    figure: FigureKind = "arms"
    axis: str = ""
    published: tuple[tuple[str, float, float], ...] = ()
    paper_range: tuple[float, float, str] | None = None

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
        "validation_images": study.validation_images,
        "baseline": study.baseline.name,
        "tune": study.tune,
        **study.model,
        **dataclasses.asdict(study.training),
        **{f"{ARM}{arm.name}": {**arm.model, "resolution": arm.resolution} for arm in study.arms},
    }


class Run(NamedTuple):
    """One training: an arm's name, a seed, and a factor of the study's learning rate."""

    arm: str
    seed: int
    rate: float = 1.0
