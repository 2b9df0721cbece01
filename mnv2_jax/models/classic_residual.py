"""MobileNetV2 turned inside out: the classic residual block in its place, to be compared with (Sec. 3.3, Fig. 3)."""

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float, Int

from mnv2_jax.models.blocks import ClassicResidual
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.layers import make_divisible
from mnv2_jax.models.mobilenet_v2 import STAGES, Stage
from mnv2_jax.models.strides import strides_and_dilations


class ClassicResidualNet(ImageClassifier):
    """The stages of MobileNetV2 with blocks whose ends are wide and whose middle is narrow.

    Where MobileNetV2 has a bottleneck of c channels between inner layers of t c, this has ends of t c channels and
    c between them. Stem, head and classifier are MobileNetV2's, so that the blocks alone differ. Layers and
    endpoints are named "stem", "block_0" to "block_16" with "reduce", "depthwise" or "full", and "restore", "head"
    and "classifier".

    Attributes:
        reduction: t, the width of a block's ends over that of its middle.
        depthwise: whether the 3x3 convolution of a block filters each channel by itself; else it is full.
        stages: MobileNetV2's table; its expansions are not used.
        channel_divisor: channels are multiples of this.
    """

    reduction: float = 6.0
    depthwise: bool = True
    stages: tuple[Stage, ...] = STAGES
    channel_divisor: int = 8

    def scaled(self, channels: float) -> int:
        """Channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier, self.channel_divisor)

    @nn.compact
    def endpoints(
        self, images: Float[Array, "n h w c"], train: bool = False, places: Int[Array, " n"] | None = None
    ) -> Mapping[str, Array]:
        """Feature maps by name: "stem", "block_0/reduce", "block_0/depthwise", "block_0", ..., "head", "logits"."""
        rows = [(stage, stage.stride if repeat == 0 else 1) for stage in self.stages for repeat in range(stage.repeats)]
        moves = strides_and_dilations([2, *(stride for _, stride in rows)], self.unit_strides, self.output_stride)
        ends: dict[str, Array] = {}
        x = ends["stem"] = self.conv_norm(self.scaled(32), 3, *moves[0], name="stem")(images, train)
        for index, ((stage, _), (stride, dilation)) in enumerate(zip(rows, moves[1:], strict=True)):
            block = ClassicResidual(
                self.scaled(self.reduction * stage.channels),
                self.scaled(stage.channels),
                stride=stride,
                dilation=dilation,
                depthwise=self.depthwise,
                activation=self.activation,
                conv_norm=self.conv_norm,
                name=f"block_{index}",
            ).endpoints(x, train)
            x = block.pop("output")
            ends.update({f"block_{index}/{name}": value for name, value in block.items()})
            ends[f"block_{index}"] = x
        x = ends["head"] = self.conv_norm(max(1280, self.scaled(1280)), name="head")(x, train)
        return {**ends, **self.classify(x, train, places)}
