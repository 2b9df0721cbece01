"""The blocks that the networks are made of."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from mnv2_jax.models.layers import (
    ACTIVATIONS,
    CONVENTIONS,
    Activation,
    BatchNorm,
    Conv,
    ConventionName,
    make_divisible,
)


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: "conv" in the paper's tables.

    Attributes:
        features, kernel_size, stride, depthwise: see `Conv`.
        activation: a name in `ACTIVATIONS`.
        convention, batch_norm_momentum: see `MobileNetV2`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Activation = "relu6"
    convention: ConventionName = "tensorflow"
    batch_norm_momentum: float = 0.99

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the three in turn."""
        x = Conv(self.features, self.kernel_size, self.stride, self.depthwise, self.convention, name="conv")(x)
        epsilon = CONVENTIONS[self.convention].epsilon
        x = BatchNorm(self.batch_norm_momentum, epsilon, name="norm")(x, train)
        return ACTIVATIONS[self.activation](x)


class InvertedResidual(nn.Module):
    """The bottleneck block of MobileNetV2 (Sec. 3.3, Table 1, Fig. 4d).

    Expand with a 1x1 convolution, filter with a 3x3 depthwise one, project with a 1x1: ReLU6 after the first
    two, `bottleneck_activation` after the last, which the paper keeps linear (Sec. 3.2). With an expansion of
    1 the first is left out. The shortcut joins the bottlenecks, where stride and channels allow it.

    Attributes:
        features: channels of the output bottleneck.
        expansion: t, the inner width over the input's channels; the inner width is made divisible by 8.
        stride: of the depthwise convolution, in pixels.
        bottleneck_activation: a name in `ACTIVATIONS`, applied before the shortcut is added.
        convention, batch_norm_momentum: see `MobileNetV2`.
    """

    features: int
    expansion: float = 6.0
    stride: int = 1
    bottleneck_activation: Activation = "linear"
    convention: ConventionName = "tensorflow"
    batch_norm_momentum: float = 0.99

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        conv_norm = functools.partial(
            ConvNorm, convention=self.convention, batch_norm_momentum=self.batch_norm_momentum
        )
        inputs = x.shape[-1]
        inner, y = inputs, x
        if self.expansion != 1:
            inner = make_divisible(self.expansion * inputs)
            y = conv_norm(inner, name="expand")(y, train)
        y = conv_norm(inner, 3, self.stride, depthwise=True, name="depthwise")(y, train)
        y = conv_norm(self.features, activation=self.bottleneck_activation, name="project")(y, train)
        return x + y if self.stride == 1 and inputs == self.features else y
