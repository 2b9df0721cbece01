"""timm's MobileNetV1 and V2 (timm/models/efficientnet.py)."""

from mnv2_jax.weights.mapping import Source
from mnv2_jax.weights.torchvision import COUNTERS, KERNEL, LINEAR, NORM

_BLOCK = "blocks.{stage}.{repeat}."

_SEPARABLE = {
    "depthwise": (_BLOCK + "conv_dw", _BLOCK + "bn1"),
    "pointwise": (_BLOCK + "conv_pw", _BLOCK + "bn2"),
}

TIMM = Source(
    name="timm",
    title="timm",
    tables={
        "mobilenet_v1": {
            "stem": ("conv_stem", "bn1"),
            "block/depthwise": _SEPARABLE["depthwise"],
            "block/pointwise": _SEPARABLE["pointwise"],
            "classifier": ("classifier",),
        },
        "mobilenet_v2": {
            "stem": ("conv_stem", "bn1"),
            # For an expansion of 1, timm uses V1's block without its last activation.
            "plain/depthwise": _SEPARABLE["depthwise"],
            "plain/project": _SEPARABLE["pointwise"],
            "block/expand": (_BLOCK + "conv_pw", _BLOCK + "bn1"),
            "block/depthwise": (_BLOCK + "conv_dw", _BLOCK + "bn2"),
            "block/project": (_BLOCK + "conv_pwl", _BLOCK + "bn3"),
            "head": ("conv_head", "bn2"),
            "classifier": ("classifier",),
        },
    },
    convention="pytorch",
    preprocessing={"mobilenet_v1": "timm_v1", "mobilenet_v2": "timm"},
    kernel=KERNEL,
    depthwise=KERNEL,
    classifier={"mobilenet_v1": LINEAR, "mobilenet_v2": LINEAR},
    norm=NORM,
    bias=".bias",
    ignored=COUNTERS,
)
