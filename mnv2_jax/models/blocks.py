"""The blocks that the networks are made of."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mnv2_jax.models.layers import (
    ACTIVATIONS,
    CONVENTIONS,
    BatchNorm,
    Conv,
    convolve,
)
from mnv2_jax.models.names import Activation, ConventionName, Layers, Shortcut, Transformation


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
        return self.activate(norm(conv(x), train))

    def activate(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The non-linearity alone."""
        return (self.activation if callable(self.activation) else ACTIVATIONS[self.activation])(x)

    def convolve(self, x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw _ d"]) -> Float[Array, "n h2 w2 d"]:
        """The convolution alone, with a kernel that is a part of the layer's for instance."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation, self.depthwise, self.convention, self.layers)

    def inference_norm(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """What batch norm multiplies by at inference, and what it adds. Of a layer with parameters."""
        norm, statistics = self.variables["params"]["norm"], self.variables["batch_stats"]["norm"]
        slope = norm["scale"] * lax.rsqrt(statistics["var"] + CONVENTIONS[self.convention].epsilon)
        return slope, norm["bias"] - statistics["mean"] * slope


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
        transformation: what is done with the expansion: "depthwise", the paper's; "linear", the same without
            non-linearities; "two_depthwise", with a second depthwise layer.
        conv_norm: makes the layers; a `functools.partial` of `ConvNorm` sets what they have in common.
    """

    features: int
    expansion: float = 6.0
    stride: int = 1
    dilation: int = 1
    bottleneck_activation: Activation | Callable[[Array], Array] = "linear"
    shortcut: Shortcut = "bottleneck"
    transformation: Transformation = "depthwise"
    conv_norm: Callable[..., ConvNorm] = ConvNorm

    @nn.compact
    def endpoints(
        self,
        x: Float[Array, "n h w c"],
        train: bool,
        before: Float[Array, "n _ _ _"] | None = None,
        split: int = 1,
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "expand" (not with an expansion of 1), "depthwise", and "output", the block's.

        `before` is what the block before put out of its depthwise convolution, for shortcuts between expansions.
        In `split` parts, which inference can be computed in, the inner layers put out nothing whole; see `_in_parts`.

        Raises:
            ValueError: for a split that is below 1, or of what needs the inner layers whole: batch statistics, and
                shortcuts between expansions.
        """
        if split < 1 or (split > 1 and (train or self.shortcut == "expansion")):
            raise ValueError(
                f"a block without shortcuts between expansions can be split at inference, got split={split}"
            )
        inputs = x.shape[-1]
        inner = inputs if self.expansion == 1 else max(1, round(self.expansion * inputs))
        conv_norm = self.conv_norm
        if self.transformation == "linear":
            conv_norm = functools.partial(conv_norm, activation="linear")
        layers = {}
        if self.expansion != 1:
            layers["expand"] = conv_norm(inner, name="expand")
        layers["depthwise"] = conv_norm(inner, 3, self.stride, self.dilation, depthwise=True, name="depthwise")
        if self.transformation == "two_depthwise":
            layers["depthwise_2"] = conv_norm(inner, 3, 1, self.dilation, depthwise=True, name="depthwise_2")
        project = self.conv_norm(self.features, activation=self.bottleneck_activation, name="project")
        ends = {}
        # Where parameters are made, the layers make them.
        if split > 1 and not self.is_initializing():
            y = _in_parts(x, list(layers.values()), project, inner, split)
        else:
            y = x
            for name, layer in layers.items():
                y = layer(y, train)
                if name == "depthwise" and self.shortcut == "expansion" and before is not None:
                    y = before + y if before.shape == y.shape else y
                ends[name] = y
            y = project(y, train)
        joined = self.shortcut == "bottleneck" and self.stride == 1 and inputs == self.features
        ends["output"] = x + y if joined else y
        return ends

    def __call__(self, x: Float[Array, "n h w c"], train: bool, split: int = 1) -> Float[Array, "n h2 w2 d"]:
        """Apply the block, at inference in `split` parts of its inner channels."""
        return self.endpoints(x, train, split=split)["output"]


def _in_parts(
    x: Float[Array, "n h w c"], layers: Sequence[ConvNorm], project: ConvNorm, inner: int, split: int
) -> Float[Array, "n h2 w2 d"]:
    """A block as a sum over parts of its inner channels, none of which needs another's (Sec. 5.1).

    The inner layers work on each channel by itself, so the projection of all of them is the sum of the projections of the
    parts. Where the parts are not equal, the last one overlaps the one before, and projects what is its own.
    """
    size = -(-inner // min(split, inner))
    kernels = [layer.variables["params"]["conv"]["kernel"] for layer in layers]
    norms = [layer.inference_norm() for layer in layers]
    projection = project.variables["params"]["conv"]["kernel"]

    def add_part(part: Int[Array, ""], total: Array) -> Array:
        start = jnp.minimum(part * size, inner - size)

        def share(whole: Array, axis: int) -> Array:
            return lax.dynamic_slice_in_dim(whole, start, size, axis)

        # Without an expansion the inner channels are the input's.
        y = share(x, 3) if layers[0].depthwise else x
        for layer, kernel, (slope, shift) in zip(layers, kernels, norms, strict=True):
            y = layer.convolve(y, share(kernel, 3))
            y = layer.activate((y * share(slope, 0) + share(shift, 0)).astype(y.dtype))
        own = start + jnp.arange(size) >= part * size
        return total + project.convolve(y, jnp.where(own[:, None], share(projection, 2), 0))

    height, width = (-(-side // math.prod(layer.stride for layer in layers)) for side in x.shape[1:3])
    total = jnp.zeros((x.shape[0], height, width, project.features), jnp.float32)
    # A loop, so that the parts are computed one after the other.
    total = lax.fori_loop(0, -(-inner // size), add_part, total)
    slope, shift = project.inference_norm()
    return project.activate((total * slope + shift).astype(project.dtype))


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
    conv_norm: Callable[..., ConvNorm] = ConvNorm

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
    conv_norm: Callable[..., ConvNorm] = ConvNorm

    @nn.compact
    def endpoints(self, x: Float[Array, "n h w c"], train: bool) -> dict[str, Float[Array, "n _ _ _"]]:
        """What each layer puts out: "depthwise", and "output", the block's."""
        depthwise = self.conv_norm(x.shape[-1], 3, self.stride, self.dilation, depthwise=True, name="depthwise")
        y = depthwise(x, train)
        return {"depthwise": y, "output": self.conv_norm(self.features, name="pointwise")(y, train)}

    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        return self.endpoints(x, train)["output"]
