import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mnv2_jax import InvertedResidual, MobileNetV2, unit_strides_for
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import DepthwiseSeparable, ExpansionShortcut, LinearInside, NoShortcut, TwoDepthwise
from mnv2_jax.models.cost import count_parameters, layer_costs


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


def test_every_stage_has_its_own_expansion_unless_one_is_given_for_all():
    stages = (Stage(1, 16, 1, 1), Stage(4, 24, 1, 2), Stage(0.5, 32, 1, 2))

    def inner(expansion):
        model = MobileNetV2(10, expansion=expansion, stages=stages)
        shapes = output_shapes(model, (32, 32, 3))
        return [shapes[f"block_{block}/depthwise"][-1] for block in range(3)]

    assert inner(None) == [32, 4 * 16, 0.5 * 24]
    assert inner(3) == [32, 3 * 16, 3 * 24]
    assert layer_costs(MobileNetV2(), (32, 32, 3)) == layer_costs(MobileNetV2(expansion=6.0), (32, 32, 3))


def test_the_inner_width_is_rounded_to_channels():
    model = MobileNetV2(10, 0.35, expansion=0.25, stages=(Stage(1, 16, 1, 1), Stage(6, 24, 1, 2)))
    costs = {layer.name: layer for layer in layer_costs(model, (16, 16, 1))}
    assert costs["block_1/expand"].output_shape[-1] == 2


def test_shortcuts_change_no_parameter_and_seven_of_them_join_expansions():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = [
        jax.eval_shape(MobileNetV2(block=block).init, jax.random.key(0), image)
        for block in (InvertedResidual, ExpansionShortcut, NoShortcut)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    joined = []

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, InvertedResidual) and context.method_name == "endpoints":
            x, _, before, *_ = args
            block = context.module
            inner = round(block.expansion * x.shape[-1])
            same = "depthwise" in before and before["depthwise"].shape[-1] == inner and block.stride == 1
            joined.extend([block.name] if same else [])
        return next_call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(MobileNetV2(block=ExpansionShortcut).init, jax.random.key(0), image)
    assert joined == [f"block_{index}" for index in (5, 8, 9, 10, 12, 15, 16)]


def test_linear_blocks_have_the_paper_s_layers_and_a_second_depthwise_one_is_counted():
    paper, linear, two = (layer_costs(MobileNetV2(block=block), (64, 64, 3)) for block in (InvertedResidual, LinearInside, TwoDepthwise))  # fmt: skip
    assert linear == paper
    kernels = {layer.name: layer.kernel_shape for layer in two}
    assert kernels["block_1/depthwise_2"] == kernels["block_1/depthwise"] == (3, 3, 1, 96)
    assert len(two) == len(paper) + 17


@pytest.mark.parametrize("value", [0, -1.0])
def test_an_expansion_that_no_network_has_is_refused(value):
    with pytest.raises(ValueError, match=f"expansion must be greater than 0 and below 100, got {value:g}"):
        MobileNetV2(expansion=value)


def test_an_activation_of_the_bottleneck_needs_a_block_that_has_one(without_type_checks):
    with pytest.raises(ValueError, match="the block DepthwiseSeparable has no bottleneck_activation"):
        MobileNetV2(block=DepthwiseSeparable, bottleneck_activation="relu6")
    with pytest.raises(ValueError, match="unknown activation 'relu7'"):
        MobileNetV2(bottleneck_activation="relu7")
