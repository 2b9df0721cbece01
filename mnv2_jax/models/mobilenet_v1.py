"""MobileNetV1, the predecessor that the paper compares with (Howard et al., arXiv:1704.04861, Table 1)."""

from mnv2_jax.models.backbone import Backbone, Stage
from mnv2_jax.models.blocks import Block, DepthwiseSeparable

STAGES = (
    Stage(1, 64, 1, 1),
    Stage(1, 128, 2, 2),
    Stage(1, 256, 2, 2),
    Stage(1, 512, 6, 2),
    Stage(1, 1024, 2, 2),
)
"""The V1 paper's table gives the last block stride 2, but the sizes in it (7 pixels before and after) and the authors'
code have stride 1."""


class MobileNetV1(Backbone):
    """MobileNetV1 with ReLU6, as its authors' code trains it (tensorflow/models, research/slim/nets/mobilenet_v1.py).

    Channels are truncated rather than rounded to multiples of 8, with a minimum of 8. Layers and endpoints are named
    "stem", "block_0" to "block_12" (with "depthwise" and "pointwise") and "classifier".

    Attributes:
        stages: every expansion is 1; other expansions need another `block`.
    """

    stages: tuple[Stage, ...] = STAGES
    block: type[Block] = DepthwiseSeparable

    def scaled(self, channels: float) -> int:
        """Return the channels of a layer that has `channels` at width 1."""
        return max(8, int(channels * self.width_multiplier))
