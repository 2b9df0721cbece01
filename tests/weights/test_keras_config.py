"""Layers around and inside a Keras network, without Keras; `tests/peers` tests models that Keras itself writes."""

import numpy as np
import pytest

from mnv2_jax import create_model
from mnv2_jax.data.preprocessing import Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.weights import mapping
from mnv2_jax.weights.keras import KERAS
from mnv2_jax.weights.keras_config import KNOWN_HEAD, Layer, adapt

from .networks import random_network

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def network():
    network = random_network("keras", num_classes=0)
    return mapping.export(KERAS, network.model, network.variables), create_model("mobilenet_v2")


def layer(kind, name="mine", inputs=(), **config):
    return Layer((), kind, name, config, inputs)


def body(tensors, epsilon=1e-3, activation=6.0):
    """Yield the network's layers with the activations between them."""
    names = dict.fromkeys(name.split("/")[0] for name in tensors)
    for name in names:
        norm = f"{name}/gamma" in tensors
        yield layer("BatchNormalization", name, epsilon=epsilon) if norm else layer("Conv2D", name)
        if norm and "project" not in name:
            yield layer("ReLU", f"{name}_relu", max_value=activation)


POOL = layer("GlobalAveragePooling2D", "pool")


@pytest.fixture
def adapted(network):
    """Return a function that builds a model with layers before, inside and after the network."""

    def adapted(front=(), behind=(), outputs=7, loss=None, **inside):
        tensors, model = network
        head = {"mine/kernel": np.ones((1280, outputs), np.float32), "mine/bias": np.zeros(outputs, np.float32)}
        layers = [
            layer("InputLayer", "input", batch_shape=[None, 96, 96, 3]),
            *front,
            *body(tensors, **inside),
            *behind,
        ]
        return adapt(KERAS, {**tensors, **head}, layers, loss, model)

    return adapted


@pytest.mark.parametrize(
    ("behind", "loss", "outputs"),
    [
        ([layer("Dropout"), layer("Dense", activation="softmax")], None, "softmax"),
        ([layer("Flatten"), layer("Dense", activation="sigmoid")], None, "sigmoid"),
        ([layer("Dense", activation="linear"), layer("Activation", "a", activation="sigmoid")], None, "sigmoid"),
        ([layer("Dense", activation={"class_name": "function", "config": "softmax"})], None, "softmax"),
        ([layer("Dense"), layer("Softmax", "a")], None, "softmax"),
        ([layer("Dense")], None, None),
        ([layer("Dense")], {"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}, "sigmoid"),
        ([layer("Dense")], {"class_name": "CategoricalCrossentropy", "config": {"from_logits": True}}, "softmax"),
        ([layer("Dense")], {"class_name": "MeanSquaredError", "config": {}}, None),
    ],
)
def test_what_the_outputs_of_a_dense_layer_are(behind, loss, outputs, adapted):
    tensors, said = adapted(behind=[POOL, *behind], loss=loss)
    assert tensors["predictions/kernel"].shape == (1280, 7)
    assert (said.outputs, said.resolution) == (outputs, 96)
    assert said.notes == ("the classifier is the dense layer 'mine' with 7 outputs",)


@pytest.mark.parametrize(
    "behind",
    [
        [layer("GlobalMaxPooling2D", "pool"), layer("Dense", activation="softmax")],
        [POOL, layer("Dense", "hidden", activation="relu"), layer("Dense")],
        [POOL, layer("BatchNormalization", "norm"), layer("Dense")],
        [POOL, layer("Dense", activation="tanh")],
    ],
)
def test_a_head_of_another_kind_is_left_out_and_named_with_what_is_known(behind, adapted):
    tensors, said = adapted(behind=behind)
    assert "predictions/kernel" not in tensors
    listed = ", ".join(f"{each.kind} {each.name!r}" for each in behind)
    assert said.notes == (f"layers after the network that are not read: {listed}; supported is {KNOWN_HEAD}",)


def keras_3(kind, value, first=False):
    tensor = {"class_name": "__keras_tensor__", "config": {}}
    return layer(kind, inputs=[{"args": [value, tensor] if first else [tensor, value], "kwargs": {}}])


@pytest.mark.parametrize(
    ("front", "mean", "std"),
    [
        ([layer("RandomFlip")], None, None),
        ([layer("Rescaling", scale=1 / 127.5, offset=-1)], HALF, HALF),
        ([keras_3("TrueDivide", 127.5), keras_3("Subtract", 1.0)], HALF, HALF),
        ([layer("TFOpLambda", function="math.truediv", inputs=[["x", 0, 0, {"y": 127.5}]]),
          layer("TFOpLambda", function="math.subtract", inputs=[["x", 0, 0, {"y": 1.0}]])], HALF, HALF),
        ([layer("Rescaling", scale=1 / 255), layer("Normalization", mean=[0.25, 0.5, 0.75], variance=[0.25, 1, 4])],
         (0.25, 0.5, 0.75), (0.5, 1.0, 2.0)),
    ],
    ids=["none", "Rescaling", "Keras 3", "Keras 2", "Normalization"],
)  # fmt: skip
def test_layers_that_scale_images_are_in_the_preprocessing(front, mean, std, adapted):
    _, said = adapted(front=front, behind=[POOL, layer("Dense")])
    assert said.preprocessing == (mean and Preprocessing("resize", 1.0, "bilinear", mean, std))


@pytest.mark.parametrize(
    "front",
    [
        layer("Resizing", height=96),
        layer("RandomCrop"),
        layer("Lambda"),
        layer("Rescaling", scale=0),
        keras_3("Subtract", 1.0, first=True),
    ],
    ids=str,
)
def test_layers_in_front_that_are_not_understood_are_refused(front, adapted):
    with pytest.raises(UserError, match=f"{front} before the network"):
        adapted(front=[front], behind=[POOL, layer("Dense")])


def test_epsilon_and_activation_are_the_file_s(adapted):
    _, said = adapted(epsilon=1e-5, activation=None)
    assert said.settings == {"convention": "tensorflow", "batch_norm_epsilon": 1e-5, "activation": "relu"}
    with pytest.raises(
        UserError, match=r"has 35 activations \(ReLU with max_value 1.0, .*expected 35 of one kind: relu6, relu"
    ):
        adapted(activation=1.0)


@pytest.mark.parametrize(
    ("index", "changed", "says"),
    [
        (1, layer("Conv2D", "Conv1", kernel_size=[3, 3], strides=[1, 1]), r"strides \[1, 1\], expected 2"),
        (1, layer("Conv2D", "Conv1", kernel_size=[3, 3], data_format="channels_first"), "expects channels first"),
        (
            2,
            layer("BatchNormalization", "bn_Conv1", epsilon=1.0),
            r"different epsilons, \[0.001, 1.0\]; expected the same for all",
        ),
        (3, layer("Multiply", "gate"), "Multiply 'gate' inside the network is not supported"),
        (0, layer("InputLayer", "input", batch_shape=[None, 96, 64, 3]), r"images have shape \(96, 64, 3\), expected"),
        (
            1,
            layer("Conv2D", "Conv1", kernel_size=[3, 3], padding="valid"),
            r"is padded by 0 on a feature map of 96 by 96 .* \[0, 1\]",
        ),
    ],
)
def test_a_network_that_computes_otherwise_is_refused(index, changed, says, network):
    tensors, model = network
    layers = [layer("InputLayer", "input", batch_shape=[None, 96, 96, 3]), *body(tensors)]
    layers[index] = changed
    with pytest.raises(UserError, match=says):
        adapt(KERAS, tensors, layers, None, model)


@pytest.mark.parametrize(("side", "padding"), [(96, [[0, 1], [0, 1]]), (97, [[1, 1], [1, 1]])])
def test_padding_that_is_the_published_network_s_is_taken(side, padding, network):
    tensors, model = network
    first = layer("Conv2D", "Conv1", kernel_size=[3, 3], strides=[2, 2], padding="valid")
    inputs = layer("InputLayer", "input", batch_shape=[None, side, side, 3])
    _, _, *rest = [inputs, *body(tensors)]
    _, said = adapt(KERAS, tensors, [inputs, layer("ZeroPadding2D", "pad", padding=padding), first, *rest], None, model)
    assert said.resolution == side
    other = layer("ZeroPadding2D", "pad", padding=[[1, 0], [1, 0]])
    with pytest.raises(UserError, match="is padded by"):
        adapt(KERAS, tensors, [inputs, other, first, *rest], None, model)
