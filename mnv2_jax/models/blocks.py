"""The blocks that the networks are made of."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnv2_jax.models.layers import (
    ACTIVATIONS,
    CONVENTIONS,
    BatchNorm,
    Conv,
    make_divisible,
)
from mnv2_jax.models.names import Activation, ConventionName, Layers


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: "conv" in the paper's tables.

    Attributes:
        features, kernel_size, stride, dilation, depthwise: see `Conv`.
        activation: a name in `ACTIVATIONS`, or a function.
        convention, batch_norm_momentum, batch_norm_axis, dtype, layers: see `ImageClassifier`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: Activation | Callable[[Array], Array] = "relu6"
    convention: ConventionName = "tensorflow"
    batch_norm_momentum: float = 0.99
    batch_norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32
    layers: Layers = "fitted"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the three in turn."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.depthwise,
            self.convention,
            self.dtype,
            self.layers,
            name="conv",
        )
        epsilon = CONVENTIONS[self.convention].epsilon
        norm = BatchNorm(self.batch_norm_momentum, epsilon, self.batch_norm_axis, self.layers, name="norm")
        activate = self.activation if callable(self.activation) else ACTIVATIONS[self.activation]
        return activate(norm(conv(x), train))


class InvertedResidual(nn.Module):
    """The bottleneck block of MobileNetV2 (Sec. 3.3, Table 1, Fig. 4d).

    Expand with a 1x1 convolution, filter with a 3x3 depthwise one, project with a 1x1: ReLU6 after the first
    two, `bottleneck_activation` after the last, which the paper keeps linear (Sec. 3.2). With an expansion of
    1 the first is left out. The shortcut joins the bottlenecks, where stride and channels allow it.

    Attributes:
        features: channels of the output bottleneck.
        expansion: t, the inner width over the input's channels; the inner width is made divisible by 8.
        stride: of the depthwise convolution, in pixels.
        dilation: of the depthwise convolution, in pixels.
        bottleneck_activation: a name in `ACTIVATIONS`, or a function, applied before the shortcut is added.
        conv_norm: makes the three layers; a `functools.partial` of `ConvNorm` sets what they have in common.
    """

    features: int
    expansion: float = 6.0
    stride: int = 1
    dilation: int = 1
    bottleneck_activation: Activation | Callable[[Array], Array] = "linear"
    conv_norm: Callable[..., nn.Module] = ConvNorm

    @nn.compact
    def endpoints(self, x: Float[Array, "n h w c"], train: bool) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "expand" (not with an expansion of 1), "depthwise", and "output", the block's."""
        inputs = x.shape[-1]
        inner, y = inputs, x
        ends = {}
        if self.expansion != 1:
            inner = make_divisible(self.expansion * inputs)
            y = ends["expand"] = self.conv_norm(inner, name="expand")(y, train)
        depthwise = self.conv_norm(inner, 3, self.stride, self.dilation, depthwise=True, name="depthwise")
        y = ends["depthwise"] = depthwise(y, train)
        y = self.conv_norm(self.features, activation=self.bottleneck_activation, name="project")(y, train)
        ends["output"] = x + y if self.stride == 1 and inputs == self.features else y
        return ends

    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        return self.endpoints(x, train)["output"]


class DepthwiseSeparable(nn.Module):
    """The block of MobileNetV1: a 3x3 depthwise convolution, then a 1x1, ReLU6 after both (Sec. 3.1, Fig. 4b).

    Attributes:
        features: channels of the output.
        stride, dilation: of the depthwise convolution, in pixels.
        conv_norm: makes the two layers; see `InvertedResidual`.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    conv_norm: Callable[..., nn.Module] = ConvNorm

    @nn.compact
    def endpoints(self, x: Float[Array, "n h w c"], train: bool) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "depthwise", and "output", the block's."""
        depthwise = self.conv_norm(x.shape[-1], 3, self.stride, self.dilation, depthwise=True, name="depthwise")
        y = depthwise(x, train)
        return {"depthwise": y, "output": self.conv_norm(self.features, name="pointwise")(y, train)}

    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        return self.endpoints(x, train)["output"]
