"""What blocks compute, whole and in parts of their inner channels (Sec. 5.1), and their names."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual
from mnv2_jax.models.blocks import (
    Block,
    ClassicResidual,
    DepthwiseSeparable,
    ExpansionShortcut,
    FullClassicResidual,
    LinearInside,
    NoShortcut,
    TwoDepthwise,
    block_name,
    find_block,
)
from mnv2_jax.models.layers import ConvNorm, make_divisible
from mnv2_jax.models.mobilenet_v2 import STAGES

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))


def without(variables, layer):
    """Set the scale of a layer's norm to 0, so that only what is added to the layer remains."""
    norm = variables["params"][layer]["norm"]
    norm["scale"] = jnp.zeros_like(norm["scale"])
    return variables


@pytest.mark.parametrize(("stride", "features", "shortcut"), [(1, 8, True), (2, 8, False), (1, 16, False)])
def test_shortcut_only_at_stride_1_and_equal_channels(stride, features, shortcut):
    """With the scale of the projection's norm at 0, only the block's shortcut remains."""
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


def test_no_shortcut():
    block = NoShortcut(8)
    variables = without(block.init(jax.random.key(1), X, train=False), "project")
    np.testing.assert_array_equal(block.apply(variables, X, train=False), jnp.zeros_like(X))


@pytest.mark.parametrize(("stride", "channels", "joined"), [(1, 48, True), (2, 48, False), (1, 40, False)])
def test_a_shortcut_between_expansions_joins_what_is_as_wide(stride, channels, joined):
    block = ExpansionShortcut(8, expansion=6, stride=stride)
    before = jax.random.normal(jax.random.key(2), (2, 8, 8, channels))
    variables = block.init(jax.random.key(1), X, train=False)

    def ends(before):
        return block.apply(variables, X, False, before, method="endpoints")

    change = ends({"depthwise": before})["depthwise"] - ends({})["depthwise"]
    np.testing.assert_allclose(change, before if joined else 0, atol=1e-5)
    # There is no shortcut between the bottlenecks.
    apart = block.apply(without(variables, "project"), X, False, {"depthwise": before}, method="endpoints")
    np.testing.assert_array_equal(apart["output"], jnp.zeros_like(apart["output"]))


def test_a_block_that_is_linear_inside_has_no_corner():
    """Negating the input negates the output; with ReLU6 it does not."""
    for kind, same in ((LinearInside, True), (InvertedResidual, False)):
        block = kind(8)
        variables = block.init(jax.random.key(1), X, False)
        there, back = block.apply(variables, X, False), block.apply(variables, -X, False)
        assert bool(jnp.allclose(there, -back, atol=1e-5)) == same


@pytest.mark.parametrize("side", [3, 5, 7])
def test_two_depthwise_layers_are_of_one_shape(side):
    kernels = TwoDepthwise(8, kernel_size=side).init(jax.random.key(1), X, False)["params"]
    shapes = [kernels[name]["conv"]["kernel"].shape for name in ("depthwise", "depthwise_2")]
    assert shapes == [(side, side, 1, 48)] * 2


@pytest.mark.parametrize(("stride", "features", "shortcut"), [(1, 8, True), (2, 8, False), (1, 16, False)])
def test_the_classic_block_joins_its_wide_ends_and_ends_in_relu6(stride, features, shortcut):
    block = ClassicResidual(features, narrow=3, stride=stride)
    variables = without(block.init(jax.random.key(1), X, train=False), "restore")
    y = block.apply(variables, X, train=False)
    np.testing.assert_array_equal(y, jnp.clip(X, 0, 6) if shortcut else jnp.zeros_like(y))


def test_the_inner_width_is_never_none():
    tiny = InvertedResidual(8, expansion=0.01)
    assert tiny.init(jax.random.key(0), X, train=False)["params"]["expand"]["conv"]["kernel"].shape[-1] == 1


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (InvertedResidual(8), ["expand", "depthwise", "output"]),
        (InvertedResidual(8, expansion=1), ["depthwise", "output"]),
        (TwoDepthwise(8), ["expand", "depthwise", "depthwise_2", "output"]),
        (ClassicResidual(8, narrow=2), ["reduce", "depthwise", "output"]),
        (FullClassicResidual(8, narrow=2), ["reduce", "full", "output"]),
        (DepthwiseSeparable(8), ["depthwise", "output"]),
    ],
)
def test_endpoints_are_every_layer_s_output_and_the_block_s_is_last(block, names):
    ends, _ = block.init_with_output(jax.random.key(0), X, False, method="endpoints")
    assert list(ends) == names
    assert ends["output"].shape == (2, 8, 8, 8)


@pytest.mark.parametrize("expansion", [0, -2, float("nan")])
def test_an_expansion_that_no_block_has_is_refused(expansion):
    with pytest.raises(ValueError, match="expansion must be greater than 0 and below 100, got"):
        InvertedResidual(8, expansion=expansion)


def test_a_block_of_mobilenet_v1_has_no_expansion():
    with pytest.raises(ValueError, match="DepthwiseSeparable block has no expansion, got 6"):
        DepthwiseSeparable(8, expansion=6)


# --- In parts --------------------------------------------------------------------------------------------

SMALL = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))


def blocks():
    """Return (input channels, output channels, t, stride) of the distinct blocks of MobileNetV2 0.25."""
    channels, found = 8, {}
    for stage in STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            features = make_divisible(stage.channels * 0.25)
            found[channels, features, stage.expansion, stride] = None
            channels = features
    return list(found)


def with_statistics(variables, key):
    """Return variables like a trained network's: all scales, biases and running statistics differ."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    leaves = [leaf + 0.3 * jnp.abs(jax.random.normal(k, leaf.shape)) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def difference(block, x, splits):
    """Return, per split, the largest difference to the unsplit block, relative to its largest output."""
    variables = with_statistics(jax.jit(block.init, static_argnums=2)(jax.random.key(1), x, False), jax.random.key(2))
    apply = jax.jit(block.apply, static_argnums=(2, 3))
    whole = np.asarray(apply(variables, x, False))
    return {split: np.abs(apply(variables, x, False, split) - whole).max() / np.abs(whole).max() for split in splits}


def part_sizes(inner):
    """Return the smallest split for each possible part size; other splits of that size give the same program."""
    return list({-(-inner // split): split for split in range(inner, 1, -1)}.values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "dilation": 2},
        {"kernel_size": 5, "stride": 2},
        {"expansion": 1},
        {"kind": TwoDepthwise, "stride": 2},
        {"kind": NoShortcut},
        {"kind": LinearInside},
        {"bottleneck_activation": "relu6", "conv_norm": functools.partial(ConvNorm, kernels="xla")},
        {"conv_norm": functools.partial(ConvNorm, convention="pytorch", activation="hard_swish")},
    ],
    ids=str,
)
def test_a_block_in_parts_is_the_block(settings):
    """In equal parts, with a smaller last part, and in more parts than channels (one channel each)."""
    kind = settings.get("kind", InvertedResidual)
    block = kind(8, **{name: value for name, value in settings.items() if name != "kind"})
    inner = round(block.expansion * 8)
    found = difference(block, SMALL, (2, 5, 10 * inner))
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "features", "expansion", "stride"), blocks())
def test_every_block_of_the_network_in_every_split(inputs, features, expansion, stride):
    block = InvertedResidual(features, expansion=expansion, stride=stride)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, inputs))
    found = difference(block, x, part_sizes(round(expansion * inputs)))
    assert max(found.values()) < 1e-5, found


def test_memory_falls_with_the_split_and_the_expansion_is_never_whole():
    """The largest block of MobileNetV2 1.0 at 224 pixels has 16 channels, 96 inside, at 112 x 112 pixels."""
    block = InvertedResidual(24, stride=2)
    x = jax.ShapeDtypeStruct((1, 112, 112, 16), jnp.float32)
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.zeros(x.shape), False))
    memory = []
    for split in (1, 2, 5, 96):
        program = jax.jit(block.apply, static_argnums=(2, 3)).lower(variables, x, False, split).compile()
        memory.append(program.memory_analysis().temp_size_in_bytes)
    assert memory == sorted(memory, reverse=True)
    assert memory[0] > 4 * 96 * 112 * 112
    assert memory[2] <= 0.35 * memory[0]


@pytest.mark.parametrize(
    ("block", "train", "split", "says"),
    [
        (
            InvertedResidual(8),
            True,
            2,
            "a block cannot be split in training, which needs its batch statistics; got split=2",
        ),
        (InvertedResidual(8), False, 0, "split must be a whole number of 1 or more, got split=0"),
        (ExpansionShortcut(8), False, 2, "ExpansionShortcut cannot be split, got split=2"),
        (DepthwiseSeparable(8), False, 3, "DepthwiseSeparable cannot be split, got split=3"),
        (ClassicResidual(8, narrow=2), False, 2, "ClassicResidual cannot be split, got split=2"),
    ],
)
def test_what_cannot_be_split_is_refused(block, train, split, says):
    variables = block.init(jax.random.key(1), X, False)
    with pytest.raises(ValueError, match=says):
        block.apply(variables, X, train, split, mutable=["batch_stats"])


class JoinedInside(InvertedResidual):
    """A user-defined variant with an addition inside the block."""

    def join_inner(self, name, y, before):
        return y + 1


class MixedInside(InvertedResidual):
    """A user-defined variant with an inner layer that mixes channels."""

    def inner_layers(self, inner):
        return {**super().inner_layers(inner), "mix": self.conv_norm(inner, name="mix")}


@pytest.mark.parametrize("variant", [JoinedInside, MixedInside])
def test_a_variant_whose_inner_channels_need_each_other_cannot_be_split(variant):
    """Split, it would silently compute another function."""
    block = variant(8)
    variables = block.init(jax.random.key(1), X, False)
    with pytest.raises(ValueError, match="cannot be split"):
        block.apply(variables, X, False, 2)


# --- Names -----------------------------------------------------------------------------------------------


class Twice(InvertedResidual):
    """A user-defined variant that adds its shortcut twice."""

    def join(self, x, y):
        return 2 * x + y


def test_a_variant_of_one_s_own_overrides_a_method():
    variables = without(Twice(8).init(jax.random.key(1), X, train=False), "project")
    np.testing.assert_array_equal(Twice(8).apply(variables, X, train=False), 2 * X)


class OnlyDense(Block):
    """A user-defined block."""

    @nn.compact
    def endpoints(self, x, train, before=None, split=1):
        return {"output": self.conv_norm(self.features, name="dense")(x, train)}


@pytest.mark.parametrize(
    "block",
    [InvertedResidual, NoShortcut, ExpansionShortcut, LinearInside, TwoDepthwise, ClassicResidual, FullClassicResidual,
     DepthwiseSeparable],
)  # fmt: skip
def test_a_block_has_its_class_s_name(block):
    assert block_name(block) == block.__name__
    assert find_block(block.__name__) is find_block(block) is block


def test_a_block_of_one_s_own_is_handed_in_as_a_class():
    assert find_block(OnlyDense) is OnlyDense
    assert block_name(OnlyDense) == f"{__name__}.OnlyDense"
    known = "InvertedResidual, NoShortcut, ExpansionShortcut, LinearInside, TwoDepthwise, ClassicResidual, .*"
    for name in ("Bottleneck", block_name(OnlyDense), "Block"):
        with pytest.raises(ValueError, match=f"unknown block '{name}'; choose from {known}; pass a custom block as"):
            find_block(name)
    with pytest.raises(ValueError, match="a subclass of Block"):
        find_block(nn.Dense)
