import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2, create_model
from mnv2_jax.models.blocks import ClassicResidual
from mnv2_jax.models.cost import layer_costs
from mnv2_jax.models.mobilenet_v2 import Stage

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))


def without(variables, layer):
    """With a layer's norm scaled to nothing, the block is what is added to it."""
    norm = variables["params"][layer]["norm"]
    norm["scale"] = jnp.zeros_like(norm["scale"])
    return variables


def test_no_shortcut():
    block = InvertedResidual(8, shortcut="none")
    variables = without(block.init(jax.random.key(1), X, train=False), "project")
    np.testing.assert_array_equal(block.apply(variables, X, train=False), jnp.zeros_like(X))


@pytest.mark.parametrize(("stride", "channels", "joined"), [(1, 48, True), (2, 48, False), (1, 40, False)])
def test_a_shortcut_between_expansions_joins_what_is_as_wide(stride, channels, joined):
    block = InvertedResidual(8, expansion=6, stride=stride, shortcut="expansion")
    before = jax.random.normal(jax.random.key(2), (2, 8, 8, channels))
    variables = block.init(jax.random.key(1), X, train=False)

    def ends(before):
        return block.apply(variables, X, False, before, method="endpoints")

    change = ends(before)["depthwise"] - ends(None)["depthwise"]
    np.testing.assert_allclose(change, before if joined else 0, atol=1e-5)
    # The bottlenecks are not joined.
    apart = block.apply(without(variables, "project"), X, False, before, method="endpoints")
    np.testing.assert_array_equal(apart["output"], jnp.zeros_like(apart["output"]))


def test_shortcuts_change_no_parameter_and_seven_of_them_join_expansions():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = [
        jax.eval_shape(MobileNetV2(shortcut=form).init, jax.random.key(0), image)
        for form in ("bottleneck", "expansion", "none")
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    joined = []

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, InvertedResidual) and context.method_name == "endpoints":
            x, _, before, *_ = args
            block = context.module
            inner = round(block.expansion * x.shape[-1])
            same = before is not None and before.shape[-1] == inner and block.stride == 1
            joined.extend([block.name] if same else [])
        return next_call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(MobileNetV2(shortcut="expansion").init, jax.random.key(0), image)
    assert joined == [f"block_{index}" for index in (5, 8, 9, 10, 12, 15, 16)]


@pytest.mark.parametrize(("stride", "features", "shortcut"), [(1, 8, True), (2, 8, False), (1, 16, False)])
def test_the_classic_block_joins_its_wide_ends_and_ends_in_relu6(stride, features, shortcut):
    block = ClassicResidual(features, narrow=3, stride=stride)
    variables = without(block.init(jax.random.key(1), X, train=False), "restore")
    y = block.apply(variables, X, train=False)
    np.testing.assert_array_equal(y, jnp.clip(X, 0, 6) if shortcut else jnp.zeros_like(y))


@pytest.mark.parametrize("depthwise", [True, False])
def test_the_classic_network_is_mobilenet_v2_inside_out(depthwise):
    costs = {
        layer.name: layer for layer in layer_costs(create_model("classic_residual", depthwise=depthwise), (64, 64, 3))
    }
    kind = "depthwise" if depthwise else "full"
    assert costs["block_5/reduce"].kernel_shape == (1, 1, 6 * 32, 32)
    assert costs[f"block_5/{kind}"].kernel_shape == (3, 3, 1 if depthwise else 32, 32)
    assert costs["block_5/restore"].kernel_shape == (1, 1, 32, 6 * 32)
    inverted = {layer.name: layer for layer in layer_costs(MobileNetV2(), (64, 64, 3))}
    for layer in ("stem", "classifier"):
        assert costs[layer] == inverted[layer]
    assert costs["head"].kernel_shape == (1, 1, 6 * 320, 1280)
    blocks = [{name.split("/")[0] for name in each if "block" in name} for each in (costs, inverted)]
    assert blocks[0] == blocks[1]


def test_the_inner_width_is_rounded_to_channels_and_never_none():
    model = MobileNetV2(10, 0.35, expansion=0.25, stages=(Stage(1, 16, 1, 1), Stage(6, 24, 1, 2)))
    costs = {layer.name: layer for layer in layer_costs(model, (16, 16, 1))}
    assert costs["block_1/expand"].output_shape[-1] == 2
    tiny = InvertedResidual(8, expansion=0.01)
    assert tiny.init(jax.random.key(0), X, train=False)["params"]["expand"]["conv"]["kernel"].shape[-1] == 1


def test_the_inner_activation_is_every_layer_s_but_the_bottleneck_s():
    model = MobileNetV2(3, 0.25, activation="relu", stages=(Stage(1, 16, 1, 1), Stage(6, 24, 1, 1)))
    images = 50 * jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    variables["params"]["stem"]["norm"]["scale"] *= 20
    ends, _ = model.apply(variables, images, True, method="endpoints", mutable=["batch_stats"])
    assert ends["stem"].max() > 6
    assert ends["stem"].min() == 0
    assert ends["block_1"].min() < 0
