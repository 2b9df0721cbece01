"""Equality with the original packages: logits, features, and gradients of all parameters."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file

from mnv2_jax.weights.load import SOURCES, load_weights
from mnv2_jax.weights.mapping import entries, flatten

from .conftest import randomize_keras, randomize_torch

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)
SIZES = (64, 97)
TOLERANCE = 2e-5  # relative to the logits' standard deviation


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.std(theirs) > 1e-3
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.std(theirs)


def torch_logits(network, images):
    with torch.no_grad():
        output = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return getattr(output, "logits", output).numpy()


def load_torch(network, tmp_path, source):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return load_weights(tmp_path / "weights.safetensors", source)


@pytest.mark.parametrize("width", WIDTHS)
def test_torchvision_and_timm(width, images, tmp_path):
    network = randomize_torch(torchvision.models.mobilenet_v2(weights=None, width_mult=width))
    weights = load_torch(network, tmp_path, "torchvision")
    assert weights.model.width_multiplier == width
    other = randomize_torch(timm.create_model(f"mobilenetv2_{round(100 * width):03}"), seed=1)
    other_weights = load_torch(other, tmp_path, "timm")
    for size in SIZES:
        assert_same(apply(weights.model, weights.variables, images(size)), torch_logits(network, images(size)))
        # timm's network is the same model here, so one compiled program serves both.
        assert other_weights.model == weights.model
        assert_same(apply(weights.model, other_weights.variables, images(size)), torch_logits(other, images(size)))


# Keras takes most of the time of these tests, so some widths have only one size.
@pytest.mark.parametrize(
    ("width", "sizes"), [(0.35, SIZES), (0.5, SIZES[:1]), (0.75, SIZES[1:]), (1.0, SIZES[1:]), (1.4, SIZES[:1])]
)
def test_keras_and_transformers(width, sizes, images, tmp_path):
    # Keras fixes the image size in the network, and its padding depends on it.
    networks = [keras.applications.MobileNetV2(input_shape=(size, size, 3), alpha=width, weights=None,
                                               classifier_activation=None) for size in sizes]  # fmt: skip
    network = randomize_keras(networks[0])
    networks[-1].set_weights(network.get_weights())
    network.save_weights(tmp_path / "keras.weights.h5")
    weights = load_weights(tmp_path / "keras.weights.h5", "keras")
    assert weights.model.width_multiplier == width
    config = transformers.MobileNetV2Config(depth_multiplier=width, num_labels=1000)
    other = randomize_torch(transformers.MobileNetV2ForImageClassification(config), seed=1)
    other_weights = load_torch(other, tmp_path, "transformers")
    for size, network in zip(sizes, networks, strict=True):
        keras_logits = np.asarray(jax.jit(functools.partial(network, training=False))(images(size)))
        assert_same(apply(weights.model, weights.variables, images(size)), keras_logits)
        assert other_weights.model == weights.model
        assert_same(apply(weights.model, other_weights.variables, images(size)), torch_logits(other, images(size)))


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_as_in_transformers(output_stride, images, tmp_path):
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=10, output_stride=output_stride)
    network = randomize_torch(transformers.MobileNetV2ForImageClassification(config))
    weights = load_torch(network, tmp_path, "transformers")
    for size in SIZES:
        x = images(size)
        with torch.no_grad():
            body = network.mobilenet_v2(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state
        model = weights.model.clone(output_stride=output_stride)
        ends = jax.jit(functools.partial(model.apply, method="endpoints"))(weights.variables, x)
        theirs = body.numpy().transpose(0, 2, 3, 1)
        assert ends["head"].shape == theirs.shape
        # The root mean square, not the maximum, of some 100,000 differences.
        assert np.std(ends["head"] - theirs) <= TOLERANCE * np.std(theirs)
        assert_same(ends["logits"], torch_logits(network, x))


def test_mobilenet_v1_of_timm(images, tmp_path):
    network = randomize_torch(timm.create_model("mobilenetv1_100", num_classes=10))
    weights = load_torch(network, tmp_path, "timm")
    for size in SIZES:
        assert_same(apply(weights.model, weights.variables, images(size)), torch_logits(network, images(size)))


@pytest.mark.parametrize("width", [0.25])
def test_mobilenet_v1_of_keras_and_transformers(width, images, tmp_path):
    network = randomize_keras(keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=width, weights=None,
                                                           classes=10, classifier_activation=None))  # fmt: skip
    network.save(tmp_path / "keras.keras")
    weights = load_weights(tmp_path / "keras.keras", "keras")
    assert weights.model.width_multiplier == width
    # Keras pads every strided layer (0, 1), which equals SAME only for even sizes.
    keras_logits = np.asarray(jax.jit(functools.partial(network, training=False))(images(64)))
    assert_same(apply(weights.model, weights.variables, images(64)), keras_logits)

    config = transformers.MobileNetV1Config(depth_multiplier=width, num_labels=10)
    other = randomize_torch(transformers.MobileNetV1ForImageClassification(config), seed=1)
    other_weights = load_torch(other, tmp_path, "transformers")
    for size in SIZES:
        assert_same(apply(weights.model, other_weights.variables, images(size)), torch_logits(other, images(size)))


# --- Gradients -------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def gradients_of(model, variables, x, direction):
    def loss(params):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return jnp.sum(apply({**variables, "params": params}, x)[0] * direction)

    return jax.grad(loss)(variables["params"])


def our_gradients(weights, x, direction):
    """Return gradients of sum(logits * direction), with batch statistics, in the source's names and layout."""
    leaves = flatten({"params": gradients_of(weights.model, weights.variables, x, direction)})
    table = entries(SOURCES[weights.source], weights.model)
    return {e.theirs: e.layout.to_theirs(np.asarray(leaves[e.ours])) for e in table if e.ours[0] == "params"}


def assert_same_gradients(weights, their_gradients, images):
    """Check that gradients agree to 1e-3 of each tensor's norm, on at least one of eight inputs.

    If an activation lies on a corner of ReLU6, rounding decides its gradient and everything upstream of it: either
    package's own gradients jump by percents when such an input changes in its last bit. A wrong derivative is wrong on
    every input.

    17 tensors have zero gradient: the bias of the norm at the end of a bottleneck is the same at every pixel, and the
    next norm, after a 1x1 convolution, removes it. There both packages have only rounding errors, small compared with
    the whole gradient.
    """
    table = entries(SOURCES[weights.source], weights.model)
    vanishing = {entry.theirs for entry in table if entry.ours[-3:] == ("project", "norm", "bias")}
    assert len(vanishing) == 17
    direction = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    worst = []
    for size in range(64, 72):
        x = images(size, 8)[:, :64, :64]
        ours, theirs = our_gradients(weights, x, direction), their_gradients(x, direction)
        assert ours.keys() == theirs.keys()
        whole = np.sqrt(sum(np.sum(gradient**2) for gradient in theirs.values()))
        for name in vanishing:
            assert np.linalg.norm(ours[name]) < 1e-6 * whole, name
            assert np.linalg.norm(theirs[name]) < 1e-6 * whole, name
        of_norm = {
            name: np.linalg.norm(ours[name] - gradient) / np.linalg.norm(gradient)
            for name, gradient in theirs.items()
            if name not in vanishing
        }
        worst.append(max((share, name) for name, share in of_norm.items()))
        if worst[-1][0] <= 1e-3:
            return
    raise AssertionError(f"gradients differ, relative to their norms: {worst}")


def test_gradients_of_torchvision(images, tmp_path):
    network = randomize_torch(
        torchvision.models.mobilenet_v2(weights=None, width_mult=0.35, num_classes=10, dropout=0.0)
    )
    weights = load_torch(network, tmp_path, "torchvision")
    network.train()

    def gradients(x, direction):
        network.zero_grad()
        logits = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        (logits * torch.from_numpy(direction)).sum().backward()
        return {name: parameter.grad.numpy().copy() for name, parameter in network.named_parameters()}

    assert_same_gradients(weights, gradients, images)


def test_gradients_of_keras(images, tmp_path):
    network = randomize_keras(keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None,
                                                             classes=10, classifier_activation=None))  # fmt: skip
    network.save_weights(tmp_path / "keras.weights.h5")
    weights = load_weights(tmp_path / "keras.weights.h5", "keras")

    @jax.jit
    def compiled(trainable, x, direction):
        def loss(trainable):
            fixed = [variable.value for variable in network.non_trainable_variables]
            logits, _ = network.stateless_call(trainable, fixed, x, training=True)
            return jnp.sum(logits * direction)

        return jax.grad(loss)(trainable)

    def gradients(x, direction):
        found = compiled([variable.value for variable in network.trainable_variables], x, direction)
        names = [variable.path for variable in network.trainable_variables]
        return {name: np.asarray(gradient) for name, gradient in zip(names, found, strict=True)}

    assert_same_gradients(weights, gradients, images)
