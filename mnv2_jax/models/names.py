"""The names that settings of a network may take, apart from what they name: command lines list them without loading JAX.

Tables of other modules are resolved from these, so that a name is written once.
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
"""Networks that `create_model` makes: the dotted path of each class, or the class itself."""

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
"""What follows a convolution and its norm: the dotted path of each function, or the function itself."""

if TYPE_CHECKING:
    ModelName = str
    Activation = str
else:
    ModelName = Literal[tuple(name for name in MODELS if name != "classic_residual")]
    Activation = Literal[tuple(ACTIVATIONS)]
"""Names as flags take them: the paper's networks, and every activation."""

Kernels = Literal["tuned", "xla"]
"""Convolution and batch norm in the form that each platform compiles best, or as XLA and JAX have them."""
ConventionName = Literal["tensorflow", "pytorch"]
"""Numeric conventions."""
KernelSize = Literal[3, 5, 7]
"""Sides of the spatial convolution of a block, in pixels; the papers' is 3."""


def resolve(target: Any) -> Any:
    """What a dotted path names, imported; anything but a string is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


LEAST_SCALE, SCALE_LIMIT = 0.01, 100
"""Of width multipliers and expansions: below the least every layer has its fewest channels, and no network is as wide as the
limit."""
LARGEST_NUM_CLASSES = 10_000_000


def check_scale(name: str, value: Any) -> None:
    """Refuse a width multiplier, an expansion or the like that no network has.

    Raises:
        ValueError: with the name as its first word.
    """
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not 0 < float(value) < SCALE_LIMIT:
        raise ValueError(f"{name} must be greater than 0 and below {SCALE_LIMIT}, got {value:g}")
    if float(value) < LEAST_SCALE:
        raise ValueError(f"{name} must be {LEAST_SCALE} or more, got {value:g}: no network is narrower")


def check_count(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number from `least` to `most`.

    Raises:
        ValueError: with the name as its first word.
    """
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not least <= int(value) <= most:
        raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number from 0 to below 1.

    Raises:
        ValueError: with the name as its first word.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value!r}")


def check_name(kind: str, name: Any, known: Iterable[Any], hint: str = "") -> None:
    """Refuse a name that does not exist.

    Raises:
        ValueError: says which names there are, followed by the hint.
    """
    known = tuple(known)
    if name not in known:
        raise ValueError(f"there is no {kind} {name!r}; known are {', '.join(map(str, known))}{hint}")
