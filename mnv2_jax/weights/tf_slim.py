"""Checkpoints of TF-slim, the paper's code (tensorflow/models, research/slim/nets)."""

from mnv2_jax.weights.mapping import Layout, Source, Tensors

EMA = "/ExponentialMovingAverage"
SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")


def _layer(name: str) -> tuple[str, str]:
    return name, f"{name}/BatchNorm"


TF_SLIM = Source(
    name="tf_slim",
    title="TF-slim",
    tables={
        "mobilenet_v1": {
            "stem": _layer("MobilenetV1/Conv2d_0"),
            "block/depthwise": _layer("MobilenetV1/Conv2d_{after}_depthwise"),
            "block/pointwise": _layer("MobilenetV1/Conv2d_{after}_pointwise"),
            "classifier": ("MobilenetV1/Logits/Conv2d_1c_1x1",),
        },
        "mobilenet_v2": {
            "stem": _layer("MobilenetV2/Conv"),
            "plain/depthwise": _layer("MobilenetV2/expanded_conv/depthwise"),
            "plain/project": _layer("MobilenetV2/expanded_conv/project"),
            "block/expand": _layer("MobilenetV2/expanded_conv_{i}/expand"),
            "block/depthwise": _layer("MobilenetV2/expanded_conv_{i}/depthwise"),
            "block/project": _layer("MobilenetV2/expanded_conv_{i}/project"),
            "head": _layer("MobilenetV2/Conv_1"),
            "classifier": ("MobilenetV2/Logits/Conv2d_1c_1x1",),
        },
    },
    convention="tensorflow",
    preprocessing={"mobilenet_v1": "tensorflow", "mobilenet_v2": "tensorflow"},
    kernel=("/weights", Layout((0, 1, 2, 3))),
    # (height, width, channels, 1) in TF-slim.
    depthwise=("/depthwise_weights", Layout((0, 1, 3, 2))),
    # A 1x1 convolution in TF-slim.
    classifier=dict.fromkeys(("mobilenet_v1", "mobilenet_v2"), ("/weights", Layout((0, 1), squeeze=True))),
    norm=("/gamma", "/beta", "/moving_mean", "/moving_variance"),
    bias="/biases",
    ignored=("global_step",),
)


def choose_averages(tensors: Tensors) -> tuple[Tensors, int]:
    """Drop the optimizer's slots, and replace each variable by its moving average if it has one.

    Returns the tensors by the names of the network's variables, and the number of moving averages.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(SLOTS)}
    averages = {name.removesuffix(EMA): tensor for name, tensor in kept.items() if name.endswith(EMA)}
    plain = {name: tensor for name, tensor in kept.items() if not name.endswith(EMA)}
    return {**plain, **averages}, len(averages)
