"""MobileNetV2 in JAX and Flax, and the claims of its paper as experiments.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks", Sandler et al., CVPR 2018, arXiv:1801.04381.
"""

from mnv2_jax.models.blocks import DepthwiseSeparable, InvertedResidual
from mnv2_jax.models.create import create_model, list_models
from mnv2_jax.models.layers import make_divisible
from mnv2_jax.models.mobilenet_v1 import MobileNetV1
from mnv2_jax.models.mobilenet_v2 import MobileNetV2
from mnv2_jax.models.strides import unit_strides_for
from mnv2_jax.weights.load import Weights, load_weights

__version__ = "0.1.0"

__all__ = [
    "DepthwiseSeparable",
    "InvertedResidual",
    "MobileNetV1",
    "MobileNetV2",
    "Weights",
    "create_model",
    "list_models",
    "load_weights",
    "make_divisible",
    "unit_strides_for",
]
