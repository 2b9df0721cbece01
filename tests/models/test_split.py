"""Blocks computed in parts of their inner channels (Sec. 5.1)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2
from mnv2_jax.models.blocks import ConvNorm
from mnv2_jax.models.mobilenet_v2 import STAGES

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))


def blocks():
    """(input channels, settings) of the 17 blocks of MobileNetV2 1.0; of equal ones the first."""
    channels, found = 32, {}
    for stage in STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            found[channels, stage.channels, stage.expansion, stride] = None
            channels = stage.channels
    return list(found)


def with_statistics(variables, key):
    """A trained network's: every scale, bias and running statistic something of its own."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    leaves = [leaf + 0.3 * jnp.abs(jax.random.normal(k, leaf.shape)) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def difference(block, x, splits):
    """The largest difference to the whole block, as a share of its largest output, of each split."""
    variables = with_statistics(jax.jit(block.init, static_argnums=2)(jax.random.key(1), x, False), jax.random.key(2))
    apply = jax.jit(block.apply, static_argnums=(2, 3))
    whole = np.asarray(apply(variables, x, False))
    return {split: np.abs(apply(variables, x, False, split) - whole).max() / np.abs(whole).max() for split in splits}


def part_sizes(inner):
    """The smallest split of each size of parts that there is: the others of that size are the same program."""
    return list({-(-inner // split): split for split in range(inner, 1, -1)}.values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "dilation": 2},
        {"expansion": 1},
        {"transformation": "two_depthwise", "stride": 2},
        {"bottleneck_activation": "relu6", "conv_norm": functools.partial(ConvNorm, layers="plain")},
        {"conv_norm": functools.partial(ConvNorm, convention="pytorch", activation="hard_swish")},
    ],
    ids=str,
)
def test_a_block_in_parts_is_the_block(settings):
    """In parts of equal size, with a smaller last one, and of one channel each; of more than there are channels, too."""
    block = InvertedResidual(8, **settings)
    inner = round(block.expansion * 8)
    found = difference(block, X, (2, 5, 10 * inner))
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "features", "expansion", "stride"), blocks())
def test_every_block_of_the_network_in_every_split(inputs, features, expansion, stride):
    block = InvertedResidual(features, expansion=expansion, stride=stride)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, inputs))
    found = difference(block, x, part_sizes(round(expansion * inputs)))
    assert max(found.values()) < 1e-5, found


def test_the_network_in_parts_is_the_network():
    network = MobileNetV2(width_multiplier=0.35, num_classes=10, stages=STAGES[:2])
    images = jax.random.normal(jax.random.key(3), (1, 32, 32, 3))
    variables = with_statistics(jax.jit(network.init)(jax.random.key(1), images), jax.random.key(2))
    endpoints = jax.jit(functools.partial(network.apply, method="endpoints"), static_argnames="split")
    whole, parts = endpoints(variables, images), endpoints(variables, images, split=4)
    assert set(whole) - set(parts) == {name for name in whole if "/" in name}
    for name, value in parts.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-5 * np.abs(whole[name]).max(), err_msg=name)


def test_memory_falls_with_the_split_and_the_expansion_is_never_whole():
    """The largest block of MobileNetV2 1.0 at 224 pixels: 16 channels, 96 inside, of 112 x 112 pixels."""
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
    ("settings", "train", "split"), [({}, True, 2), ({}, False, 0), ({"shortcut": "expansion"}, False, 2)]
)
def test_what_cannot_be_split_is_refused(settings, train, split):
    block = InvertedResidual(8, **settings)
    variables = block.init(jax.random.key(1), X, False)
    with pytest.raises(ValueError, match=f"got split={split}"):
        block.apply(variables, X, train, split, mutable=["batch_stats"])


def test_a_linear_transformation_has_no_corner():
    """Negative inputs go where positive ones go, turned round; with ReLU6 they do not."""
    for transformation, same in (("linear", True), ("depthwise", False)):
        block = InvertedResidual(8, transformation=transformation)
        variables = block.init(jax.random.key(1), X, False)
        there, back = block.apply(variables, X, False), block.apply(variables, -X, False)
        assert bool(jnp.allclose(there, -back, atol=1e-5)) == same


def test_two_depthwise_layers_are_counted():
    names = MobileNetV2(transformation="two_depthwise").init  # shapes alone
    shapes = jax.eval_shape(names, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    kernels = shapes["params"]["block_1"]
    assert (
        kernels["depthwise_2"]["conv"]["kernel"].shape == kernels["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 96)
    )
