"""MobileNetV2 turned inside out: the classic residual block in its place, to be compared with (Sec. 3.3, Fig. 3)."""

from typing import Any

from mnv2_jax.models.backbone import Backbone, Stage
from mnv2_jax.models.blocks import Block, ClassicResidual, block_name
from mnv2_jax.models.layers import make_divisible
from mnv2_jax.models.mobilenet_v2 import STAGES
from mnv2_jax.models.names import check_count, check_scale


class ClassicResidualNet(Backbone):
    """The stages of MobileNetV2 with blocks whose ends are wide and whose middle is narrow.

    Where MobileNetV2 has a bottleneck of c channels between inner layers of t c, this has ends of t c channels and
    c between them. Stem, head and classifier are MobileNetV2's, so that the blocks alone differ. Layers and
    endpoints are named "stem", "block_0" to "block_16" with "reduce", "depthwise" or "full", and "restore", "head"
    and "classifier".

    Attributes:
        stages: MobileNetV2's table; its expansions are not used.
        block: `ClassicResidual`, `FullClassicResidual`, or a subclass of one's own.
        reduction: t, the width of a block's ends over that of its middle.
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
            raise ValueError(f"the block {block_name(self.block)} is no ClassicResidual")

    def scaled(self, channels: float) -> int:
        """Channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier, self.channel_divisor)

    def create_block(self, stage: Stage, **moves: Any) -> Block:
        """A block of a stage."""
        return self.block(
            self.scaled(self.reduction * stage.channels),
            narrow=self.scaled(stage.channels),
            activation=self.activation,
            conv_norm=self.conv_norm,
            **moves,
        )

    def head_channels(self) -> int:
        """Channels of the 1x1 convolution behind the blocks."""
        return max(1280, self.scaled(1280))
