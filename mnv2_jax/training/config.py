"""Configuration of a run: training recipe, data and model, execution. Does not import JAX.

The string under a field is its command-line help. All values are checked here and nowhere else.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnv2_jax.data.catalog import ExifOrientation, OnBadImage
from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_types
from mnv2_jax.wording import counted

LEAST = 1e-30
"""Smallest value of settings that must not be zero; float32 reaches 1e-38, which leaves room for products."""
LARGEST_STEPS = 50_000_000
"""Maximum number of steps of a run: the learning rates of all steps are held in memory."""

ONLY_WITH = {
    "rmsprop_decay": ("optimizer", "rmsprop"),
    "rmsprop_epsilon": ("optimizer", "rmsprop"),
    "epoch_decay": ("schedule", "exponential"),
}
"""Recipe settings that have an effect only with a certain value of another setting: {setting: (other, value)}."""

Parallel = Literal["jit", "pmap"]
"""How the step is compiled for several devices; see `mnv2_jax.training.devices`."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Training settings; saved as JSON with every run."""

    epochs: int
    """Number of passes over the training images."""
    batch_size: int
    """Images per step, over all devices and microbatches."""
    learning_rate: float
    """Peak learning rate, for a batch of --learning-rate-images."""
    learning_rate_images: int | None = None
    """Batch size that --learning-rate refers to; the rate is scaled linearly to --batch-size. None: no scaling."""
    optimizer: Literal["sgd", "rmsprop", "adamw"] = "sgd"
    """SGD, RMSProp as in TensorFlow 1, or AdamW (common: --learning-rate 0.001 --weight-decay 0.05)."""
    momentum: float = 0.9
    """Momentum; beta1 of AdamW."""
    nesterov: bool = True
    """Use Nesterov momentum (SGD only)."""
    rmsprop_decay: float = 0.9
    """Decay of RMSProp's mean square per step."""
    rmsprop_epsilon: float = 1.0
    """Added to RMSProp's mean square."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """After the warmup: cosine decay to zero, or decay by --epoch-decay after every epoch."""
    warmup: float = 0.2
    """Fraction of the steps over which the learning rate rises linearly from zero."""
    epoch_decay: float = 0.98
    """Factor of the exponential schedule per epoch."""
    weight_decay: float = 4e-5
    """L2 penalty; with AdamW decoupled, so that each step subtracts learning rate x this x weight."""
    weight_decay_on: Literal["kernels", "all"] = "kernels"
    """Decay all kernels except depthwise ones, as in the paper's code, or every parameter."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes."""
    dropout_rate: float = 0.0
    """Fraction of the pooled features that is dropped."""
    mixup: float = 0.0
    """Mix pairs of training images and their labels; this is the a of Beta(a, a) (common: 0.2), 0 for none."""
    ema_decay: float = 0.0
    """Decay of the moving average of the parameters; 0 keeps no average."""
    batch_norm_momentum: float | None = None
    """Fraction of the running statistics kept per step; None chooses it by the length of the run."""
    batch_norm: Literal["global", "replica"] = "global"
    """Batch statistics over all devices, or per device (as in the paper, 96 images per worker)."""
    accumulation: int = 1
    """Number of microbatches that a device processes per step, in turn; each has its own batch statistics."""
    smallest_crop: float = 0.05
    """Smallest area of a random crop, as a fraction of the image; for images of many sizes."""
    color_distortion: bool = False
    """Vary brightness and saturation; for images of many sizes."""
    rand_augment: int = 0
    """RandAugment: number of random operations per training image (common: 2); 0 for none. For streamed images."""
    rand_augment_magnitude: float = 9.0
    """Strength of RandAugment's operations, from 0 to 30."""
    evaluations: int = 10
    """Number of evaluations on the validation split, evenly spaced over the run."""
    images: int | None = None
    """Total number of images to train on, instead of --epochs; an incomplete last batch is dropped."""
    freeze: Literal["backbone"] | None = None
    """Train only the classifier: keep the backbone's parameters and statistics of trained --weights."""
    backbone_learning_rate: float = 1.0
    """Learning-rate factor for the backbone of trained --weights."""
    frozen_batch_norm: bool = False
    """Normalise by the running statistics of trained --weights and keep them fixed."""

    def __post_init__(self):
        check_types(self)
        sizes = ["epochs", "batch_size", "learning_rate", "evaluations", "accumulation", "rmsprop_epsilon"]
        for name in (*sizes, "backbone_learning_rate"):
            value = getattr(self, name)
            if not LEAST <= value <= 1 / LEAST:
                known = f"from {LEAST:g} to {1 / LEAST:g}" if value > 0 else "greater than 0"
                raise UserError(f"--{name.replace('_', '-')} must be {known}, got {value}")
        if self.learning_rate_images is not None and not self.learning_rate_images > 0:
            raise UserError(f"--learning-rate-images must be greater than 0, got {self.learning_rate_images}")
        if self.images is not None and self.images < self.batch_size:
            raise UserError(
                f"--images {self.images} is less than one batch of {self.batch_size}; use {self.batch_size} or more"
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"--weight-decay must be 0 or more, got {self.weight_decay}")
        if self.mixup != 0 and not LEAST <= self.mixup <= 1 / LEAST:
            raise UserError(f"--mixup must be 0 (none) or from {LEAST:g} to {1 / LEAST:g}, got {self.mixup}")
        for name, most in (("rand_augment", 16), ("rand_augment_magnitude", 30)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to {most}, got {getattr(self, name)}")
        shares = ["momentum", "rmsprop_decay", "warmup", "label_smoothing", "dropout_rate", "ema_decay"]
        for name in (*shares, "batch_norm_momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to below 1, got {value}")
        for name in ("smallest_crop", "epoch_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be above 0 and at most 1, got {getattr(self, name)}")
        for name, (flag, value) in ONLY_WITH.items():
            if getattr(self, flag) != value and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"--{name.replace('_', '-')} requires --{flag} {value}, got {getattr(self, flag)}")
        usual = type(self).__dataclass_fields__["rand_augment_magnitude"].default
        if not self.rand_augment and self.rand_augment_magnitude != usual:
            raise UserError("--rand-augment-magnitude requires --rand-augment 1 or more, got 0")
        if self.freeze is not None and self.backbone_learning_rate != 1:
            raise UserError("--freeze backbone does not train the backbone; remove --backbone-learning-rate")

    def settings(self) -> dict[str, Any]:
        """Return the fields for JSON. Newer ones are left out at their defaults, so that older folders can resume."""
        newer = ("mixup", "rand_augment", "rand_augment_magnitude")
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name in newer}
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if name not in usual or value != usual[name]}

    def remarks(self) -> list[str]:
        """Return warnings about settings that are rarely intended, one line each."""
        if self.optimizer == "adamw" and self.peak_learning_rate() > 0.01:
            return [
                f"a learning rate of {self.peak_learning_rate():g} is high for AdamW; --learning-rate 0.001 is typical"
            ]
        return []

    def starts_from_weights(self) -> list[str]:
        """Return the given flags that require trained weights."""
        given = {
            "--freeze": self.freeze is not None,
            "--backbone-learning-rate": self.backbone_learning_rate != 1,
            "--frozen-batch-norm": self.frozen_batch_norm,
        }
        return [flag for flag, is_given in given.items() if is_given]

    def steps_per_epoch(self, train_images: int) -> int:
        """Return the number of whole batches in the training split.

        Raises:
            UserError: if there are fewer images than one batch.
        """
        if self.batch_size > train_images:
            raise UserError(
                f"--batch-size {self.batch_size} exceeds the {counted(train_images, 'image')} of the training split; "
                f"use {train_images} or less"
            )
        return train_images // self.batch_size

    def steps(self, train_images: int) -> int:
        """Return the number of steps of the run; every epoch has whole batches only.

        Raises:
            UserError: if there are fewer images than one batch, or more than `LARGEST_STEPS` steps.
        """
        per_epoch = self.steps_per_epoch(train_images)
        steps = self.epochs * per_epoch if self.images is None else self.images // self.batch_size
        if steps > LARGEST_STEPS:
            length = f"--epochs {self.epochs}" if self.images is None else f"--images {self.images}"
            raise UserError(f"{length} is {counted(steps, 'step')}, but a run has at most {LARGEST_STEPS:,}")
        return steps

    def peak_learning_rate(self) -> float:
        """Return the peak learning rate, scaled to the batch size."""
        if self.learning_rate_images is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.learning_rate_images

    def norm_momentum(self, steps: int) -> float:
        """Return the batch-norm momentum of a run of `steps` steps."""
        return batch_norm_momentum(steps) if self.batch_norm_momentum is None else self.batch_norm_momentum


RECIPES: dict[str, Recipe] = {
    # Settings of the studies: five epochs on a small data set.
    "small": Recipe(epochs=5, batch_size=64, learning_rate=0.05),
    # Sec. 6.1, completed from its code (tensorflow/models, research/slim, README.md and train_image_classifier.py):
    # 72.0 % after about 700,000 steps of 8 workers with 96 images each.
    "paper": Recipe(
        epochs=420,
        batch_size=768,
        learning_rate=0.045,
        learning_rate_images=96,
        optimizer="rmsprop",
        schedule="exponential",
        warmup=0.0,
        label_smoothing=0.1,
        dropout_rate=0.2,
        ema_decay=0.9999,
        batch_norm_momentum=0.997,
        batch_norm="replica",
        color_distortion=True,
        evaluations=420,
    ),
    # The cheapest documented way to 72.2 % (d-li14/mobilenetv2.pytorch, README.md).
    "cosine": Recipe(
        epochs=150,
        batch_size=256,
        learning_rate=0.05,
        nesterov=False,
        warmup=0.0,
        weight_decay_on="all",
        batch_norm_momentum=0.9,
        batch_norm="replica",
        smallest_crop=0.08,
        evaluations=150,
    ),
}
"""Recipes by name; every field can be overridden. Add a new recipe here."""

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[tuple(RECIPES)]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the result of a run depends on.

    Attributes:
        dataset: a name for `mnv2_jax.data.open.open_dataset`.
        model: arguments of `create_model`, including "name". Classes, dropout and batch norm follow from the other
            settings. A run from weights takes what is not given from them.
        training: the recipe.
        seed: random seed: initial weights, data order, augmentation and dropout.
        resolution: side of the images in pixels; None for the data set's own.
        train_images, validation_images: use only this many first images of the split; None for all.
        streamed: whether to read the data during training; None follows the catalog.
        data_files: the user's own files.
        weights: a file, folder or reference to start from; None for random initialisation.
        task: a name in `mnv2_jax.tasks.task.TASKS`.
        exif_orientation: what to do with the EXIF orientation of photographs.
    """

    dataset: str
    model: Mapping[str, Any]
    training: Recipe
    seed: int = 0
    resolution: int | None = None
    train_images: int | None = None
    validation_images: int | None = None
    streamed: bool | None = None
    data_files: Path | None = None
    weights: str | None = None
    task: str = "classification"
    exif_orientation: ExifOrientation = "apply"

    def __post_init__(self):
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must be from 0 to 2^31 - 1, got {self.seed}")
        given = self.training.starts_from_weights()
        if given and self.weights is None:
            raise UserError(f"{given[0]} requires trained weights; set --weights")

    def settings(self) -> dict[str, Any]:
        """Return all settings as one flat dictionary for JSON; equal settings mean the same run."""
        names = ("dataset", "seed", "resolution", "train_images", "validation_images", "streamed", "weights", "task")
        own = {name: getattr(self, name) for name in names}
        # Settings of earlier versions lack it.
        turned = {} if self.exif_orientation == "apply" else {"exif_orientation": self.exif_orientation}
        return {**own, **turned, **self.model, **self.training.settings()}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is executed; nothing here changes its results, except for rounding."""

    parallel: Parallel = "jit"
    """How the step is compiled for several devices."""
    log_every: int | None = None
    """Steps between two log records; by default about fifty records per run."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; by default one at every evaluation."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int | None = None
    """Also keep every checkpoint whose step is a multiple of this."""
    profile: str | None = None
    """Steps FIRST:LAST to write a profiler trace of, for XProf or Perfetto."""
    on_bad_image: OnBadImage = "stop"
    """What to do about a damaged image in a stream."""

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        first, last = self.profiled
        if self.profile is not None and not 1 <= first <= last:
            raise UserError(f"--profile must be FIRST:LAST with 1 <= FIRST <= LAST, got {self.profile}")

    @property
    def profiled(self) -> tuple[int, int]:
        """First and last step of the profiler trace; (0, 0) for none."""
        if self.profile is None:
            return 0, 0
        try:
            first, last = map(int, self.profile.split(":"))
        except ValueError:
            raise UserError(f"--profile must be two steps, FIRST:LAST, got {self.profile!r}") from None
        return first, last


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """Return the evenly spaced steps after which a run is evaluated: at most every step, and always the last."""
    evaluations = min(evaluations, steps)
    return frozenset(round(steps * (index + 1) / evaluations) for index in range(evaluations)) - {0}


def log_interval(steps: int) -> int:
    """Return the default number of steps between two training records: about fifty records per run."""
    return max(1, steps // 50)


def batch_norm_momentum(steps: int) -> float:
    """Return a batch-norm momentum that suits the length of the run.

    The running statistics then average over about the last tenth of the run, and at most over 1,000 steps. With a
    fixed 0.999 a short run would be evaluated with statistics close to their initial values
    (tensorflow/tensorflow #36065); with a fixed 0.9 those of a long run would be noisy.
    """
    return 1 - min(max(10 / steps, 0.001), 0.5)
