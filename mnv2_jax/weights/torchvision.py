"""torchvision's MobileNetV2 (torchvision/models/mobilenetv2.py)."""

from mnv2_jax.weights.mapping import Layout, Source

# PyTorch's kernels are OIHW, depthwise ones (C, 1, H, W); the same transposition gives HWIO. Linear layers are OI.
KERNEL = (".weight", Layout((2, 3, 1, 0)))
LINEAR = (".weight", Layout((1, 0)))
NORM = (".weight", ".bias", ".running_mean", ".running_var")
# PyTorch's counters for running statistics and for averaged weights.
COUNTERS = (".num_batches_tracked", "n_averaged")

TORCHVISION = Source(
    name="torchvision",
    title="torchvision",
    tables={
        "mobilenet_v2": {
            "stem": ("features.0.0", "features.0.1"),
            "plain/depthwise": ("features.{after}.conv.0.0", "features.{after}.conv.0.1"),
            "plain/project": ("features.{after}.conv.1", "features.{after}.conv.2"),
            "block/expand": ("features.{after}.conv.0.0", "features.{after}.conv.0.1"),
            "block/depthwise": ("features.{after}.conv.1.0", "features.{after}.conv.1.1"),
            "block/project": ("features.{after}.conv.2", "features.{after}.conv.3"),
            "head": ("features.{last}.0", "features.{last}.1"),
            "classifier": ("classifier.1",),
        }
    },
    convention="pytorch",
    preprocessing={"mobilenet_v2": "torchvision"},
    kernel=KERNEL,
    depthwise=KERNEL,
    classifier={"mobilenet_v2": LINEAR},
    norm=NORM,
    bias=".bias",
    ignored=COUNTERS,
)
