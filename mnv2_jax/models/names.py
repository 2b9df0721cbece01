"""The names that settings of a network may take, apart from what they name: command lines list them without loading JAX.

Tables of other modules are resolved from these, so that a name is written once.
"""

import importlib
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


def resolve(target: Any) -> Any:
    """What a dotted path names, imported; anything but a string is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def check_name(kind: str, name: Any, known: Iterable[str], hint: str = "") -> None:
    """Refuse a name that does not exist.

    Raises:
        ValueError: says which names there are, followed by the hint.
    """
    known = tuple(known)
    if name not in known:
        raise ValueError(f"there is no {kind} {name!r}; known are {', '.join(known)}{hint}")
