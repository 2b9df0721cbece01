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
)
from mnv2_jax.models.names import Activation, ConventionName, Layers, Shortcut


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
        expansion: t, the inner width over the input's channels; rounded, as in torchvision/models/mobilenetv2.py.
        stride: of the depthwise convolution, in pixels.
        dilation: of the depthwise convolution, in pixels.
        bottleneck_activation: a name in `ACTIVATIONS`, or a function, applied before the shortcut is added.
        shortcut: "bottleneck", the paper's, adds the block's input to its output; "expansion" adds what the block
            before put out of its depthwise convolution to what this one does; "none" adds nothing.
        conv_norm: makes the three layers; a `functools.partial` of `ConvNorm` sets what they have in common.
    """

    features: int
    expansion: float = 6.0
    stride: int = 1
    dilation: int = 1
    bottleneck_activation: Activation | Callable[[Array], Array] = "linear"
    shortcut: Shortcut = "bottleneck"
    conv_norm: Callable[..., nn.Module] = ConvNorm

    @nn.compact
    def endpoints(
        self, x: Float[Array, "n h w c"], train: bool, before: Float[Array, "n _ _ _"] | None = None
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "expand" (not with an expansion of 1), "depthwise", and "output", the block's.

        `before` is what the block before put out of its depthwise convolution, for shortcuts between expansions.
        """
        inputs = x.shape[-1]
        inner, y = inputs, x
        ends = {}
        if self.expansion != 1:
            inner = max(1, round(self.expansion * inputs))
            y = ends["expand"] = self.conv_norm(inner, name="expand")(y, train)
        depthwise = self.conv_norm(inner, 3, self.stride, self.dilation, depthwise=True, name="depthwise")
        y = depthwise(y, train)
        if self.shortcut == "expansion" and before is not None and before.shape == y.shape:
            y = before + y
        ends["depthwise"] = y
        y = self.conv_norm(self.features, activation=self.bottleneck_activation, name="project")(y, train)
        joined = self.shortcut == "bottleneck" and self.stride == 1 and inputs == self.features
        ends["output"] = x + y if joined else y
        return ends

    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        return self.endpoints(x, train)["output"]


class ClassicResidual(nn.Module):
    """The classic residual bottleneck: wide, narrow, wide (He et al., arXiv:1512.03385, Fig. 5; MobileNetV2, Fig. 3a).

    Reduce with a 1x1 convolution, filter with a 3x3, restore with a 1x1. The shortcut joins the wide ends, where
    stride and channels allow it, as in `InvertedResidual`; the last non-linearity follows the sum.

    Attributes:
        features: channels of the output, the wide end.
        narrow: channels of the bottleneck between.
        stride, dilation: of the 3x3 convolution, in pixels.
        depthwise: whether the 3x3 convolution filters each channel by itself, else it is full.
        activation: a name in `ACTIVATIONS`, of the non-linearity after the sum.
        conv_norm: makes the three layers; see `InvertedResidual`.
    """

    features: int
    narrow: int
    stride: int = 1
    dilation: int = 1
    depthwise: bool = True
    activation: Activation = "relu6"
    conv_norm: Callable[..., nn.Module] = ConvNorm

    @nn.compact
    def endpoints(self, x: Float[Array, "n h w c"], train: bool) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "reduce", "depthwise" or "full", and "output", the block's."""
        ends = {}
        y = ends["reduce"] = self.conv_norm(self.narrow, name="reduce")(x, train)
        name = "depthwise" if self.depthwise else "full"
        spatial = self.conv_norm(self.narrow, 3, self.stride, self.dilation, depthwise=self.depthwise, name=name)
        y = ends[name] = spatial(y, train)
        y = self.conv_norm(self.features, activation="linear", name="restore")(y, train)
        ends["output"] = ACTIVATIONS[self.activation](x + y if x.shape == y.shape else y)
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
