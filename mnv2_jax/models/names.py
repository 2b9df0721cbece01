"""Names that the settings of a network may take, and checks of its settings.

This module does not import JAX, so that command lines can list the names quickly. Other modules resolve their tables
from these, so each name is written once.
"""

import importlib
import numbers
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

MODELS: dict[str, str | type] = {
    "classic_residual": "mnv2_jax.models.classic_residual.ClassicResidualNet",
    "mobilenet_v1": "mnv2_jax.models.mobilenet_v1.MobileNetV1",
    "mobilenet_v2": "mnv2_jax.models.mobilenet_v2.MobileNetV2",
}
"""Networks that `create_model` can create: the dotted path of each class, or the class itself."""

ACTIVATIONS: dict[str, str | Callable[..., Any]] = {
    "linear": "mnv2_jax.models.layers.linear",
    "relu6": "mnv2_jax.models.layers.relu6",
    "relu": "jax.nn.relu",
    "leaky_relu": "jax.nn.leaky_relu",
    "elu": "jax.nn.elu",
    "hard_swish": "jax.nn.hard_swish",
    "swish": "jax.nn.swish",
    "tanh": "jax.numpy.tanh",
}
"""Activations: the dotted path of each function, or the function itself."""

if TYPE_CHECKING:
    ModelName = str
    Activation = str
else:
    ModelName = Literal[tuple(name for name in MODELS if name != "classic_residual")]
    Activation = Literal[tuple(ACTIVATIONS)]
"""Values of command-line flags: the networks except "classic_residual", and all activations."""

Kernels = Literal["tuned", "xla"]
"""Convolution and batch norm tuned to each platform, or XLA's and JAX's own."""
ConventionName = Literal["tensorflow", "pytorch"]
"""Names of the numeric conventions; see `mnv2_jax.models.layers.Convention`."""
KernelSize = Literal[3, 5, 7]
"""Side of the spatial convolution of a block, in pixels; 3 in the papers."""


def resolve(target: Any) -> Any:
    """Import and return the object at a dotted path; anything but a string is returned as is."""
    if not isinstance(target, str):
        return target
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


LEAST_SCALE, SCALE_LIMIT = 0.01, 100
"""Bounds of width multipliers and expansions. Below the lower bound every layer has its minimum of channels; no network
is as wide as the upper bound."""
LARGEST_NUM_CLASSES = 10_000_000


def check_scale(name: str, value: Any) -> None:
    """Check a width multiplier, an expansion or a similar scale.

    Raises:
        ValueError: if it is not a number or out of bounds; the message begins with `name`.
    """
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not 0 < float(value) < SCALE_LIMIT:
        raise ValueError(f"{name} must be greater than 0 and below {SCALE_LIMIT}, got {value:g}")
    if float(value) < LEAST_SCALE:
        raise ValueError(
            f"{name} must be {LEAST_SCALE} or more, got {value:g}: smaller values make no network narrower"
        )


def check_count(name: str, value: Any, least: int, most: int) -> None:
    """Check that a value is an integer from `least` to `most`.

    Raises:
        ValueError: if it is not; the message begins with `name`.
    """
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not least <= int(value) <= most:
        raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def check_share(name: str, value: Any) -> None:
    """Check that a value is a number in [0, 1).

    Raises:
        ValueError: if it is not; the message begins with `name`.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value!r}")


def check_name(kind: str, name: Any, known: Iterable[Any], hint: str = "") -> None:
    """Check that a name is known.

    Raises:
        ValueError: if it is not; lists the known names, followed by `hint`.
    """
    known = tuple(known)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(map(str, known))}{hint}")
