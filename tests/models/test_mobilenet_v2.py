import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2, unit_strides_for
from mnv2_jax.models.cost import count_multiply_adds, count_parameters, layer_costs
from mnv2_jax.models.mobilenet_v2 import STAGES


@pytest.mark.parametrize(
    ("width", "parameters", "kernels", "multiply_adds"),
    # Trainable parameters agree with torchvision's 3,504,872 and, less the moving statistics, with Keras; without
    # batch norm, and multiply-adds, with the table of tensorflow/models, research/slim/nets/mobilenet/README.md.
    [
        (0.25, 1_519_112, 1_508_456, 37.20e6),
        (0.35, 1_677_128, 1_663_048, 59.29e6),
        (0.5, 1_968_680, 1_950_136, 97.13e6),
        (0.75, 2_636_424, 2_609_784, 209.07e6),
        (1.0, 3_504_872, 3_470_760, 300_774_272),
        (1.3, 5_386_792, 5_342_536, 509.37e6),
        (1.4, 6_108_776, 6_060_840, 582.20e6),
    ],
)
def test_size_at_every_published_width(width, parameters, kernels, multiply_adds):
    model = MobileNetV2(width_multiplier=width)
    image = (224, 224, 3)
    assert count_parameters(model, image) == parameters
    # The classifier's bias is counted with the kernels.
    assert sum(layer.parameters for layer in layer_costs(model, image)) + 1000 == kernels
    assert count_multiply_adds(model, image) == pytest.approx(multiply_adds, abs=0.005e6)


def test_class_count_and_convention_of_the_paper_code():
    assert count_parameters(MobileNetV2(1001), (224, 224, 3)) == 3_506_153
    assert count_parameters(MobileNetV2(convention="pytorch"), (224, 224, 3)) == 3_504_872


@pytest.mark.parametrize(
    ("resolution", "multiply_adds"), [(192, 221.32e6), (160, 154.08e6), (128, 99.07e6), (96, 56.29e6)]
)
def test_multiply_adds_at_every_published_resolution(resolution, multiply_adds):
    assert count_multiply_adds(MobileNetV2(), (resolution, resolution, 3)) == pytest.approx(multiply_adds, abs=0.005e6)


def test_layers_cost_what_the_paper_table_says():
    """Conv parameters and multiply-adds of the stem and some blocks at width 1.0 and 224 pixels."""
    blocks: dict[str, list[int]] = {}
    for layer in layer_costs(MobileNetV2(), (224, 224, 3)):
        total = blocks.setdefault(layer.name.split("/")[0], [0, 0])
        total[0] += layer.parameters
        total[1] += layer.multiply_adds
    published = {"stem": (864, 10.838), "block_0": (800, 10.035), "block_1": (4704, 29.202), "block_6": (20160, 7.564),
                 "block_13": (152640, 15.608), "block_16": (469440, 23.003), "head": (409600, 20.070)}  # fmt: skip
    for name, (parameters, millions) in published.items():
        assert blocks[name][0] == parameters
        assert blocks[name][1] == pytest.approx(millions * 1e6, abs=0.5e3)


def output_shapes(model: nn.Module, image_shape) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.output_shape for layer in layer_costs(model, image_shape)}


def test_shapes_follow_table_2():
    shapes = output_shapes(MobileNetV2(), (224, 224, 3))
    assert shapes["stem/conv"] == (112, 112, 32)
    ends = {0: (112, 16), 2: (56, 24), 5: (28, 32), 9: (14, 64), 12: (14, 96), 15: (7, 160), 16: (7, 320)}
    for block, (size, channels) in ends.items():
        assert shapes[f"block_{block}/project/conv"] == (size, size, channels)
    assert shapes["block_1/expand/conv"] == (112, 112, 96)
    assert shapes["head/conv"] == (7, 7, 1280)
    assert shapes["classifier"] == (1000,)
    assert len([name for name in shapes if name.endswith("project/conv")]) == 17


def test_no_expand_convolution_at_expansion_1():
    assert "block_0/expand/conv" not in output_shapes(MobileNetV2(), (224, 224, 3))
    names = output_shapes(MobileNetV2(expansion=1), (224, 224, 3))
    assert not [name for name in names if "expand" in name]


@pytest.mark.parametrize(
    ("resolution", "expected"), [(28, 2), (32, 2), (48, 1), (64, 1), (65, 0), (96, 0), (224, 0), (1, 5)]
)
def test_unit_strides_leave_small_images_a_map_of_three_pixels(resolution, expected):
    assert unit_strides_for(resolution) == expected
    if resolution >= 3:
        model = MobileNetV2(unit_strides=expected)
        assert output_shapes(model, (resolution, resolution, 3))["head/conv"][0] >= 3


def test_unit_strides_change_no_parameter():
    counts = {count_parameters(MobileNetV2(unit_strides=strides), (32, 32, 3)) for strides in range(6)}
    assert counts == {3_504_872}
    shapes = output_shapes(MobileNetV2(unit_strides=2), (32, 32, 3))
    assert shapes["stem/conv"][:2] == shapes["block_1/depthwise/conv"][:2] == (32, 32)
    assert shapes["block_3/depthwise/conv"][:2] == (16, 16)


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


@pytest.mark.parametrize("convention", ["tensorflow", "pytorch"])
def test_forward_pass(convention):
    # Four blocks with strides, an expansion and a shortcut: compiled in seconds.
    model = MobileNetV2(7, 0.25, convention=convention, unit_strides=1, stages=(*STAGES[:2], STAGES[-1]))
    images = jnp.zeros((2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    logits = jax.jit(model.apply)(variables, images)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
