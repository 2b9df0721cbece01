"""MobileNetV2 in JAX and Flax, and the claims of its paper as experiments.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks", Sandler et al., CVPR 2018, arXiv:1801.04381.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnv2_jax.models.blocks import DepthwiseSeparable, InvertedResidual
    from mnv2_jax.models.create import create_model, list_models
    from mnv2_jax.models.layers import make_divisible
    from mnv2_jax.models.mobilenet_v1 import MobileNetV1
    from mnv2_jax.models.mobilenet_v2 import MobileNetV2
    from mnv2_jax.models.strides import unit_strides_for
    from mnv2_jax.network import Network
    from mnv2_jax.weights.load import load_weights

__version__ = "0.1.0"

__all__ = [
    "DepthwiseSeparable",
    "InvertedResidual",
    "MobileNetV1",
    "MobileNetV2",
    "Network",
    "create_model",
    "list_models",
    "load_weights",
    "make_divisible",
    "unit_strides_for",
]

# Names are imported on first use (PEP 562), so that --help, and a process that restarts itself, need not import JAX.
_MODULES = {
    "DepthwiseSeparable": "models.blocks",
    "InvertedResidual": "models.blocks",
    "MobileNetV1": "models.mobilenet_v1",
    "MobileNetV2": "models.mobilenet_v2",
    "Network": "network",
    "create_model": "models.create",
    "list_models": "models.create",
    "load_weights": "weights.load",
    "make_divisible": "models.layers",
    "unit_strides_for": "models.strides",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
