import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2, unit_strides_for
from mnv2_jax.models.cost import count_parameters, layer_costs
from mnv2_jax.models.mobilenet_v2 import STAGES, Stage


def output_shapes(model: nn.Module, image_shape) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.output_shape for layer in layer_costs(model, image_shape)}


def test_shapes_follow_table_2():
    shapes = output_shapes(MobileNetV2(), (224, 224, 3))
    assert shapes["stem"] == (112, 112, 32)
    ends = {0: (112, 16), 2: (56, 24), 5: (28, 32), 9: (14, 64), 12: (14, 96), 15: (7, 160), 16: (7, 320)}
    for block, (size, channels) in ends.items():
        assert shapes[f"block_{block}/project"] == (size, size, channels)
    assert shapes["block_1/expand"] == (112, 112, 96)
    assert shapes["head"] == (7, 7, 1280)
    assert shapes["classifier"] == (1000,)
    assert len([name for name in shapes if name.endswith("/project")]) == 17


def test_no_expand_convolution_at_expansion_1():
    assert "block_0/expand" not in output_shapes(MobileNetV2(), (224, 224, 3))
    names = output_shapes(MobileNetV2(expansion=1), (224, 224, 3))
    assert not [name for name in names if "expand" in name]


@pytest.mark.parametrize("resolution", [28, 48, 65])
def test_unit_strides_leave_small_images_a_map_of_three_pixels(resolution):
    model = MobileNetV2(unit_strides=unit_strides_for(resolution))
    assert output_shapes(model, (resolution, resolution, 3))["head"][0] >= 3


def test_unit_strides_change_no_parameter():
    counts = {count_parameters(MobileNetV2(unit_strides=strides), (32, 32, 3)) for strides in (0, 2, 5)}
    assert counts == {3_504_872}
    shapes = output_shapes(MobileNetV2(unit_strides=2), (32, 32, 3))
    assert shapes["stem"][:2] == shapes["block_1/depthwise"][:2] == (32, 32)
    assert shapes["block_3/depthwise"][:2] == (16, 16)


@pytest.mark.parametrize(("stride", "features", "shortcut"), [(1, 8, True), (2, 8, False), (1, 16, False)])
def test_shortcut_only_at_stride_1_and_equal_channels(stride, features, shortcut):
    """With the projection's norm scaled to nothing, the block is its shortcut alone."""
    block = InvertedResidual(features, expansion=6, stride=stride)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
    variables = block.init(jax.random.key(1), x, train=False)
    norm = variables["params"]["project"]["norm"]
    norm["scale"] = jnp.zeros_like(norm["scale"])
    y = block.apply(variables, x, train=False)
    np.testing.assert_array_equal(y, x if shortcut else jnp.zeros_like(y))


@pytest.mark.parametrize(("activation", "low", "high"), [("relu6", 0, 6), ("relu", 0, None), ("linear", None, None)])
def test_bottleneck_activation_is_what_follows_the_projection(activation, low, high):
    block = InvertedResidual(16, stride=1, bottleneck_activation=activation)
    x = 5 * jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
    variables = block.init(jax.random.key(1), x, train=True)
    variables["params"]["project"]["norm"]["scale"] *= 10
    y, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    assert (y.min() == 0) if low == 0 else (y.min() < 0)
    assert (y.max() == 6) if high == 6 else (y.max() > 6)


# Four blocks with strides, an expansion and a shortcut: compiled in seconds.
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
    # 8 bits of mantissa, over ten layers.
    assert 0 < jnp.abs(ends["head"] - wide).max() < 0.05 * jnp.abs(wide).max()


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_keeps_maps_fine_and_weights_the_same(output_stride):
    shapes = output_shapes(MobileNetV2(output_stride=output_stride), (96, 96, 3))
    assert shapes["head"][:2] == (96 // output_stride, 96 // output_stride)
    layers = {layer.name: layer for layer in layer_costs(MobileNetV2(output_stride=output_stride), (96, 96, 3))}
    # The block that would have lost resolution does not; those behind it look as far as before.
    assert layers["block_13/depthwise"].stride == 1
    assert layers["block_13/depthwise"].dilation == 16 // output_stride
    assert layers["block_14/depthwise"].dilation == 32 // output_stride
    assert count_parameters(MobileNetV2(output_stride=output_stride), (96, 96, 3)) == 3_504_872


def test_a_dilated_network_computes_at_more_places_what_the_strided_one_computes():
    """Every second pixel of the finer map is the strided map, away from the borders."""
    fine = MobileNetV2(7, 0.25, stages=(Stage(1, 16, 1, 2), Stage(6, 24, 2, 2), Stage(6, 64, 1, 2), Stage(6, 64, 1, 1)))
    images = jax.random.normal(jax.random.key(2), (1, 128, 128, 3))
    variables = jax.jit(fine.init)(jax.random.key(0), images)
    coarse = endpoints(fine, variables, images)["block_4"]
    finer = endpoints(fine.clone(output_stride=8), variables, images)["block_4"]
    assert coarse.shape[1:3] == (8, 8)
    assert finer.shape[1:3] == (16, 16)
    # TensorFlow's padding puts the odd pixel at the end: a strided map is centred a pixel off.
    np.testing.assert_allclose(finer[:, 1::2, 1::2][:, 2:-2, 2:-2], coarse[:, 2:-2, 2:-2], rtol=1e-4, atol=1e-5)
