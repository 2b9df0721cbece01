"""Baseline for MobileNetV2: the same network with classic residual blocks (Sec. 3.3, Fig. 3)."""

from typing import Any

from mnv2_jax.models.backbone import Backbone, Stage
from mnv2_jax.models.blocks import Block, ClassicResidual, block_name
from mnv2_jax.models.layers import make_divisible
from mnv2_jax.models.mobilenet_v2 import STAGES
from mnv2_jax.models.names import check_count, check_scale


class ClassicResidualNet(Backbone):
    """MobileNetV2's stages with blocks that are wide at both ends and narrow in the middle.

    MobileNetV2's blocks have c channels at the ends and t c inside. These have t c channels at the ends and c inside.
    Stem, head and classifier are MobileNetV2's, so only the blocks differ. Layers and endpoints are named "stem",
    "block_0" to "block_16" (with "reduce", "depthwise" or "full", and "restore"), "head" and "classifier".

    Attributes:
        stages: MobileNetV2's table; its expansions are not used.
        block: `ClassicResidual`, `FullClassicResidual`, or your own subclass.
        reduction: t, channels at the ends of a block divided by those in the middle.
        channel_divisor: channels are multiples of this.
    """

    stages: tuple[Stage, ...] = STAGES
    block: type[ClassicResidual] = ClassicResidual
    reduction: float = 6.0
    channel_divisor: int = 8

    def __post_init__(self) -> None:
        check_scale("the reduction", self.reduction)
        check_count("channel_divisor", self.channel_divisor, 1, 1024)
        super().__post_init__()
        if not issubclass(self.block, ClassicResidual):
            raise ValueError(f"the block {block_name(self.block)} is not a subclass of ClassicResidual")

    def scaled(self, channels: float) -> int:
        """Return the channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier, self.channel_divisor)

    def create_block(self, stage: Stage, **moves: Any) -> Block:
        """Create a block of a stage."""
        return self.block(
            self.scaled(self.reduction * stage.channels),
            narrow=self.scaled(stage.channels),
            activation=self.activation,
            conv_norm=self.conv_norm,
            **moves,
        )

    def head_channels(self) -> int:
        """Return the channels of the 1x1 convolution after the blocks."""
        return max(1280, self.scaled(1280))
