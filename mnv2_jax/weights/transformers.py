"""Hugging Face transformers' MobileNetV1 and V2 (modeling_mobilenet_v1.py, modeling_mobilenet_v2.py)."""

from mnv2_jax.weights.mapping import Source
from mnv2_jax.weights.torchvision import COUNTERS, KERNEL, LINEAR, NORM


def _layer(name: str) -> tuple[str, str]:
    return f"{name}.convolution", f"{name}.normalization"


TRANSFORMERS = Source(
    name="transformers",
    title="Hugging Face transformers",
    tables={
        "mobilenet_v1": {
            "stem": _layer("conv_stem"),
            "block/depthwise": _layer("layer.{even}"),
            "block/pointwise": _layer("layer.{odd}"),
            "classifier": ("classifier",),
        },
        "mobilenet_v2": {
            # Their stem includes our first block.
            "stem": _layer("conv_stem.first_conv"),
            "plain/depthwise": _layer("conv_stem.conv_3x3"),
            "plain/project": _layer("conv_stem.reduce_1x1"),
            "block/expand": _layer("layer.{before}.expand_1x1"),
            "block/depthwise": _layer("layer.{before}.conv_3x3"),
            "block/project": _layer("layer.{before}.reduce_1x1"),
            "head": _layer("conv_1x1"),
            "classifier": ("classifier",),
        },
    },
    convention="tensorflow",
    preprocessing={"mobilenet_v1": "transformers", "mobilenet_v2": "transformers"},
    kernel=KERNEL,
    depthwise=KERNEL,
    classifier={"mobilenet_v1": LINEAR, "mobilenet_v2": LINEAR},
    norm=NORM,
    bias=".bias",
    ignored=COUNTERS,
)
