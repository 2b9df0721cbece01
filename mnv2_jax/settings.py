"""Flags that become a network or data, shared by commands and studies; loaded without JAX.

Each is declared and checked here, once. How a run is trained and executed is in `mnv2_jax.training.config`.
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
    """Refuse images that no machine's memory holds the feature maps of.

    Raises:
        UserError: outside of 1 to `LARGEST_RESOLUTION` pixels.
    """
    if resolution is not None and not 0 < resolution <= LARGEST_RESOLUTION:
        raise UserError(f"--resolution must be from 1 to {LARGEST_RESOLUTION} pixels, got {resolution}")


def check_size(name: str, value: float | None) -> None:
    """Refuse a width multiplier or expansion that no network has.

    Raises:
        UserError: names the flag.
    """
    if value is not None:
        _check(check_scale, name, value)


TYPES: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}
"""What a setting of a type may be, and what to call it."""


def check_types(settings: Any) -> None:
    """Refuse values of other types than a dataclass's fields have. Command lines are checked as they are read.

    Args:
        settings: whose fields are numbers, flags or `Literal`, or None as well.

    Raises:
        UserError: names the flag, and says what it takes.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        types = [TYPES[kind] for kind in kinds if kind in TYPES]
        # To Python, True is a whole number.
        fits = any(isinstance(value, type_) and (type_ is bool or not isinstance(value, bool)) for type_, _ in types)
        if not fits and value not in choices:
            known = " or ".join([*map(str, choices), *(said for _, said in types)])
            raise UserError(f"--{name.replace('_', '-')} must be {known}, got {value!r}")


def check_num_classes(number: int, least: int = 0) -> None:
    """Refuse a classifier of more outputs than any network has, or of fewer than `least`.

    Raises:
        UserError: says how many there may be.
    """
    _check(check_count, "num_classes", number, least, LARGEST_NUM_CLASSES)


def _check(check: Callable[..., None], name: str, *values: Any) -> None:
    try:
        check(f"--{name.replace('_', '-')}", *values)
    except ValueError as error:
        raise UserError(str(error)) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What all arms of a study have in common, and every other network has too."""

    width_multiplier: float | None = None
    """Scales the channels of every layer; 1 if not given, or that of --weights."""
    expansion: float | None = None
    """t: the inner width of MobileNetV2's blocks over that of their bottlenecks; 6 if not given."""
    unit_strides: int | None = None
    """How many of the first stride-2 layers take stride 1; by the size of the images if not given."""
    kernel_size: KernelSize | None = None
    """Side of the depthwise kernels of every block, in pixels; 3 if not given, or that of --weights."""
    kernels: Kernels = "tuned"
    """Kernels written so that the platform compiles them well, or XLA's own."""

    def __post_init__(self):
        for name in ("width_multiplier", "expansion"):
            check_size(name, getattr(self, name))
        if self.unit_strides is not None:
            _check(check_count, "unit_strides", self.unit_strides, 0, STRIDED_LAYERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings(SharedSettings):
    """A network."""

    model: ModelName | None = None
    """The network; mobilenet_v2 if not given, or that of --weights."""
    bottleneck_activation: Activation | None = None
    """What follows the bottlenecks of MobileNetV2; nothing (linear) if not given."""
    convention: ConventionName | None = None
    """Padding, epsilon, initialisers and normalisation: tensorflow, the paper's code's, if not given; or pytorch."""
    output_stride: Literal[8, 16, 32] = 32
    """Below 32, the last feature maps are kept finer and their layers dilated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and statistics are float32."""

    def __post_init__(self):
        super().__post_init__()
        of_v2 = {"expansion": self.expansion, "bottleneck_activation": self.bottleneck_activation}
        given = [name for name, value in of_v2.items() if value is not None]
        if given and self.model not in (None, "mobilenet_v2"):
            raise UserError(f"{self.model} has no --{given[0].replace('_', '-')}; mobilenet_v2 has")

    def settings(self, from_weights: bool = False) -> dict[str, Any]:
        """As `create_model` takes them, "name" included; None where the data or the weights decide.

        `from_weights` leaves to the weights what is not given.
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
    """Images to train on."""

    dataset: str = "digits"
    """A set that `python -m mnv2_jax datasets` lists, any prepared classification set of TFDS, or "folder"."""
    data_files: Path | None = None
    """For folder: your images, a subfolder a class. For fashion_mnist: the four IDX files."""
    input: Literal["auto", "resident", "stream"] = "auto"
    """Keep the whole set on the devices, or read it while it is used; auto goes by the size of the set."""
    train_images: int | None = None
    """Train on this many images of the training split; all of them if not given."""
    resolution: int | None = None
    """Side of the square images in pixels; the data set's own if not given."""
    exif_orientation: ExifOrientation = "apply"
    """Turn photographs upright as their EXIF says, or take them as they are stored."""

    def __post_init__(self):
        check_resolution(self.resolution)

    def settings(self) -> dict[str, Any]:
        """As a run takes them."""
        return {
            "dataset": self.dataset,
            "data_files": self.data_files,
            "streamed": {"auto": None, "resident": False, "stream": True}[self.input],
            "train_images": self.train_images,
            "resolution": self.resolution,
            "exif_orientation": self.exif_orientation,
        }
