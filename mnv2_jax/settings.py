"""Flags for the network and the data, shared by commands and studies; imported without JAX.

Each flag is declared and checked here, once. Flags for training and execution are in `mnv2_jax.training.config`.
"""

import dataclasses
import numbers
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mnv2_jax.data.catalog import ExifOrientation
from mnv2_jax.errors import UserError
from mnv2_jax.models.names import (
    LARGEST_NUM_CLASSES,
    Activation,
    ConventionName,
    Kernels,
    KernelSize,
    ModelName,
    check_count,
    check_scale,
)
from mnv2_jax.models.strides import STRIDED_LAYERS

LARGEST_RESOLUTION = 4096


def check_resolution(resolution: int | None) -> None:
    """Refuse a resolution whose feature maps would fit in no machine's memory.

    Raises:
        UserError: if it is not from 1 to `LARGEST_RESOLUTION` pixels.
    """
    if resolution is not None and not 0 < resolution <= LARGEST_RESOLUTION:
        raise UserError(f"--resolution must be from 1 to {LARGEST_RESOLUTION} pixels, got {resolution}")


def check_size(name: str, value: float | None) -> None:
    """Refuse a width multiplier or expansion outside the valid range.

    Raises:
        UserError: if it is outside; the message names the flag.
    """
    if value is not None:
        _check(check_scale, name, value)


TYPES: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}
"""The accepted types for each field type, and their name in messages."""


def check_types(settings: Any) -> None:
    """Check the types of a dataclass's values. (Those from a command line are checked when it is parsed.)

    Args:
        settings: a dataclass whose fields are numbers, bools or `Literal`s, or optional ones.

    Raises:
        UserError: if a value has another type; the message names the flag and says what it takes.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        types = [TYPES[kind] for kind in kinds if kind in TYPES]
        # In Python, True is an int.
        fits = any(isinstance(value, type_) and (type_ is bool or not isinstance(value, bool)) for type_, _ in types)
        if not fits and value not in choices:
            known = " or ".join([*map(str, choices), *(said for _, said in types)])
            raise UserError(f"--{name.replace('_', '-')} must be {known}, got {value!r}")


def check_num_classes(number: int, least: int = 0) -> None:
    """Refuse a number of classes below `least` or above `LARGEST_NUM_CLASSES`.

    Raises:
        UserError: if it is outside this range; the message states the range.
    """
    _check(check_count, "num_classes", number, least, LARGEST_NUM_CLASSES)


def _check(check: Callable[..., None], name: str, *values: Any) -> None:
    try:
        check(f"--{name.replace('_', '-')}", *values)
    except ValueError as error:
        raise UserError(str(error)) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Settings that all arms of a study share; any other network has them too."""

    width_multiplier: float | None = None
    """Multiplier of every layer's channels; 1 if not given, or that of --weights."""
    expansion: float | None = None
    """Expansion factor t of MobileNetV2's blocks: inner width over bottleneck width; 6 if not given."""
    unit_strides: int | None = None
    """Number of the first stride-2 layers that use stride 1 instead; set by the resolution if not given."""
    kernel_size: KernelSize | None = None
    """Size of the depthwise kernels in every block, in pixels; 3 if not given, or that of --weights."""
    kernels: Kernels = "tuned"
    """Convolutions and batch norm in the form that the platform compiles best (tuned), or XLA's own (xla)."""

    def __post_init__(self):
        for name in ("width_multiplier", "expansion"):
            check_size(name, getattr(self, name))
        if self.unit_strides is not None:
            _check(check_count, "unit_strides", self.unit_strides, 0, STRIDED_LAYERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings(SharedSettings):
    """Settings of a network."""

    model: ModelName | None = None
    """The model; mobilenet_v2 if not given, or that of --weights."""
    bottleneck_activation: Activation | None = None
    """Activation after MobileNetV2's bottlenecks; none (linear) if not given."""
    convention: ConventionName | None = None
    """Padding, epsilon, initialisers and input normalisation; tensorflow (as in the paper's code) if not given."""
    output_stride: Literal[8, 16, 32] = 32
    """Input resolution over that of the last feature map; below 32, the last layers use dilation instead of stride."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and statistics are float32."""

    def __post_init__(self):
        super().__post_init__()
        of_v2 = {"expansion": self.expansion, "bottleneck_activation": self.bottleneck_activation}
        given = [name for name, value in of_v2.items() if value is not None]
        if given and self.model not in (None, "mobilenet_v2"):
            raise UserError(f"{self.model} has no --{given[0].replace('_', '-')}; only mobilenet_v2 has one")

    def settings(self, from_weights: bool = False) -> dict[str, Any]:
        """Return the arguments of `create_model`, "name" included; None means that the data or the weights decide.

        With `from_weights`, the weights decide whatever is not given.
        """
        usual: dict[str, Any] = (
            {} if from_weights else {"name": "mobilenet_v2", "width_multiplier": 1.0, "convention": "tensorflow"}
        )
        own: dict[str, Any] = {
            "name": self.model,
            "width_multiplier": self.width_multiplier,
            "kernels": self.kernels,
            "convention": self.convention,
            "unit_strides": self.unit_strides,
            "dtype": self.dtype,
        }
        own = {name: usual.get(name) if value is None else value for name, value in own.items()}
        optional: dict[str, Any] = {
            "expansion": self.expansion,
            "kernel_size": self.kernel_size,
            "bottleneck_activation": self.bottleneck_activation,
            "output_stride": None if self.output_stride == 32 else self.output_stride,
        }
        return {**own, **{name: value for name, value in optional.items() if value is not None}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of the training data."""

    dataset: str = "digits"
    """A data set listed by `python -m mnv2_jax datasets`, any prepared TFDS classification set, or "folder"."""
    data_files: Path | None = None
    """For folder: your images, one subfolder per class. For fashion_mnist: the folder with its four IDX files."""
    input: Literal["auto", "resident", "stream"] = "auto"
    """Keep the whole set on the devices (resident) or read it while it is used (stream); auto is the set's default."""
    train_images: int | None = None
    """Train on the first N images of the training split; on all of them if not given."""
    resolution: int | None = None
    """Side of the square images in pixels; the data set's own if not given."""
    exif_orientation: ExifOrientation = "apply"
    """Rotate photographs upright by their EXIF orientation (apply), or take them as stored (ignore)."""

    def __post_init__(self):
        check_resolution(self.resolution)

    def settings(self) -> dict[str, Any]:
        """Return the settings as arguments of a run."""
        return {
            "dataset": self.dataset,
            "data_files": self.data_files,
            "streamed": {"auto": None, "resident": False, "stream": True}[self.input],
            "train_images": self.train_images,
            "resolution": self.resolution,
            "exif_orientation": self.exif_orientation,
        }
