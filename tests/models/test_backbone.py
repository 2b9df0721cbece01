"""The forward pass that all networks share, its settings, and invalid ones."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import MobileNetV1, MobileNetV2
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import Block
from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.models.cost import count_parameters, layer_costs
from mnv2_jax.models.mobilenet_v2 import STAGES

# Four blocks with strides, an expansion and a shortcut, compiled in seconds.
SMALL = MobileNetV2(7, 0.25, stages=(*STAGES[:2], STAGES[-1]))
IMAGES = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(SMALL.init)(jax.random.key(0), IMAGES)


def endpoints(model, variables, images=IMAGES):
    return jax.jit(lambda variables: model.apply(variables, images, method="endpoints"))(variables)


def test_calling_gives_the_logits_and_endpoints_what_led_to_them(variables):
    ends = endpoints(SMALL, variables)
    assert list(ends) == sorted(["stem", "block_0/depthwise", "block_0", "block_1/expand", "block_1/depthwise", "block_1",
                                 "block_2/expand", "block_2/depthwise", "block_2", "block_3/expand", "block_3/depthwise",
                                 "block_3", "head", "pooled", "logits"])  # fmt: skip
    assert ends["block_2/expand"].shape == (4, 4, 4, 48)
    assert ends["block_2"].shape == (4, 4, 4, 8)
    np.testing.assert_array_equal(jax.jit(SMALL.apply)(variables, IMAGES), ends["logits"])
    np.testing.assert_allclose(ends["pooled"], ends["head"].mean((1, 2)), rtol=1e-5)


def test_no_classes_no_classifier(variables):
    features = SMALL.clone(num_classes=0)
    assert "classifier" not in jax.eval_shape(features.init, jax.random.key(0), IMAGES)["params"]
    pooled = features.apply(variables, IMAGES)
    np.testing.assert_allclose(pooled, endpoints(SMALL, variables)["pooled"], rtol=1e-5, atol=1e-6)


def test_dropout_drops_pooled_features_in_training_only(variables):
    model = SMALL.clone(dropout_rate=0.5)

    def logits(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, IMAGES, train=train, rngs=rngs, mutable=["batch_stats"])[0]

    assert not np.array_equal(logits(0, True), logits(1, True))
    np.testing.assert_array_equal(logits(0, True), logits(0, True))
    np.testing.assert_array_equal(logits(0, False), SMALL.apply(variables, IMAGES))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(variables):
    model = SMALL.clone(dtype=jnp.bfloat16)

    def loss(variables):
        logits, updates = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), updates["batch_stats"]

    initial = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((initial, gradients, statistics))} == {jnp.dtype("float32")}
    ends = endpoints(model, variables)
    assert ends.pop("logits").dtype == ends.pop("pooled").dtype == jnp.float32
    assert {leaf.dtype for leaf in ends.values()} == {jnp.dtype("bfloat16")}
    wide = endpoints(SMALL, variables)["head"]
    # 8 bits of mantissa over ten layers.
    assert 0 < jnp.abs(ends["head"] - wide).max() < 0.05 * jnp.abs(wide).max()


@pytest.mark.parametrize("kind", [MobileNetV1, MobileNetV2, ClassicResidualNet])
def test_a_network_of_large_kernels_is_the_same_with_either_form_of_them(kind):
    """Outputs and gradients, with dilation and with maps smaller than the kernel."""
    stages = (Stage(1, 16, 1, 1), Stage(1, 24, 1, 2), Stage(1, 24, 1, 2))
    model = kind(3, 0.1, stages=stages, kernel_size=7, output_stride=8, convention="pytorch")
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    assert variables["params"]["block_2"]["depthwise"]["conv"]["kernel"].shape[:2] == (7, 7)

    def loss(params, kernels):
        own = {**variables, "params": params}
        return jnp.sum(model.clone(kernels=kernels).apply(own, IMAGES) ** 2)

    found = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    tuned, xla = (found(variables["params"], form) for form in ("tuned", "xla"))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(xla))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), tuned, xla)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_keeps_maps_fine_and_weights_the_same(output_stride):
    layers = {layer.name: layer for layer in layer_costs(MobileNetV2(output_stride=output_stride), (96, 96, 3))}
    assert layers["head"].output_shape[:2] == (96 // output_stride, 96 // output_stride)
    # The block with the removed stride keeps the resolution; later blocks are dilated to keep their receptive field.
    assert layers["block_13/depthwise"].stride == 1
    assert layers["block_13/depthwise"].dilation == 16 // output_stride
    assert layers["block_14/depthwise"].dilation == 32 // output_stride
    assert count_parameters(MobileNetV2(output_stride=output_stride), (96, 96, 3)) == 3_504_872


def test_a_dilated_network_computes_at_more_places_what_the_strided_one_computes():
    """Away from borders, every second pixel of the finer map is the strided map."""
    fine = MobileNetV2(7, 0.25, stages=(Stage(1, 16, 1, 2), Stage(6, 24, 2, 2), Stage(6, 64, 1, 2), Stage(6, 64, 1, 1)))
    images = jax.random.normal(jax.random.key(2), (1, 128, 128, 3))
    variables = jax.jit(fine.init)(jax.random.key(0), images)
    coarse = endpoints(fine, variables, images)["block_4"]
    finer = endpoints(fine.clone(output_stride=8), variables, images)["block_4"]
    assert coarse.shape[1:3] == (8, 8)
    assert finer.shape[1:3] == (16, 16)
    # TensorFlow pads the odd pixel at the end, so a strided map is centered one pixel off.
    np.testing.assert_allclose(finer[:, 1::2, 1::2][:, 2:-2, 2:-2], coarse[:, 2:-2, 2:-2], rtol=1e-4, atol=1e-5)


def test_the_inner_activation_is_every_layer_s_but_the_bottleneck_s():
    model = MobileNetV2(3, 0.25, activation="relu", stages=(Stage(1, 16, 1, 1), Stage(6, 24, 1, 1)))
    images = 50 * jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    variables["params"]["stem"]["norm"]["scale"] *= 20
    ends, _ = model.apply(variables, images, True, method="endpoints", mutable=["batch_stats"])
    assert ends["stem"].max() > 6
    assert ends["stem"].min() == 0
    assert ends["block_1"].min() < 0


def with_statistics(variables, key):
    """Return variables like a trained network's: all scales, biases and running statistics differ."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    leaves = [leaf + 0.3 * jnp.abs(jax.random.normal(k, leaf.shape)) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def test_the_network_in_parts_is_the_network():
    stages = (Stage(1, 16, 1, 1), Stage(6, 24, 1, 2))
    network = MobileNetV2(width_multiplier=0.35, num_classes=10, stages=stages)
    images = jax.random.normal(jax.random.key(3), (1, 32, 32, 3))
    variables = with_statistics(jax.jit(network.init)(jax.random.key(1), images), jax.random.key(2))
    endpoints = jax.jit(functools.partial(network.apply, method="endpoints"), static_argnames="split")
    whole, parts = endpoints(variables, images), endpoints(variables, images, split=4)
    assert set(whole) - set(parts) == {name for name in whole if "/" in name}
    for name, value in parts.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-5 * np.abs(whole[name]).max(), err_msg=name)


def test_networks_whose_blocks_cannot_be_split_are_not():
    for model in (MobileNetV1(7, 0.25), ClassicResidualNet(7, 0.25)):
        with pytest.raises(ValueError, match="cannot be split, got split=2"):
            jax.eval_shape(functools.partial(model.init, split=2), jax.random.key(0), IMAGES)


# --- A body, and a part of it that does not learn --------------------------------------------------------


@pytest.mark.parametrize("model", [SMALL, MobileNetV1(7, 0.25, stages=(Stage(1, 64, 1, 1), Stage(1, 128, 1, 2)))])
def test_without_its_head_a_network_is_a_body_whose_output_is_its_last_map(model):
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    body = model.clone(head=False)
    own = jax.eval_shape(body.init, jax.random.key(0), IMAGES)["params"]
    assert set(variables["params"]) - set(own) == {"head", "classifier"} & set(variables["params"])
    whole, ends = endpoints(model, variables), endpoints(body, variables)
    assert set(whole) - set(ends) == {"head", "logits"} & set(whole)
    last = f"block_{len([name for name in own if name.startswith('block_')]) - 1}"
    np.testing.assert_array_equal(ends[last], whole[last])
    np.testing.assert_allclose(ends["pooled"], whole[last].mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(body.apply)(variables, IMAGES), ends["pooled"])


def test_what_belongs_to_the_task_is_told_from_the_backbone(variables):
    assert (
        set(SMALL.task_layers)
        == {"classifier"}
        == set(variables["params"])
        - set(jax.eval_shape(SMALL.clone(num_classes=0).init, jax.random.key(0), IMAGES)["params"])
    )


def test_frozen_batch_norm_trains_on_the_running_statistics_and_leaves_them(variables):
    variables = with_statistics(variables, jax.random.key(2))
    frozen = SMALL.clone(frozen_batch_norm=True)

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = run(frozen, IMAGES)
    np.testing.assert_allclose(logits, jax.jit(SMALL.apply)(variables, IMAGES), rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    # An image's output does not depend on the rest of the batch.
    np.testing.assert_allclose(run(frozen, IMAGES[:2])[0], logits[:2], rtol=1e-4, atol=1e-4)
    moved = run(SMALL, IMAGES)[1]["batch_stats"]["stem"]["norm"]["mean"]
    assert not np.array_equal(moved, variables["batch_stats"]["stem"]["norm"]["mean"])


def test_a_frozen_network_still_drops_features_and_learns(variables):
    model = SMALL.clone(frozen_batch_norm=True, dropout_rate=0.5)

    def loss(params, seed):
        rngs = {"dropout": jax.random.key(seed)}
        logits, _ = model.apply({**variables, "params": params}, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"])
        return jnp.sum(logits**2)

    losses, gradients = zip(*(jax.jit(jax.value_and_grad(loss))(variables["params"], s) for s in (0, 1)), strict=True)
    assert losses[0] != losses[1]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[0]))


# --- A block of one's own --------------------------------------------------------------------------------


class Gated(Block):
    """A user-defined block that adds the number of the previous block's endpoints to a scaled dense layer."""

    gain: float = 2.0

    @nn.compact
    def endpoints(self, x, train, before=None, split=1):
        dense = self.conv_norm(self.features, stride=self.stride, name="dense")(x, train)
        return {"dense": dense, "output": self.gain * dense + len(before or {})}


@pytest.mark.parametrize("network", [MobileNetV2, MobileNetV1])
def test_a_block_of_one_s_own_is_handed_in_as_a_class(network):
    model = network(5, 0.25, stages=(Stage(1, 16, 2, 2), Stage(3, 24, 1, 1)), block=Gated)
    ends, variables = jax.jit(functools.partial(model.init_with_output, method="endpoints"))(jax.random.key(0), IMAGES)
    names = [f"block_{block}{layer}" for block in range(3) for layer in ("", "/dense")]
    assert [name for name in ends if name.startswith("block")] == names
    assert ends["block_1"].shape == (4, 4, 4, 8)
    assert variables["params"]["block_2"]["dense"]["conv"]["kernel"].shape[:2] == (1, 1)
    # The first block has no previous block; the others see two endpoints, "dense" and "output".
    np.testing.assert_allclose(ends["block_0"], 2 * ends["block_0/dense"], rtol=1e-6)
    np.testing.assert_allclose(ends["block_1"], 2 * ends["block_1/dense"] + 2, rtol=1e-6)


# --- Settings that are refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", [MobileNetV2, MobileNetV1, ClassicResidualNet])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"activation": "relu7"}, "unknown activation 'relu7'; choose from linear, relu6, relu, "),
        ({"convention": "keras"}, "unknown convention 'keras'; choose from tensorflow, pytorch"),
        ({"kernels": "fitted"}, "unknown value of kernels 'fitted'; choose from tuned, xla"),
        ({"block": "Bottleneck"}, "unknown block 'Bottleneck'; choose from InvertedResidual, NoShortcut, "),
        ({"width_multiplier": 0.0}, "the width multiplier must be greater than 0 and below 100, got 0"),
        ({"width_multiplier": float("nan")}, "the width multiplier must be greater than 0 and below 100, got nan"),
        ({"width_multiplier": 1e-320}, "the width multiplier must be 0.01 or more, got "),
        ({"width_multiplier": "1"}, "the width multiplier must be a number, got '1'"),
        ({"num_classes": 10**12}, "num_classes must be from 0 to 10000000, got 1000000000000"),
        ({"num_classes": 1e12}, "num_classes must be a whole number, got 1000000000000.0"),
        ({"dropout_rate": 1.0}, "dropout_rate must be from 0 to below 1, got 1.0"),
        ({"batch_norm_momentum": 2}, "batch_norm_momentum must be from 0 to below 1, got 2"),
        ({"head": "no"}, "unknown value of head 'no'; choose from True, False"),
        ({"dtype": jnp.int8}, "dtype must be a floating-point type, got int8"),
        ({"activation": 6}, "unknown activation 6; choose from linear, relu6"),
        ({"stages": (Stage(1, 16, 1, 0),)}, "the stride of a stage must be from 1 to 10000, got 0"),
        ({"stages": (Stage(1, -16, 1, 1),)}, "the channels of a stage must be from 1 to 10000, got -16"),
        ({"stages": (Stage(1, 16, 0, 1),)}, "the repeats of a stage must be from 1 to 10000, got 0"),
        ({"unit_strides": 1.5}, "unit_strides must be a whole number, got 1.5"),
        ({"unit_strides": -1}, "unit_strides must be from 0 to 5, got -1"),
        ({"unit_strides": 6}, "unit_strides must be from 0 to 5, got 6"),
        ({"output_stride": 12}, r"output_stride must be one of \(8, 16, 32\) or None, got 12"),
        ({"stages": (Stage(0, 16, 1, 1),)}, "the expansion of a stage must be greater than 0 and below 100, got 0"),
    ],
    ids=str,
)
def test_settings_that_no_network_has_are_refused_in_one_line(without_type_checks, network, settings, says):
    with pytest.raises(ValueError, match=says) as error:
        network(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 3, 224, 224), (2, 1, 28, 28), (1, 2, 8, 8, 3)])
def test_images_that_are_not_nhwc_are_refused_in_one_line(without_type_checks, shape):
    says = f"images must be of shape (images, height, width, channels), got {shape}"
    with pytest.raises(ValueError, match=re.escape(says)):
        jax.eval_shape(SMALL.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_parameters_and_logits_are_float32_where_64_bits_are_enabled():
    with jax.enable_x64(True):
        images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        output, variables = jax.eval_shape(SMALL.init_with_output, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((1, 8, 8, 4), jnp.float32, "images must have 3 channels, got 4"),
        ((1, 0, 8, 3), jnp.float32, r"images must have 1 pixel or more, got images of shape \(1, 0, 8, 3\)"),
        ((1, 8, 8, 3), jnp.uint8, "images must be preprocessed to floating-point numbers, got uint8"),
    ],
)
def test_images_that_a_network_was_not_made_for_are_refused(without_type_checks, shape, dtype, says):
    variables = jax.eval_shape(SMALL.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    with pytest.raises(ValueError, match=f"^{says}"):
        jax.eval_shape(SMALL.apply, variables, jax.ShapeDtypeStruct(shape, dtype))
