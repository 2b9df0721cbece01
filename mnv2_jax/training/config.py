"""What a run is, without loading JAX: how its parameters change, what it trains on, how it is executed.

What follows a field is its help on command lines. Every value is checked here, and nowhere else.
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
"""Of numbers that must not be zero: float32 has it, and what it is multiplied by."""
LARGEST_STEPS = 50_000_000
"""Of a run: the learning rates of all are held in memory."""

ONLY_WITH = {
    "rmsprop_decay": ("optimizer", "rmsprop"),
    "rmsprop_epsilon": ("optimizer", "rmsprop"),
    "epoch_decay": ("schedule", "exponential"),
}
"""Settings of a recipe that would change nothing without another."""

Parallel = Literal["jit", "pmap"]
"""How a step is compiled for several devices; see `mnv2_jax.training.devices`."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How parameters change; saved as JSON with every run."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images a step, over all devices and accumulated parts."""
    learning_rate: float
    """Highest learning rate, for a batch of --learning-rate-images."""
    learning_rate_images: int | None = None
    """The learning rate grows in proportion to the batch beyond these images; None takes it as it is."""
    optimizer: Literal["sgd", "rmsprop", "adamw"] = "sgd"
    """SGD, RMSProp as in TensorFlow 1, or AdamW (common: --learning-rate 0.001 --weight-decay 0.05)."""
    momentum: float = 0.9
    """Share of the last update that is kept; beta1 of AdamW."""
    nesterov: bool = True
    """Nesterov's momentum (SGD only)."""
    rmsprop_decay: float = 0.9
    """Share of the mean square that a step keeps."""
    rmsprop_epsilon: float = 1.0
    """Added to the mean square."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """After the warm-up: a cosine to zero, or a factor after every epoch."""
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises from zero."""
    epoch_decay: float = 0.98
    """The factor of the exponential schedule."""
    weight_decay: float = 4e-5
    """L2 penalty; of AdamW decoupled: the learning rate times this share of each weight is subtracted every step."""
    weight_decay_on: Literal["kernels", "all"] = "kernels"
    """Kernels of all but depthwise convolutions, as in the paper's code, or every parameter."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    dropout_rate: float = 0.0
    """Share of the pooled features that is dropped."""
    mixup: float = 0.0
    """Mix pairs of training images, and their labels, by a share drawn from Beta(a, a) with this a (common: 0.2); 0 for none."""
    ema_decay: float = 0.0
    """Share that the moving average of the parameters keeps; 0 keeps no average."""
    batch_norm_momentum: float | None = None
    """Share of the running statistics that a step keeps; None for one that suits the length of the run."""
    batch_norm: Literal["global", "replica"] = "global"
    """Batch statistics over all devices, or over each device's images alone (the paper's, 96 a worker)."""
    accumulation: int = 1
    """Microbatches in which a device takes its images, one after the other; each has batch statistics of its own."""
    smallest_crop: float = 0.05
    """Share of an image's area that a random crop has at least; for images of many sizes."""
    color_distortion: bool = False
    """Vary brightness and saturation; for images of many sizes."""
    rand_augment: int = 0
    """RandAugment: so many random operations on each training image (common: 2); 0 for none. For streamed images."""
    rand_augment_magnitude: float = 9.0
    """Strength of RandAugment's operations, from 0 to 30."""
    evaluations: int = 10
    """How often a run is evaluated on the validation split, at equal distances."""
    images: int | None = None
    """Images to train on in all, in place of --epochs; the last step is the last whole batch of them."""
    freeze: Literal["backbone"] | None = None
    """Of trained --weights, leave the backbone's parameters and statistics as they are: only the classifier is trained."""
    backbone_learning_rate: float = 1.0
    """Factor of the learning rate for the backbone of trained --weights."""
    frozen_batch_norm: bool = False
    """Normalise by the running statistics of trained --weights and leave them as they are."""

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
                f"--images {self.images} do not fill a batch of {self.batch_size}; take {self.batch_size} or more"
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
                raise UserError(f"--{name.replace('_', '-')} must be from above 0 to 1, got {getattr(self, name)}")
        for name, (flag, value) in ONLY_WITH.items():
            if getattr(self, flag) != value and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name.replace('_', '-')} is for --{flag} {value}, and this is {getattr(self, flag)}"
                )
        usual = type(self).__dataclass_fields__["rand_augment_magnitude"].default
        if not self.rand_augment and self.rand_augment_magnitude != usual:
            raise UserError("--rand-augment-magnitude is for --rand-augment 1 or more, and this is 0")
        if self.freeze is not None and self.backbone_learning_rate != 1:
            raise UserError("--freeze backbone trains no backbone; leave --backbone-learning-rate out")

    def settings(self) -> dict[str, Any]:
        """Flat, for JSON. Newer fields are left out at their defaults, so that a folder made before there were any resumes."""
        newer = ("mixup", "rand_augment", "rand_augment_magnitude")
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name in newer}
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if name not in usual or value != usual[name]}

    def remarks(self) -> list[str]:
        """What has to be said of settings that are rarely meant, a line each."""
        if self.optimizer == "adamw" and self.peak_learning_rate() > 0.01:
            return [
                f"a learning rate of {self.peak_learning_rate():g} is high for AdamW; common is --learning-rate 0.001"
            ]
        return []

    def starts_from_weights(self) -> list[str]:
        """The flags that only a run from trained weights has."""
        given = {
            "--freeze": self.freeze is not None,
            "--backbone-learning-rate": self.backbone_learning_rate != 1,
            "--frozen-batch-norm": self.frozen_batch_norm,
        }
        return [flag for flag, is_given in given.items() if is_given]

    def steps_per_epoch(self, train_images: int) -> int:
        """Whole batches in the training split.

        Raises:
            UserError: if there are fewer images than a batch has.
        """
        if self.batch_size > train_images:
            raise UserError(
                f"--batch-size {self.batch_size} is more than the {counted(train_images, 'image')} of the training "
                f"split; take {train_images} or fewer"
            )
        return train_images // self.batch_size

    def steps(self, train_images: int) -> int:
        """Steps of a whole run: whole batches only, at every epoch.

        Raises:
            UserError: if there are fewer images than a batch has, and for a run that never ends.
        """
        per_epoch = self.steps_per_epoch(train_images)
        steps = self.epochs * per_epoch if self.images is None else self.images // self.batch_size
        if steps > LARGEST_STEPS:
            length = f"--epochs {self.epochs}" if self.images is None else f"--images {self.images}"
            raise UserError(f"{length} are {counted(steps, 'step')}, and a run has {LARGEST_STEPS:,} at most")
        return steps

    def peak_learning_rate(self) -> float:
        """The highest learning rate, for the batch that there is."""
        if self.learning_rate_images is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.learning_rate_images

    def norm_momentum(self, steps: int) -> float:
        """What batch norm keeps of its running statistics in a step of a run of `steps`."""
        return batch_norm_momentum(steps) if self.batch_norm_momentum is None else self.batch_norm_momentum


RECIPES: dict[str, Recipe] = {
    # The studies' settings: five epochs of a small set.
    "small": Recipe(epochs=5, batch_size=64, learning_rate=0.05),
    # Sec. 6.1, completed from its code (tensorflow/models, research/slim, README.md and train_image_classifier.py):
    # 72.0 % after some 700,000 steps of 8 workers with 96 images each.
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
"""Settings by name; every field can be overridden. A new recipe is an entry here."""

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[tuple(RECIPES)]


@dataclasses.dataclass(frozen=True)
class Run:
    """What is asked for: everything that the result depends on.

    Attributes:
        dataset: a name for `mnv2_jax.data.open_dataset`.
        model: settings of `create_model`, "name" included; classes, dropout and batch norm follow from the rest, and
            of a run from weights what is not given is that of the weights.
        training: how it is trained.
        seed: random seed: initial weights, data order, augmentation and dropout.
        resolution: side of the images in pixels; None for the data set's own.
        train_images, validation_images: take the first so many of these splits; None for all.
        streamed: whether the data are read while they are used; None where the set is too large for the device.
        data_files: the user's own files.
        weights: a file, a folder or a reference to start from; None for initial weights.
        task: a name in `mnv2_jax.tasks.task.TASKS`.
        exif_orientation: of photographs.
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
            raise UserError(f"--seed must be from 0 to below 2^31, got {self.seed}")
        given = self.training.starts_from_weights()
        if given and self.weights is None:
            raise UserError(f"{given[0]} is for a run that starts from trained weights; name them with --weights")

    def settings(self) -> dict[str, Any]:
        """Flat, for JSON; two runs with the same are the same run."""
        names = ("dataset", "seed", "resolution", "train_images", "validation_images", "streamed", "weights", "task")
        own = {name: getattr(self, name) for name in names}
        # Those of earlier versions do not say it.
        turned = {} if self.exif_orientation == "apply" else {"exif_orientation": self.exif_orientation}
        return {**own, **turned, **self.model, **self.training.settings()}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is executed; nothing here changes its results, but for rounding."""

    parallel: Parallel = "jit"
    """How the step is compiled for several devices."""
    log_every: int | None = None
    """Steps between two records; some fifty a run if not given."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; one at every evaluation if not given."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Keep those of every multiple of so many steps besides."""
    profile: str | None = None
    """FIRST:LAST steps of which to write a trace, for XProf or Perfetto."""
    on_bad_image: OnBadImage = "stop"
    """What to do about a damaged image in a stream."""

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        first, last = self.profiled
        if self.profile is not None and not 1 <= first <= last:
            raise UserError(f"--profile must be FIRST:LAST with steps from 1 on, got {self.profile}")

    @property
    def profiled(self) -> tuple[int, int]:
        """First and last step of the trace; (0, 0) for none."""
        if self.profile is None:
            return 0, 0
        try:
            first, last = map(int, self.profile.split(":"))
        except ValueError:
            raise UserError(f"--profile must be FIRST:LAST, two steps, got {self.profile!r}") from None
        return first, last


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """The steps after which a run is evaluated, at equal distances, the last one included; at most every step."""
    evaluations = min(evaluations, steps)
    return frozenset(round(steps * (index + 1) / evaluations) for index in range(evaluations)) - {0}


def log_interval(steps: int) -> int:
    """Steps between two records of training, if nothing else was asked for: some fifty a run."""
    return max(1, steps // 50)


def batch_norm_momentum(steps: int) -> float:
    """A momentum that suits a run's length.

    The running statistics then average over about the last tenth of the run, and over no more than 1,000
    steps: a fixed 0.999 would evaluate a short run with statistics that never left their initial values
    (tensorflow/tensorflow #36065), a fixed 0.9 would make those of a long run noisy.
    """
    return 1 - min(max(10 / steps, 0.001), 0.5)
