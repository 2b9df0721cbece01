"""MobileNetV2: the (t, c, n, s) table and the network."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2_jax.models.blocks import ConvNorm, InvertedResidual
from mnv2_jax.models.layers import CONVENTIONS, Activation, ConventionName, make_divisible


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

STRIDED_LAYERS = 1 + sum(stage.stride == 2 for stage in STAGES)
"""Layers with stride 2: the stem and the first block of four stages."""


def unit_strides_for(resolution: int) -> int:
    """How many of the first stride-2 layers should take stride 1 for images of `resolution` pixels.

    The fewest that leave a last feature map at least 3 pixels wide, which is what the paper's smallest images
    (96 pixels) have: 2 for 28 and 32 pixels (a last map of 4 pixels), 1 for 48 and 64, 0 from 65 pixels on.

    Raises:
        ValueError: if `resolution` is not positive.
    """
    if resolution <= 0:
        raise ValueError(f"the resolution must be positive, got {resolution}")
    for count in range(STRIDED_LAYERS):
        if -(-resolution // 2 ** (STRIDED_LAYERS - count)) >= 3:
            return count
    return STRIDED_LAYERS


class MobileNetV2(nn.Module):
    """MobileNetV2 (Table 2), from images in [-1, 1] to logits.

    Attributes:
        num_classes: width of the output.
        width_multiplier: scales the channels of every layer, rounded to multiples of 8; the last convolution
            is never narrower than 1280 (Sec. 6.1).
        expansion: t of every stage but the first, which has t = 1 in the paper.
        bottleneck_activation: what follows the projection of a block; the paper's answer is "linear".
        unit_strides: how many of the first stride-2 layers take stride 1 instead (the stem, then the first
            blocks of the stages with 24, 32, 64 and 160 channels). For small images; see `unit_strides_for`.
        convention: "tensorflow", the paper's, or "pytorch": padding, epsilon and initialisers.
        batch_norm_momentum: share of the running statistics that one step keeps.
        stages: the table between stem and head; rows with another expansion than 1 take `expansion`.
    """

    num_classes: int = 1000
    width_multiplier: float = 1.0
    expansion: float = 6.0
    bottleneck_activation: Activation = "linear"
    unit_strides: int = 0
    convention: ConventionName = "tensorflow"
    batch_norm_momentum: float = 0.99
    stages: tuple[Stage, ...] = STAGES

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Classify; `train` normalises by the batch and updates the collection "batch_stats"."""
        convention, momentum = self.convention, self.batch_norm_momentum
        conv_norm = functools.partial(ConvNorm, convention=convention, batch_norm_momentum=momentum)
        block = functools.partial(InvertedResidual, convention=convention, batch_norm_momentum=momentum)
        remaining_unit_strides = self.unit_strides

        def effective(stride: int) -> int:
            nonlocal remaining_unit_strides
            if stride == 2 and remaining_unit_strides > 0:
                remaining_unit_strides -= 1
                return 1
            return stride

        def scaled(channels: int) -> int:
            return make_divisible(channels * self.width_multiplier)

        x = conv_norm(scaled(32), 3, effective(2), name="stem")(images, train)
        index = 0
        for stage in self.stages:
            for repeat in range(stage.repeats):
                x = block(
                    scaled(stage.channels),
                    expansion=1 if stage.expansion == 1 else self.expansion,
                    stride=effective(stage.stride) if repeat == 0 else 1,
                    bottleneck_activation=self.bottleneck_activation,
                    name=f"block_{index}",
                )(x, train)
                index += 1
        x = conv_norm(max(1280, scaled(1280)), name="head")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        classifier_init = CONVENTIONS[self.convention].classifier_init
        return nn.Dense(self.num_classes, kernel_init=classifier_init, name="classifier")(x)
