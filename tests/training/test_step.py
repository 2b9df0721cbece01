"""Single steps on one device, without data sets and loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax.data.batch import Batch
from mnv2_jax.models.backbone import Stage
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import Recipe
from mnv2_jax.training.devices import DATA, SEED, Devices, Program
from mnv2_jax.training.step import DATA_AXIS, Learner, TrainState, device_index, init_state, mix_pairs, train_step
from training.runs import NETWORK, learner_of

# Small steps: if rounding moves a value across a corner of ReLU6, its gradient jumps.
RECIPE = Recipe(5, 32, learning_rate=0.001, warmup=0.01)
BOTH_STRIDES = NETWORK.clone(unit_strides=1, stages=(Stage(1, 8, 1, 2), Stage(2, 8, 1, 1)))


@pytest.fixture(scope="module")
def begin(tiny):
    """Return a function that gives the state before the first step."""

    def of(seed, rate=1.0, **changes):
        learner = learner_of(BOTH_STRIDES.clone(**changes), Classification(10), RECIPE, 160)
        init = jax.jit(lambda seed, rate: init_state(seed, learner, tiny.image_shape, rate=rate))
        return jax.device_get(init(jnp.int32(seed), jnp.float32(rate)))

    return of


@pytest.fixture(scope="module")
def steps(tiny, begin):
    """Return, per kind of kernels, a function that takes steps on one batch and returns (before, after, losses)."""
    images = tiny.normalization(tiny.train.images[:32])
    batch = Batch(images, tiny.train.targets[:32], np.ones(32, np.float32), np.arange(32, dtype=np.int32))
    devices = Devices.create(1, 1)

    def of(kernels):
        learner = learner_of(BOTH_STRIDES.clone(kernels=kernels), Classification(10), RECIPE, 160)
        start = jax.tree.map(lambda leaf: leaf[None], begin(3, kernels=kernels))
        # The state holds the learning rate's factor, so one program takes small and large steps.
        program = Program(lambda state, batch: train_step(state, batch, learner), [SEED, DATA], [start, batch])
        compiled = devices.compile(program)

        def take(count, rate=1.0):
            state, losses = devices.put(start.replace(rate=np.float32([rate])), SEED), []
            for _ in range(count):
                state, found = compiled(state, devices.put(batch, DATA))
                losses.append(float(found["loss"][0]))
            return start, jax.device_get(state), losses

        return take

    return {kernels: of(kernels) for kernels in ("tuned", "xla")}


def test_plain_kernels_train_to_the_same_weights(steps):
    """Within 1e-5 after five steps, since tuned kernels compute the same function."""
    (start, tuned, _), (_, plain, _) = (steps[kernels](5) for kernels in ("tuned", "xla"))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5), tuned.params, plain.params
    )
    moved = jax.tree.map(lambda before, after: np.abs(after - before).max(), start.params, tuned.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_steps_lower_the_loss_on_their_batch(steps):
    _, state, losses = steps["tuned"](12, rate=20.0)
    assert int(state.step[0]) == 12
    assert losses[-1] < 0.7 * losses[0]


def test_the_first_state_is_the_seed_s_alone(begin):
    """Another activation does not change the initial weights; another seed does."""
    states = [begin(3, bottleneck_activation=activation) for activation in ("linear", "relu6")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    stems = [state.params["stem"]["conv"]["kernel"] for state in (states[0], begin(4))]
    assert not np.array_equal(*stems)


@pytest.mark.parametrize(
    ("devices", "accumulation", "expected"),
    [
        (1, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (2, 1, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (1, 2, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (2, 2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ],
)
def test_a_device_has_a_piece_of_every_microbatch(devices, accumulation, expected):
    def index(_):
        return jax.lax.all_gather(device_index(8, accumulation), DATA_AXIS)

    on = Devices.create(1, devices)
    nothing = on.put(np.zeros(8, np.float32), DATA)
    assert on.compile(Program(index, [DATA], [nothing]))(nothing)[0].tolist() == expected


# --- Mixup -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """Return a batch of six images, and the result of mixup."""
    generator = np.random.default_rng(0)
    images, targets = generator.normal(size=(6, 2, 2, 1)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0])
    batch = Batch(images, targets, np.ones(6, np.float32), np.arange(6, dtype=np.int32))
    return batch, mix_pairs(jax.random.key(1), batch, 0.4)


def test_an_image_is_mixed_with_its_neighbour(pairs):
    batch, (own, other) = pairs
    share = np.asarray(own.weights)
    np.testing.assert_array_equal(share[::2], share[1::2])
    assert len(set(share.tolist())) == 3
    np.testing.assert_allclose(share + other.weights, 1, rtol=1e-6)
    np.testing.assert_array_equal(other.targets, [1, 0, 2, 2, 0, 1])
    neighbours = batch.images[[1, 0, 3, 2, 5, 4]]
    part = share[:, None, None, None]
    for mixed in (own, other):
        np.testing.assert_allclose(mixed.images, part * batch.images + (1 - part) * neighbours, atol=1e-6)


def test_the_sums_over_both_targets_are_those_of_mixed_labels(pairs):
    batch, mixed = pairs
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    task = Classification(3, label_smoothing=0.1)
    found = jax.tree.map(lambda *parts: sum(parts), *(task.sums(logits, one, train=True) for one in mixed))
    share = np.asarray(mixed[0].weights)[:, None]
    labels = share * np.eye(3)[batch.targets] + (1 - share) * np.eye(3)[np.asarray(mixed[1].targets)]
    losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, 0.1))
    assert float(found["loss"]) == pytest.approx(float(losses.sum()), rel=1e-6)
    assert float(found["examples"]) == pytest.approx(6)
    assert float(found["correct"]) == pytest.approx(
        float(np.take_along_axis(labels, logits.argmax(1)[:, None], 1).sum())
    )


def test_the_share_of_a_pair_is_drawn_for_its_index_alone(pairs):
    batch, (own, _) = pairs
    last = jax.tree.map(lambda leaf: leaf[4:], batch)
    np.testing.assert_array_equal(mix_pairs(jax.random.key(1), last, 0.4)[0].images, own.images[4:])
    assert not np.array_equal(mix_pairs(jax.random.key(2), last, 0.4)[0].weights, own.weights[4:])


# --- The state -------------------------------------------------------------------------------------------


def test_the_moving_average_stands_for_the_parameters_that_are_trained():
    state = TrainState(0, 0, {"stem": 1.0, "classifier": 2.0}, {"norm": 3.0}, (), {"classifier": 2.5})
    assert state.variables() == {"params": state.params, "batch_stats": state.batch_stats}
    assert state.variables(averaged=True)["params"] == {"stem": 1.0, "classifier": 2.5}
    assert state.replace(ema=None).variables(averaged=True)["params"] == state.params


def test_a_learner_trains_the_layers_that_it_names():
    params = {"stem": 1.0, "block_0": 2.0, "classifier": 3.0}
    learner = Learner(NETWORK, Classification(10), optax.identity())
    assert learner.split(params) == (params, {})
    named = dataclasses.replace(learner, trained_layers=("classifier",))
    assert named.split(params) == ({"classifier": 3.0}, {"stem": 1.0, "block_0": 2.0})
