"""The blocks of the networks. A network takes a block class as its setting `block`.

To add a variant, write a subclass, here or in your own script. It can override `endpoints`, or one of the small methods
of `InvertedResidual` that define the layers before the projection and what the shortcut connects.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mnv2_jax.models.layers import ConvNorm, Function, find_activation
from mnv2_jax.models.names import Activation, check_name, check_scale

Ends = Mapping[str, Float[Array, "n _ _ _"]]
"""Feature maps by the name of the layer that outputs them."""
NO_ENDS: Ends = MappingProxyType({})
"""The endpoints before the first block."""


class Block(nn.Module):
    """Base class of the blocks, which map one feature map to the next.

    Attributes:
        features: channels of the output.
        expansion: t, inner channels divided by input channels; 1 for blocks without an expansion.
        stride: of the spatial convolution, in pixels.
        dilation: of the spatial convolution, in pixels.
        kernel_size: side of the spatial convolution's kernel, in pixels; odd.
        conv_norm: creates the layers; a `functools.partial` of `ConvNorm` sets what they share.
    """

    features: int
    expansion: float = 1.0
    stride: int = 1
    dilation: int = 1
    kernel_size: int = 3
    conv_norm: Callable[..., ConvNorm] = ConvNorm

    def __post_init__(self) -> None:
        check_scale("the expansion", self.expansion)
        super().__post_init__()

    def endpoints(
        self, x: Float[Array, "n h w c"], train: bool, before: Ends = NO_ENDS, split: int = 1
    ) -> dict[str, Array]:
        """Return the output of each layer by name, and the block's as "output", the last entry.

        Args:
            x: input.
            train: normalise by the batch.
            before: endpoints of the preceding block, for shortcuts between the two.
            split: number of parts of the inner channels to compute at inference, one after the other. Layers whose
                output is then never whole are left out.

        Raises:
            ValueError: for a split below 1, a split in training, and a split of a block that cannot be split.
        """
        raise NotImplementedError

    def __call__(self, x: Float[Array, "n h w c"], train: bool, split: int = 1) -> Float[Array, "n h2 w2 d"]:
        """Apply the block."""
        return self.endpoints(x, train, split=split)["output"]

    def check_split(self, split: int, train: bool, can_split: bool = False) -> None:
        """Check that a block can be computed with this split; see `endpoints`."""
        if not isinstance(split, int) or split < 1:
            raise ValueError(f"split must be a whole number of 1 or more, got split={split}")
        if split > 1 and not can_split:
            raise ValueError(f"{block_name(type(self))} cannot be split, got split={split}")
        if split > 1 and train:
            raise ValueError(
                f"a block cannot be split in training, which needs its batch statistics; got split={split}"
            )


# --- MobileNetV2 -----------------------------------------------------------------------------------------


class InvertedResidual(Block):
    """The bottleneck block of MobileNetV2 (Sec. 3.3, Table 1, Fig. 4d).

    Expand with a 1x1 convolution, filter with a depthwise convolution (usually 3x3), project with a 1x1 convolution.
    The first two are followed by ReLU6, the last by `bottleneck_activation`, which is linear in the paper (Sec. 3.2).
    With an expansion of 1 there is no expansion layer. The shortcut connects the bottlenecks if the stride is 1 and the
    channels are equal. Layers are named "expand", "depthwise" and "project".

    Attributes:
        features: channels of the output bottleneck.
        expansion: t; the number of inner channels is rounded, as in torchvision/models/mobilenetv2.py.
        bottleneck_activation: a name in `ACTIVATIONS`, or a function; applied before the shortcut is added.
    """

    expansion: float = 6.0
    bottleneck_activation: Activation | Function = "linear"

    @nn.compact
    def endpoints(
        self, x: Float[Array, "n h w c"], train: bool, before: Ends = NO_ENDS, split: int = 1
    ) -> dict[str, Array]:
        """Return "expand" (unless the expansion is 1), "depthwise" and "output"; see `Block.endpoints`."""
        inputs = x.shape[-1]
        inner = inputs if self.expansion == 1 else max(1, round(self.expansion * inputs))
        layers = self.inner_layers(inner)
        # A split needs inner layers that do not mix channels.
        apart = all(
            isinstance(layer, ConvNorm) and (name == "expand" or layer.depthwise) for name, layer in layers.items()
        )
        self.check_split(split, train, apart and type(self).join_inner is InvertedResidual.join_inner)
        project = self.conv_norm(self.features, activation=self.bottleneck_activation, name="project")
        ends: dict[str, Array] = {}
        # Parameters are created by calling the layers.
        if split > 1 and not self.is_initializing():
            y = _in_parts(x, list(layers.values()), project, inner, split)
        else:
            y = x
            for name, layer in layers.items():
                y = ends[name] = self.join_inner(name, layer(y, train), before)
            y = project(y, train)
        ends["output"] = self.join(x, y)
        return ends

    def inner_layers(self, inner: int) -> dict[str, ConvNorm]:
        """Return the layers before the projection by name: expansion to `inner` channels, then depthwise layers."""
        conv_norm = self.inner_conv_norm
        layers = {} if self.expansion == 1 else {"expand": conv_norm(inner, name="expand")}
        layers["depthwise"] = conv_norm(
            inner, self.kernel_size, self.stride, self.dilation, depthwise=True, name="depthwise"
        )
        return layers

    @property
    def inner_conv_norm(self) -> Callable[..., ConvNorm]:
        """Creates the layers before the projection."""
        return self.conv_norm

    def join_inner(self, name: str, y: Float[Array, "n h w c"], before: Ends) -> Float[Array, "n h w c"]:
        """Return the output `y` of an inner layer, plus a shortcut if one ends there."""
        return y

    def join(self, x: Float[Array, "n h w c"], y: Float[Array, "n h2 w2 d"]) -> Float[Array, "n h2 w2 d"]:
        """Return the output of the block from its input `x` and its projection `y`."""
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class NoShortcut(InvertedResidual):
    """`InvertedResidual` without a shortcut (Fig. 6b)."""

    def join(self, x: Float[Array, "n h w c"], y: Float[Array, "n h2 w2 d"]) -> Float[Array, "n h2 w2 d"]:
        """Return the projection."""
        return y


class ExpansionShortcut(NoShortcut):
    """`InvertedResidual` with the shortcut between expansions (Fig. 6b).

    The depthwise output of the preceding block is added to that of this block if their shapes are equal.
    """

    def join_inner(self, name: str, y: Float[Array, "n h w c"], before: Ends) -> Float[Array, "n h w c"]:
        """Return `y`, plus the shortcut after the depthwise layer."""
        wide = before.get("depthwise") if name == "depthwise" else None
        return y if wide is None or wide.shape != y.shape else wide + y


class LinearInside(InvertedResidual):
    """`InvertedResidual` without non-linearities after the expansion and the depthwise convolution."""

    @property
    def inner_conv_norm(self) -> Callable[..., ConvNorm]:
        """Creates linear layers."""
        return functools.partial(self.conv_norm, activation="linear")


class TwoDepthwise(InvertedResidual):
    """`InvertedResidual` with a second depthwise layer, "depthwise_2", of stride 1."""

    def inner_layers(self, inner: int) -> dict[str, ConvNorm]:
        """Return the layers before the projection by name."""
        second = self.inner_conv_norm(inner, self.kernel_size, 1, self.dilation, depthwise=True, name="depthwise_2")
        return {**super().inner_layers(inner), "depthwise_2": second}


def _in_parts(
    x: Float[Array, "n h w c"], layers: Sequence[ConvNorm], project: ConvNorm, inner: int, split: int
) -> Float[Array, "n h2 w2 d"]:
    """Compute a block as a sum over parts of its inner channels (Sec. 5.1).

    The inner layers filter each channel by itself, so the projection of all channels is the sum of the projections of
    the parts. If the parts are unequal, the last one overlaps the one before and projects only its own channels.
    """
    size = -(-inner // min(split, inner))
    kernels = [layer.variables["params"]["conv"]["kernel"] for layer in layers]
    norms = [layer.inference_norm() for layer in layers]
    projection = project.variables["params"]["conv"]["kernel"]

    def add_part(part: Int[Array, ""], total: Array) -> Array:
        start = jnp.minimum(part * size, inner - size)

        def share(whole: Array, axis: int) -> Array:
            return lax.dynamic_slice_in_dim(whole, start, size, axis)

        # Without an expansion the inner channels are those of the input.
        y = share(x, 3) if layers[0].depthwise else x
        for layer, kernel, (slope, shift) in zip(layers, kernels, norms, strict=True):
            y = layer.convolve(y, share(kernel, 3))
            y = layer.activate((y * share(slope, 0) + share(shift, 0)).astype(y.dtype))
        own = start + jnp.arange(size) >= part * size
        return total + project.convolve(y, jnp.where(own[:, None], share(projection, 2), 0))

    height, width = (-(-side // math.prod(layer.stride for layer in layers)) for side in x.shape[1:3])
    total = jnp.zeros((x.shape[0], height, width, project.features), jnp.float32)
    # A loop, so that the compiler cannot compute the parts at the same time.
    total = lax.fori_loop(0, -(-inner // size), add_part, total)
    slope, shift = project.inference_norm()
    return project.activate((total * slope + shift).astype(project.dtype))


# --- Baselines -------------------------------------------------------------------------------------------


class ClassicResidual(Block):
    """The classic residual bottleneck: wide, narrow, wide (He et al., arXiv:1512.03385, Fig. 5; MobileNetV2, Fig. 3a).

    Reduce with a 1x1 convolution, filter with a depthwise convolution (usually 3x3), restore with a 1x1 convolution.
    The shortcut connects the wide ends if their shapes are equal; the last non-linearity follows the sum. Layers are
    named "reduce", "depthwise" and "restore".

    Attributes:
        features: channels of the output, the wide end.
        narrow: channels of the bottleneck in the middle.
        activation: the non-linearity after the sum; a name in `ACTIVATIONS`, or a function.
    """

    narrow: int = dataclasses.field(kw_only=True)
    activation: Activation | Function = "relu6"

    depthwise: ClassVar[bool] = True
    """Whether the spatial convolution filters each channel by itself."""

    @nn.compact
    def endpoints(
        self, x: Float[Array, "n h w c"], train: bool, before: Ends = NO_ENDS, split: int = 1
    ) -> dict[str, Array]:
        """Return "reduce", "depthwise" (or "full") and "output"; see `Block.endpoints`."""
        self.check_split(split, train)
        ends: dict[str, Array] = {}
        y = ends["reduce"] = self.conv_norm(self.narrow, name="reduce")(x, train)
        name = "depthwise" if self.depthwise else "full"
        spatial = self.conv_norm(
            self.narrow, self.kernel_size, self.stride, self.dilation, depthwise=self.depthwise, name=name
        )
        y = ends[name] = spatial(y, train)
        y = self.conv_norm(self.features, activation="linear", name="restore")(y, train)
        ends["output"] = find_activation(self.activation)(x + y if x.shape == y.shape else y)
        return ends


class FullClassicResidual(ClassicResidual):
    """`ClassicResidual` with a full spatial convolution, named "full", instead of the depthwise one."""

    depthwise = False


class DepthwiseSeparable(Block):
    """The block of MobileNetV1 (Sec. 3.1, Fig. 4b).

    A depthwise convolution (usually 3x3), then a 1x1 convolution, each followed by ReLU6. Layers are named
    "depthwise" and "pointwise".
    """

    def __post_init__(self) -> None:
        if self.expansion != 1:
            raise ValueError(f"a DepthwiseSeparable block has no expansion, got {self.expansion}")
        super().__post_init__()

    @nn.compact
    def endpoints(
        self, x: Float[Array, "n h w c"], train: bool, before: Ends = NO_ENDS, split: int = 1
    ) -> dict[str, Array]:
        """Return "depthwise" and "output"; see `Block.endpoints`."""
        self.check_split(split, train)
        depthwise = self.conv_norm(
            x.shape[-1], self.kernel_size, self.stride, self.dilation, depthwise=True, name="depthwise"
        )
        y = depthwise(x, train)
        return {"depthwise": y, "output": self.conv_norm(self.features, name="pointwise")(y, train)}


# --- Names -----------------------------------------------------------------------------------------------


def block_name(block: type[Block]) -> str:
    """Return the class name of a block of this module, and "module.QualName" of any other."""
    return block.__name__ if block.__module__ == __name__ else f"{block.__module__}.{block.__qualname__}"


def find_block(block: Any) -> type[Block]:
    """Return the block class of a name; a block class is returned as is.

    Raises:
        ValueError: for an unknown name, and for anything else that is not a block class.
    """
    if isinstance(block, type) and issubclass(block, Block):
        return block
    blocks = {
        name: value
        for name, value in globals().items()
        if isinstance(value, type) and issubclass(value, Block) and value is not Block
    }
    check_name("block", block, blocks, "; pass a custom block as a class, a subclass of Block")
    return blocks[block]
