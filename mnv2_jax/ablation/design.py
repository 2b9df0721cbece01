"""What a study asks: its arms, what they have in common, and what the paper found. Described without loading JAX."""

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
"""Of a study's folder; another one's is not continued."""
FigureKind = Literal["arms", "sweep", "tradeoff", "memory", "grid"]
"""How a study is drawn: its arms side by side; against a number; against what they cost; layer by layer; against two numbers."""


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """What the paper found: `difference` in top-1 accuracy (a fraction) to its baseline, `where`, and `how` read."""

    difference: float
    where: str
    how: str


TRAINING = tuple(field.name for field in dataclasses.fields(Recipe))
"""Settings of an arm's training."""
OF_STUDY = ("epochs", "images", "evaluations")
"""Those that all arms share: every run sees as many images, and is evaluated after as many of them."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network under study, and how it is trained.

    Attributes:
        name: in files and figures.
        model: what it changes in the study's network, as `create_model` takes it; "name" is another network's.
        training: what it changes in the study's recipe, by the names of `Recipe`: {"label_smoothing": 0.1}.
        started: whether it starts from the study's trained weights.
        paper: the paper's own result for it, if there is one.
        resolution: side of its images in pixels; None for the data set's.
        series: arms of one series are joined in figures that draw them against something; a grid's row.
        value: what the arms of a sweep differ in; a grid's column. Arms of a grid without one stand beside it.
        note: a sentence for the report, of how it was matched for instance.

    Raises:
        UserError: for a training setting that there is not, or that all arms share; for a value that no recipe has.
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
            raise UserError(f"an arm's files have its name, so it must have one without /, got {self.name!r}")
        for name in self.model:
            if name in TRAINING:
                raise self._error(f"{name} is a setting of training; put it there: training={{{name!r}: ...}}")
            if name == "num_classes":
                raise self._error(f"{name} follows from the data; leave it out")
        for name in self.training:
            if name not in TRAINING:
                known = [each for each in TRAINING if each not in OF_STUDY]
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise self._error(f"there is no training setting {name!r}; {hint}")
            if name in OF_STUDY:
                raise self._error(f"all arms share {name}, so that all see the same images; set it for the study")
        # What needs another setting, the study may have.
        alone = {name: value for name, value in self.training.items() if name not in ONLY_WITH}
        self._changed(Recipe(epochs=1, batch_size=1, learning_rate=1.0), alone)

    def recipe(self, recipe: Recipe) -> Recipe:
        """How it is trained in a study with this recipe.

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
        return UserError(f"the arm {self.name}: {why}")


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
        training: how each run is trained, as far as its arm does not change it.
        seeds: run with seeds 0, 1, ..., seeds - 1.
        train_images: train on the first of the training split only; None for all.
        validation_images: of the learning curves, and of the choice of learning rates; None for the whole split.
        resolution: side of the images in pixels; None for the data set's own.
        streamed, data_files, exif_orientation: as of a run.
        weights: trained weights that arms may start from; all arms then have their network.
        task: what is learnt, a name in `mnv2_jax.tasks.task.TASKS`; its metric decides.
        tune: choose a learning rate for each arm first, on the validation split.
        figure: how it is drawn.
        axis: what the arms of a sweep differ in, for the figure; of a grid, what its columns and its rows are, "X|Y".
        published: (series, multiply-adds, top-1 as a fraction) of the paper's own networks, for the figure.
        paper_range: (lowest, highest, what the paper says of values between), for a sweep's figure.

    Raises:
        UserError: for two arms of one name, and for training settings of an arm that do not go with the study's.
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
            raise UserError(f"two arms are called {twice[0]}; give each a name of its own")
        for arm in self.arms:
            arm.recipe(self.training)

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def title(self) -> str:
        """What to call the data: the catalog's title, or the name of the user's folder."""
        if self.dataset in CATALOG:
            return CATALOG[self.dataset].title
        return self.data_files.resolve().name if self.dataset == FOLDER and self.data_files else self.dataset

    def run(self, arm: Arm, seed: int = 0) -> Run:
        """A run of an arm; its model's settings as far as the arm and the study say them."""
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
        """Images a step, of all arms; one where they are all the study's."""
        own = self.training.batch_size
        return tuple(sorted({own, *(arm.recipe(self.training).batch_size for arm in self.arms)}))

    def at_equal_images(self, train_images: int) -> "Study":
        """The study with one number of images for all runs, where arms have batches of several sizes; else as it is.

        That number is the largest up to the study's own that is a whole number of batches of each size.

        Raises:
            UserError: if there is none.
        """
        if len(self.batch_sizes) == 1:
            return self
        steps, unit = self.training.steps(train_images), math.lcm(*self.batch_sizes)
        images = steps * self.training.batch_size
        if images < unit:
            sizes = ", ".join(map(str, self.batch_sizes))
            raise UserError(
                f"no number of images up to {images:,} is a whole number of batches of {sizes} each; "
                f"train longer, or take sizes that divide one another"
            )
        return dataclasses.replace(self, training=dataclasses.replace(self.training, images=images // unit * unit))

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
    """A network's settings as JSON can hold them: a block or an activation of one's own by its module and name."""

    def name(value: Any) -> Any:
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else value

    return {setting: name(value) for setting, value in settings.items()}


# --- From flags ------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.02)
"""Of a study on digits: a minute for two arms. The learning rate warms up, then falls as a cosine to zero."""

Flat = tyro.conf.arg(name="")
LARGEST_SEEDS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Flags of a study. What follows a field is its help."""

    data: Annotated[DataSettings, Flat] = DataSettings()
    """What to train and test on."""
    validation_images: int | None = None
    """Draw learning curves, and choose learning rates, on this many images of the validation split; all if not given."""
    arms: tuple[str, ...] = ()
    """Only these arms, besides the baseline; all of them if not given."""
    seeds: int | None = None
    """Runs an arm; if not given, the fewest with which p < 0.05 can be reached for every comparison that is made."""
    tune: bool = False
    """Choose each arm's learning rate first, of half, once and twice --learning-rate, on the validation split."""
    network: Annotated[SharedSettings, Flat] = SharedSettings(width_multiplier=0.35, expansion=6.0)
    """What all networks have in common."""
    training: Annotated[Recipe, Flat] = RECIPE
    """How parameters change."""
    out: Path | None = None
    """Folder for the results; runs/EXPERIMENT-DATASET if not given."""
    overwrite: bool = False
    """Replace the study that --out holds instead of continuing it."""

    def __post_init__(self):
        usual = type(self).__dataclass_fields__["network"].default
        for name in ("width_multiplier", "expansion"):
            if getattr(self.network, name) is None and getattr(usual, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} must be a number, from which the arms are made")


def image_size(data: DataSettings) -> int:
    """Side in pixels of the images that the flags ask for."""
    entry = CATALOG.get(data.dataset)
    return data.resolution or (entry.image_size if entry else 224)


def shared_settings(options: StudyOptions) -> dict[str, Any]:
    """What the networks of all arms have in common, each as far as it has it."""
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
    """The study that the flags describe.

    Args:
        options: the flags.
        arms: all arms, the baseline first; the flags may ask for fewer.
        described: the other attributes of `Study`.

    Raises:
        UserError: for bad input.
    """
    model = shared_settings(options)
    if "weights" in described:
        # What is not given, the weights decide.
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
        raise UserError(f"there is no arm to compare {study.baseline.name} with; name another")
    from mnv2_jax.ablation.statistics import seeds_needed

    if options.seeds is not None and options.seeds > LARGEST_SEEDS:
        raise UserError(f"--seeds must be {LARGEST_SEEDS} or fewer, got {options.seeds}")
    seeds = seeds_needed(len(study.arms) - 1) if options.seeds is None else options.seeds
    return dataclasses.replace(study, seeds=seeds)
