"""MobileNetV1, the predecessor that the paper compares with (Howard et al., arXiv:1704.04861, Table 1)."""

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float, Int

from mnv2_jax.models.blocks import DepthwiseSeparable
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.strides import strides_and_dilations

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels, before the width multiplier, and stride of each block. The table of the V1 paper gives the
last block stride 2, but its own sizes (7 pixels before and after) and its code mean 1."""


class MobileNetV1(ImageClassifier):
    """MobileNetV1 with ReLU6, as its authors' code trains it (tensorflow/models, research/slim/nets/mobilenet_v1.py).

    Channels are truncated, not rounded to multiples of 8, and never fewer than 8. Layers and endpoints are
    named "stem", "block_0" to "block_12" with "depthwise" and "pointwise", and "classifier".

    Attributes:
        blocks: (channels, stride) of each block.
    """

    blocks: tuple[tuple[int, int], ...] = BLOCKS

    def scaled(self, channels: int) -> int:
        """Channels of a layer that has `channels` at width 1."""
        return max(8, int(channels * self.width_multiplier))

    @nn.compact
    def endpoints(
        self, images: Float[Array, "n h w c"], train: bool = False, places: Int[Array, " n"] | None = None
    ) -> Mapping[str, Array]:
        """Feature maps by name: "stem", "block_0/depthwise", "block_0", ..., "pooled", "logits"."""
        moves = strides_and_dilations(
            [2, *(stride for _, stride in self.blocks)], self.unit_strides, self.output_stride
        )
        conv_norm = self.conv_norm
        ends: dict[str, Array] = {}
        x = ends["stem"] = conv_norm(self.scaled(32), 3, *moves[0], name="stem")(images, train)
        for index, ((channels, _), (stride, dilation)) in enumerate(zip(self.blocks, moves[1:], strict=True)):
            block = DepthwiseSeparable(
                self.scaled(channels), stride, dilation, conv_norm, name=f"block_{index}"
            ).endpoints(x, train)
            x = ends[f"block_{index}"] = block["output"]
            ends[f"block_{index}/depthwise"] = block["depthwise"]
        return {**ends, **self.classify(x, train, places)}
