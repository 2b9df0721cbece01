"""MobileNetV2: the (t, c, n, s) table and the network."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from mnv2_jax.models.blocks import InvertedResidual
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.layers import chosen_activation, make_divisible
from mnv2_jax.models.names import Activation, Shortcut, Transformation
from mnv2_jax.models.strides import strides_and_dilations


class Stage(NamedTuple):
    """A row of the paper's Table 2: `repeats` blocks, the first of which has the `stride`."""

    expansion: float  # t
    channels: int  # c, before the width multiplier
    repeats: int  # n
    stride: int  # s


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
"""Table 2. It holds 17 blocks; the paper's text speaks of 19 layers."""


class MobileNetV2(ImageClassifier):
    """MobileNetV2 (Table 2).

    The channels of every layer are rounded to multiples of 8; the last convolution is never narrower than
    1280 (Sec. 6.1). Layers and endpoints are named "stem", "block_0" to "block_16" with "expand", "depthwise"
    and "project", "head" and "classifier".

    Attributes:
        expansion: t of every stage but the first, which has t = 1 in the paper.
        shortcut: what the shortcuts join: "bottleneck", the paper's answer, "expansion", or "none"; see `InvertedResidual`.
        bottleneck_activation: what follows the projection of a block; the paper's answer is "linear". Of several
            names, `choice` says which one.
        stages: the table between stem and head; rows with another expansion than 1 take `expansion`.
        channel_divisor: channels are multiples of this; smaller ones let a network meet a given cost closely.
        transformation: what the blocks do with their expansions; see `InvertedResidual`.
        choice: which of several activations, a number that may be traced; no setting of the network's own.
    """

    expansion: float = 6.0
    bottleneck_activation: Activation | tuple[Activation, ...] = "linear"
    stages: tuple[Stage, ...] = STAGES
    shortcut: Shortcut = "bottleneck"
    transformation: Transformation = "depthwise"
    channel_divisor: int = 8
    choice: Int[Array, ""] | int = 0

    def scaled(self, channels: int) -> int:
        """Channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier, self.channel_divisor)

    @nn.compact
    def endpoints(
        self,
        images: Float[Array, "n h w c"],
        train: bool = False,
        places: Int[Array, " n"] | None = None,
        split: int = 1,
    ) -> Mapping[str, Array]:
        """Feature maps by name: "stem", "block_1/expand", "block_1/depthwise", "block_1", ..., "head", "logits".

        With a `split`, those inside of blocks are never whole and not among them; see `__call__`.
        """
        rows = [(stage, stage.stride if repeat == 0 else 1) for stage in self.stages for repeat in range(stage.repeats)]
        moves = strides_and_dilations([2, *(stride for _, stride in rows)], self.unit_strides, self.output_stride)
        conv_norm = self.conv_norm
        names = self.bottleneck_activation
        activation = names if isinstance(names, str) else chosen_activation(names, self.choice)
        ends: dict[str, Array] = {}
        wide: Array | None = None
        x = ends["stem"] = conv_norm(self.scaled(32), 3, *moves[0], name="stem")(images, train)
        for index, ((stage, _), (stride, dilation)) in enumerate(zip(rows, moves[1:], strict=True)):
            block = InvertedResidual(
                self.scaled(stage.channels),
                expansion=1 if stage.expansion == 1 else self.expansion,
                stride=stride,
                dilation=dilation,
                bottleneck_activation=activation,
                shortcut=self.shortcut,
                transformation=self.transformation,
                conv_norm=conv_norm,
                name=f"block_{index}",
            ).endpoints(x, train, wide, split)
            wide, x = block.get("depthwise"), block.pop("output")
            ends.update({f"block_{index}/{name}": value for name, value in block.items()})
            ends[f"block_{index}"] = x
        x = ends["head"] = conv_norm(max(1280, self.scaled(1280)), name="head")(x, train)
        return {**ends, **self.classify(x, train, places)}

    def __call__(
        self,
        images: Float[Array, "n h w c"],
        train: bool = False,
        places: Int[Array, " n"] | None = None,
        split: int = 1,
    ) -> Float[Array, "n classes"]:
        """Classify; see `ImageClassifier`.

        At inference, a `split` computes each block in so many parts of its inner channels, one after the other: the same
        function to rounding, in less memory, since no expansion is ever held whole (Sec. 5.1).
        """
        return self.endpoints(images, train, places, split)["logits" if self.num_classes else "pooled"]
