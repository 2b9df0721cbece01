"""MobileNetV2: the (t, c, n, s) table and the network."""

from typing import Any

from mnv2_jax.models.backbone import Backbone, Stage
from mnv2_jax.models.blocks import Block, InvertedResidual, block_name
from mnv2_jax.models.layers import Function, find_activation, linear, make_divisible
from mnv2_jax.models.names import Activation, check_count, check_scale

STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
"""Table 2. It has 17 blocks; the text of the paper says 19 layers."""


class MobileNetV2(Backbone):
    """MobileNetV2 (Table 2).

    The channels of every layer are rounded to multiples of `channel_divisor`. The last convolution has at least 1280
    channels (Sec. 6.1). Layers and endpoints are named "stem", "block_0" to "block_16" (with "expand", "depthwise" and
    "project"), "head" and "classifier".

    Attributes:
        expansion: replaces t in every stage whose t is not 1; None keeps the table's.
        bottleneck_activation: the activation after the projection of a block; a name in `ACTIVATIONS`, or a function.
            The paper's is "linear".
        block: `InvertedResidual` or a variant of it.
        channel_divisor: channels are multiples of this; a smaller divisor lets a network match a given cost closely.
    """

    stages: tuple[Stage, ...] = STAGES
    block: type[Block] = InvertedResidual
    expansion: float | None = None
    bottleneck_activation: Activation | Function = "linear"
    channel_divisor: int = 8

    def __post_init__(self) -> None:
        if self.expansion is not None:
            check_scale("the expansion", self.expansion)
        check_count("channel_divisor", self.channel_divisor, 1, 1024)
        is_linear = find_activation(self.bottleneck_activation) is linear
        super().__post_init__()
        if not is_linear and not hasattr(self.block, "bottleneck_activation"):
            raise ValueError(f"the block {block_name(self.block)} has no bottleneck_activation")

    def scaled(self, channels: float) -> int:
        """Return the channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier, self.channel_divisor)

    def create_block(self, stage: Stage, **moves: Any) -> Block:
        """Create a block of a stage."""
        if self.expansion is not None and stage.expansion != 1:
            stage = stage._replace(expansion=self.expansion)
        if hasattr(self.block, "bottleneck_activation"):
            moves["bottleneck_activation"] = self.bottleneck_activation
        return super().create_block(stage, **moves)

    def head_channels(self) -> int:
        """Return the channels of the 1x1 convolution after the blocks."""
        return max(1280, self.scaled(1280))
