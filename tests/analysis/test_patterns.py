"""Counts of active channels, and where an expansion can be inverted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax.analysis import patterns
from mnv2_jax.data.batch import Batch
from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import ExpansionShortcut, InvertedResidual, LinearInside, NoShortcut, TwoDepthwise
from mnv2_jax.models.create import create_model
from mnv2_jax.network import variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.step import Learner

TINY = {"width_multiplier": 0.1, "stages": (Stage(1, 16, 1, 1), Stage(2, 24, 1, 2)), "expansion": 2.0}
"""One block without an expansion, and one that expands 8 channels to 16."""


def batches(count=40, size=20, side=8):
    """Yield batches of noise, the last one not full."""
    images = np.random.default_rng(0).normal(size=(count, side, side, 1)).astype(np.float32)
    for start in range(0, count, size):
        weights = np.ones(size, np.float32)
        if start + size == count:
            weights[-3:] = 0
        yield Batch(images[start : start + size], np.zeros(size, np.int32), weights, np.arange(size))


@pytest.fixture(scope="module")
def network():
    """Return a tiny network and its initial variables."""
    model = create_model("mobilenet_v2", num_classes=10, **TINY)
    learner = Learner(model, Classification(10), optax.identity())
    return model, patterns.initial_variables(learner, 0, (8, 8, 1))


@pytest.fixture(scope="module")
def counter(network):
    return patterns.create_counter(network[0])


def with_expansion(variables, kernel, bias):
    """Replace the expansion's kernel, (8, 16), and bias in the block that expands."""
    variables = jax.tree.map(np.asarray, variables)
    expand = {
        "conv": {"kernel": np.asarray(kernel, np.float32)[None, None]},
        "norm": {"scale": np.ones(16, np.float32), "bias": np.full(16, bias, np.float32)},
    }
    params = variables["params"]
    return {**variables, "params": {**params, "block_1": {**params["block_1"], "expand": expand}}}


def test_counts_of_known_channels():
    y = jnp.array([[[[0.0, 1.0, 6.0, 5.9], [0.0, 0.0, 0.0, 6.0]]], [[[1.0, 2.0, 3.0, 4.0], [6.0, 6.0, 6.0, 0.0]]]])
    counts = patterns.count_channels(y)
    assert np.array_equal(counts.positive, [[[3, 1]], [[4, 3]]])
    assert np.array_equal(counts.kept, [[[2, 0]], [[4, 0]]])
    assert np.array_equal(patterns.count_channels(y, np.inf).kept, counts.positive)
    layer = patterns.Layer("stem", np.zeros(5, int), np.zeros(5, int))
    layer.add(counts)
    assert patterns.Spread.of(layer.positive) == (1, 2.75, 4, pytest.approx(np.std([3, 1, 4, 3])))
    block = patterns.Block("block_1", 2, 4)
    block.add(counts)
    assert (block.share(), block.share("positive")) == ((0.5, 0.0), (0.75, 0.5))
    # Of the positions with at least two kept channels, the one with the fewest.
    y = jnp.array([[[[1.0, 1, 1, 0], [0, 0, 0, 1], [6, 0, 1, 1]]]])
    assert np.array_equal(patterns.barely_enough(y, 2), [[False, False, True, True]])


def test_rank_of_what_is_kept():
    rows = np.array([[1.0, 2, 0], [1, 2, 1]])
    kept = np.array([[True, True, False], [True, False, True], [True, True, True]])
    assert patterns.full_rank(rows, kept).tolist() == [False, True, True]


def test_before_training_half_of_the_channels_are_positive(network, counter):
    model, variables = network
    whole = patterns.with_statistics(model, variables, batches())
    found = patterns.measure(model, whole, batches(), counter)
    assert [layer.name for layer in found.layers] == [
        "stem", "block_0/depthwise", "block_1/expand", "block_1/depthwise", "head"
    ]  # fmt: skip
    assert [(block.name, block.bottleneck, block.channels) for block in found.blocks] == [("block_1", 8, 16)]
    # Padding is not counted.
    assert found.blocks[0].images == 37
    for layer in found.layers:
        assert patterns.Spread.of(layer.positive).mean == pytest.approx(layer.channels / 2, rel=0.2), layer.name
    # The stem's statistics, computed directly from the one full batch.
    images = next(batches()).images
    stem = jax.lax.conv_general_dilated(
        images,
        variables["params"]["stem"]["conv"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    norm = whole["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(norm["mean"], stem.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(norm["var"], stem.var((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_expansions_that_can_and_cannot_be_inverted(network, counter):
    model, variables = network
    identity = np.eye(8)

    def block(kernel, bias):
        changed = with_expansion(variables, 1e-3 * np.asarray(kernel), bias)
        return patterns.measure(model, changed, batches(), counter).blocks[0]

    # Each channel and its negative, plus a small bias: one of the two is positive, or both where the channel is 0.
    pairs = block(np.hstack([identity, -identity]), 1e-9)
    assert (pairs.share(), pairs.ranks) == ((1, 1), (37, 37))
    # All channels pass, but all carry the same value.
    same = block(np.ones((8, 16)), 3.0)
    assert (same.share(), same.ranks) == ((1, 1), (37, 0))
    none = block(np.hstack([identity, identity]), -3.0)
    assert (none.share(), none.share("positive"), none.ranks) == ((0, 0), (0, 0), (0, 0))
    # With ReLU this could be inverted, but ReLU6 cuts it off at 6.
    cut = block(np.hstack([identity, identity]), 9.0)
    assert (cut.share(), cut.share("positive")) == ((0, 0), (1, 1))


@pytest.mark.parametrize("block", [ExpansionShortcut, LinearInside, type("Mine", (InvertedResidual,), {})])
def test_blocks_whose_layers_may_output_more_than_one_activation_are_refused(block):
    with pytest.raises(UserError, match="channels can be counted only in InvertedResidual, NoShortcut, TwoDepthwise"):
        patterns.check_network(create_model("mobilenet_v2", block=block))


@pytest.mark.parametrize("block", [InvertedResidual, NoShortcut, TwoDepthwise])
def test_every_layer_with_an_activation_is_counted(block):
    model = create_model("mobilenet_v2", block=block, **TINY)
    patterns.check_network(model)
    layers = patterns.relu_layers(variable_shapes(model)["params"])
    inner = ["depthwise", "depthwise_2"] if block is TwoDepthwise else ["depthwise"]
    assert layers == [
        "stem", *(f"block_0/{layer}" for layer in inner), *(f"block_1/{layer}" for layer in ["expand", *inner]), "head"
    ]  # fmt: skip
    body = variable_shapes(model.clone(head=False))["params"]
    assert patterns.relu_layers(body) == layers[:-1]
