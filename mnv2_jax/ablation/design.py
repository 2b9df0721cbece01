"""Definition of a study: its arms, their shared settings, and the paper's results. Does not import JAX."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mnv2_jax.data.catalog import CATALOG, FOLDER, ExifOrientation
from mnv2_jax.errors import UserError
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.settings import DataSettings, SharedSettings
from mnv2_jax.training.config import ONLY_WITH, Recipe, Run

FORMAT = 3
"""Format version of a study's folder. Folders of another version are not continued."""
FigureKind = Literal["arms", "sweep", "tradeoff", "memory", "grid"]
"""Kind of figure: arms side by side; against a number; against cost; memory per layer; against two numbers."""


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """The paper's result: `difference` in top-1 accuracy from its baseline (a fraction), `where`, and `how` read."""

    difference: float
    where: str
    how: str


TRAINING = tuple(field.name for field in dataclasses.fields(Recipe))
"""Names of the training settings."""
OF_STUDY = ("epochs", "images", "evaluations")
"""Training settings that all arms share, so that every run sees the same number of images between evaluations."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network under study, and how it is trained.

    Attributes:
        name: in files and figures.
        model: arguments of `create_model` that override the study's; "name" selects another network.
        training: fields of `Recipe` that override the study's, such as {"label_smoothing": 0.1}.
        started: whether it starts from the study's trained weights.
        paper: the paper's own result for it, if there is one.
        resolution: side of its images in pixels; None for the study's.
        series: arms of one series are joined by a line in sweeps and trade-offs; the row of a grid.
        value: the swept value of a sweep; the column of a grid. Arms without a value are drawn beside the grid.
        note: a sentence for the report, for example how the arm was matched.

    Raises:
        UserError: for an unknown training setting, one that all arms share, or an invalid value.
    """

    name: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: PaperResult | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    started: bool = False
    resolution: int | None = None
    series: str = ""
    value: float | None = None
    note: str = ""

    def __post_init__(self):
        if not self.name or "/" in self.name:
            raise UserError(
                f"an arm's name is part of file names, so it must not be empty or contain /, got {self.name!r}"
            )
        for name in self.model:
            if name in TRAINING:
                raise self._error(f"{name} is a training setting; use training={{{name!r}: ...}}")
            if name == "num_classes":
                raise self._error(f"{name} is determined by the data; remove it")
        for name in self.training:
            if name not in TRAINING:
                known = [each for each in TRAINING if each not in OF_STUDY]
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
                raise self._error(f"unknown training setting {name!r}; {hint}")
            if name in OF_STUDY:
                raise self._error(f"all arms share {name}, so that they see the same images; set it for the study")
        # Settings that need another one are checked with the study's recipe, which may have it.
        alone = {name: value for name, value in self.training.items() if name not in ONLY_WITH}
        self._changed(Recipe(epochs=1, batch_size=1, learning_rate=1.0), alone)

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe of this arm in a study with this `recipe`.

        Raises:
            UserError: for settings that do not go together.
        """
        return self._changed(recipe, self.training)

    def _changed(self, recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
        try:
            return dataclasses.replace(recipe, **changes)
        except UserError as error:
            raise self._error(str(error)) from error

    def _error(self, why: str) -> UserError:
        return UserError(f"arm {self.name}: {why}")


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        experiment: name of the script, followed by that of the question if a script has several.
        question: one sentence, for the report.
        claim: the paper's answer, with the section, for the report.
        dataset: name in the catalog.
        arms: the first is the baseline.
        model: shared settings; an arm's network ignores those that it does not have.
        training: the recipe of every run, unless its arm overrides it.
        seeds: number of seeds per arm: 0, 1, ..., seeds - 1.
        train_images: train on only the first images of the training split; None for all.
        validation_images: number of validation images for learning curves and tuning; None for the whole split.
        resolution: side of the images in pixels; None for the data set's own.
        streamed, data_files, exif_orientation: as in `Run`.
        weights: trained weights that arms may start from; all arms then use their network.
        task: a name in `mnv2_jax.tasks.task.TASKS`; its metric decides the comparisons.
        tune: choose a learning rate for each arm first, on the validation split.
        figure: kind of figure.
        axis: label of a sweep's value in the figure; for a grid, "X|Y" labels its columns and rows.
        published: (series, multiply-adds, top-1 as a fraction) of the paper's own networks, for the figure.
        paper_range: (lowest, highest, what the paper says about values between), for a sweep's figure.

    Raises:
        UserError: for two arms with the same name, or an arm's training settings that conflict with the study's.
    """

    experiment: str
    question: str
    claim: str
    dataset: str
    arms: tuple[Arm, ...]
    model: Mapping[str, Any]
    training: Recipe
    seeds: int
    train_images: int | None = None
    validation_images: int | None = None
    resolution: int | None = None
    streamed: bool | None = None
    data_files: Path | None = None
    weights: str | None = None
    task: str = "classification"
    exif_orientation: ExifOrientation = "apply"
    tune: bool = False
    figure: FigureKind = "arms"
    axis: str = ""
    published: tuple[tuple[str, float, float], ...] = ()
    paper_range: tuple[float, float, str] | None = None

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two arms are named {twice[0]}; give each its own name")
        for arm in self.arms:
            arm.recipe(self.training)

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def title(self) -> str:
        """Title of the data: the catalog's title, or the name of the user's folder."""
        if self.dataset in CATALOG:
            return CATALOG[self.dataset].title
        return self.data_files.resolve().name if self.dataset == FOLDER and self.data_files else self.dataset

    def run(self, arm: Arm, seed: int = 0) -> Run:
        """Return a run of an arm. Model settings that neither the arm nor the study sets are left out."""
        return Run(
            dataset=self.dataset,
            model={**self.model, **arm.model},
            training=arm.recipe(self.training),
            seed=seed,
            resolution=arm.resolution or self.resolution,
            train_images=self.train_images,
            validation_images=self.validation_images,
            streamed=self.streamed,
            data_files=self.data_files,
            weights=self.weights if arm.started else None,
            task=self.task,
            exif_orientation=self.exif_orientation,
        )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The distinct batch sizes of the study and its arms, in rising order."""
        own = self.training.batch_size
        return tuple(sorted({own, *(arm.recipe(self.training).batch_size for arm in self.arms)}))

    def at_equal_images(self, train_images: int) -> "Study":
        """Return the study with the same number of training images for every batch size.

        That number is the largest, up to the study's own, that is a whole number of batches of each size. A study
        with one batch size is returned unchanged.

        Raises:
            UserError: if there is no such number.
        """
        if len(self.batch_sizes) == 1:
            return self
        steps, unit = self.training.steps(train_images), math.lcm(*self.batch_sizes)
        images = steps * self.training.batch_size
        if images < unit:
            sizes = ", ".join(map(str, self.batch_sizes))
            raise UserError(
                f"no number of images up to {images:,} is divisible by each of the batch sizes {sizes}; "
                "train longer, or use sizes that divide one another"
            )
        return dataclasses.replace(self, training=dataclasses.replace(self.training, images=images // unit * unit))

    def with_arms(self, names: Sequence[str]) -> "Study":
        """Return the study restricted to the baseline and these arms.

        Raises:
            UserError: for an unknown name; lists the arms.
        """
        known = [arm.name for arm in self.arms]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"unknown arm {unknown[0]!r} in --arms; choose from {', '.join(known)}")
        kept = tuple(arm for arm in self.arms if arm is self.baseline or arm.name in names)
        return dataclasses.replace(self, arms=kept)


ARM = "arm "
"""Prefix of an arm's key in a study's config.json; the arm's name follows."""


def identity(study: Study) -> dict[str, Any]:
    """Return the settings that identify a study, flat, as in config.json. More seeds or more arms extend a study."""
    return {
        "format": FORMAT,
        "experiment": study.experiment,
        "dataset": study.dataset,
        "train_images": study.train_images,
        "validation_images": study.validation_images,
        "resolution": study.resolution,
        "streamed": study.streamed,
        "weights": study.weights,
        "task": study.task,
        "baseline": study.baseline.name,
        "tune": study.tune,
        **({} if study.exif_orientation == "apply" else {"exif_orientation": study.exif_orientation}),
        **named(study.model),
        **study.training.settings(),
        **{f"{ARM}{arm.name}": _identity_of_arm(arm) for arm in study.arms},
    }


def _identity_of_arm(arm: Arm) -> dict[str, Any]:
    return {**named(arm.model), **arm.training, "resolution": arm.resolution, "started": arm.started}


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's settings as JSON values; custom blocks and activations become their qualified names."""

    def name(value: Any) -> Any:
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else value

    return {setting: name(value) for setting, value in settings.items()}


# --- From flags ------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=5, batch_size=32, learning_rate=0.02)
"""Default recipe, for digits: about a minute for two arms. The learning rate warms up, then decays to zero (cosine).

Chosen for ablate_bottleneck.py on the validation split, with 6 seeds, among images of 16 to 28 pixels, batches of 16
and 32, and learning rates of 0.01 to 0.04: at this cost, of the settings whose baseline reaches 96 % there, the one
whose results vary least between seeds.
"""

Flat = tyro.conf.arg(name="")
LARGEST_SEEDS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Flags of a study. The string below each field is its help text."""

    data: Annotated[DataSettings, Flat] = DataSettings()
    """Data to train and test on."""
    validation_images: int | None = None
    """Number of validation images for learning curves and --tune; all if not given."""
    arms: tuple[str, ...] = ()
    """Run only these arms and the baseline; all arms if not given."""
    seeds: int | None = None
    """Runs per arm; if not given, the smallest number with which every comparison can reach p < 0.05."""
    tune: bool = False
    """First choose each arm's learning rate on the validation split, in runs of a quarter of the images: 0.5, 1 or 2
    times --learning-rate, or beyond if the best is at an end."""
    reuse: tuple[Path, ...] = ()
    """Folders of other studies: runs that are the same there are taken over instead of trained again."""
    network: Annotated[SharedSettings, Flat] = SharedSettings(width_multiplier=0.35, expansion=6.0)
    """Settings that all networks share."""
    training: Annotated[Recipe, Flat] = RECIPE
    """Training recipe."""
    out: Path | None = None
    """Folder for the results; runs/EXPERIMENT-DATASET if not given."""
    overwrite: bool = False
    """Replace the study in --out instead of continuing it."""

    def __post_init__(self):
        usual = type(self).__dataclass_fields__["network"].default
        for name in ("width_multiplier", "expansion"):
            if getattr(self.network, name) is None and getattr(usual, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} must be a number, since the arms are derived from it")


def image_size(data: DataSettings) -> int:
    """Return the side of the images in pixels: --resolution, else the data set's own, else 224."""
    entry = CATALOG.get(data.dataset)
    return data.resolution or (entry.image_size if entry else 224)


def shared_settings(options: StudyOptions) -> dict[str, Any]:
    """Return the settings that all networks share; a network ignores those that it does not have."""
    entry, network = CATALOG.get(options.data.dataset), options.network
    fitting = unit_strides_for(image_size(options.data), entry.source_size if entry else None)
    shared = {
        "width_multiplier": network.width_multiplier,
        "expansion": network.expansion,
        "kernels": network.kernels,
        "unit_strides": fitting if network.unit_strides is None else network.unit_strides,
    }
    return shared if network.kernel_size is None else {**shared, "kernel_size": network.kernel_size}


def create_study(options: StudyOptions, *, arms: Sequence[Arm], **described: Any) -> Study:
    """Create the study that the flags describe.

    Args:
        options: the flags.
        arms: all arms, the baseline first; --arms may select fewer.
        described: the other attributes of `Study`.

    Raises:
        UserError: for bad input.
    """
    model = shared_settings(options)
    if "weights" in described:
        # If not given, the trained weights decide.
        model["unit_strides"] = options.network.unit_strides
    study = Study(
        arms=tuple(arms),
        model=model,
        training=options.training,
        seeds=0,
        validation_images=options.validation_images,
        tune=options.tune,
        **options.data.settings(),
        **described,
    )
    if options.arms:
        study = study.with_arms(options.arms)
    if len(study.arms) < 2:
        raise UserError(f"there is no arm to compare {study.baseline.name} with; add another")
    from mnv2_jax.ablation.statistics import seeds_needed

    if options.seeds is not None and options.seeds > LARGEST_SEEDS:
        raise UserError(f"--seeds must be {LARGEST_SEEDS} or fewer, got {options.seeds}")
    seeds = seeds_needed(len(study.arms) - 1) if options.seeds is None else options.seeds
    return dataclasses.replace(study, seeds=seeds)
