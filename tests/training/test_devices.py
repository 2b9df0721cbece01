"""The same run on one device and on several, compiled by `jit` and by `pmap`."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import Recipe
from mnv2_jax.training.devices import DATA, REPLICATED, SEED, Devices, Program, group_size, run_groups
from mnv2_jax.training.programs import describe_programs
from mnv2_jax.training.step import DATA_AXIS, init_state
from training.runs import STAGES, learner_of

# Small steps: five large ones would amplify rounding differences a thousandfold.
RECIPE = Recipe(5, 32, learning_rate=0.002, warmup=0.0, label_smoothing=0.1, ema_decay=0.9, evaluations=1)
NETWORK = MobileNetV2(10, 0.1, stages=STAGES, dropout_rate=0.2)
NORMS = 1 + 3 + 1
"""Norms in the stem, the block of three layers, and the head."""
STEPS = 5


def learner(recipe, devices, train_images):
    axis = DATA_AXIS if recipe.batch_norm == "global" and devices > 1 else None
    task = Classification(10, recipe.label_smoothing)
    return learner_of(NETWORK.clone(batch_norm_axis=axis), task, recipe, train_images)


@pytest.fixture(scope="module")
def start(tiny):
    """Return the state before the first step, which is the same on any devices."""
    own = learner(RECIPE, 1, tiny.train_images)
    return jax.device_get(jax.jit(lambda seed: init_state(seed, own, tiny.image_shape))(np.int32(3)))


@pytest.fixture(scope="module")
def program(tiny):
    """Return a cached function that gives (devices, compiled step, what it was compiled from)."""

    @functools.cache
    def of(count, compiled="jit", **changes):
        recipe = dataclasses.replace(RECIPE, **changes)
        devices = Devices.create(1, count, compiled)
        described = describe_programs(learner(recipe, count, tiny.train_images), tiny, recipe, devices)["train"]
        return devices, devices.compile(described), described

    return of


@pytest.fixture(scope="module")
def run(tiny, start, program):
    """Return a cached function from settings and devices to (params, batch_stats, ema) after five steps."""

    @functools.cache
    def of(count, compiled="jit", change=0.0, **changes):
        devices, step, described = program(count, compiled, **changes)
        stacked = jax.tree.map(lambda leaf: leaf[None], start)
        stacked = stacked.replace(params=jax.tree.map(lambda leaf: leaf * (1 + change), stacked.params))
        state = devices.put(stacked, SEED)
        totals = devices.put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), described.arguments[1]), SEED)
        images = devices.put(tiny.train, REPLICATED)
        for _ in range(STEPS):
            state, totals, _ = step(state, totals, images)
        assert int(totals["examples"][0]) == STEPS * RECIPE.batch_size
        return jax.device_get((state.params, state.batch_stats, state.ema))

    return of


def difference(one, other):
    """Return the largest difference among parameters, statistics and averages, each relative to its norm."""

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    return max(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)) for a, b in zip(one, other, strict=True))


def test_one_run_whatever_the_devices(run):
    """With batch norm over all devices, augmentation, dropout, label smoothing and moving average."""
    assert difference(run(8), run(1)) < 1e-5


def test_batch_norm_of_each_device_is_another_run(run):
    assert difference(run(4, batch_norm="replica"), run(1)) > 1e-4


def test_microbatches_are_what_devices_are(run):
    """Four devices, each with 8 images and its own statistics, equal two devices with two such microbatches each.

    They also equal four microbatches on eight devices, with statistics over all eight. Both use `pmap`.
    """
    replica = run(4, batch_norm="replica")
    assert difference(run(2, "pmap", accumulation=2, batch_norm="replica"), replica) < 1e-5
    assert difference(run(8, "pmap", accumulation=4), replica) < 1e-5


def test_the_comparison_would_see_a_difference(run):
    assert 1e-5 < difference(run(8, change=1e-4), run(8)) < 1e-2


# --- The compiled program --------------------------------------------------------------------------------


def text_of(program):
    """Return the text of the program as XLA compiled it."""
    _, step, _ = program
    return getattr(step, "func", step).as_text()


@pytest.mark.parametrize(("count", "compiled", "changes"), [(4, "jit", {}), (2, "pmap", {"accumulation": 2})])
def test_devices_wait_for_each_other_once_a_step(program, count, compiled, changes):
    text = text_of(program(count, compiled, **changes, batch_norm="replica"))
    assert "all-gather" not in text
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1


def test_batch_norm_over_all_devices_costs_two_more_a_layer(program):
    """One all-reduce forward and one backward."""
    text = text_of(program(8))
    assert "all-gather" not in text
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1 + 2 * NORMS


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_program_is_a_function_of_one_run_on_one_device(parallel):
    """Each run has its own state, each device its part of the batch, and replicated values are everywhere."""
    runs = 1 if parallel == "pmap" else 2
    devices = Devices.create(runs, 4, parallel)
    assert (devices.runs, devices.per_run, devices.mesh.size) == (runs, 4, 4 * runs)
    state = devices.put(np.arange(1.0, runs + 1, dtype=np.float32), SEED)
    batch = devices.put({"x": np.arange(8, dtype=np.float32)}, DATA)
    factor = devices.put(np.float32(10), REPLICATED)

    def function(state, batch, factor):
        assert (state.shape, batch["x"].shape, factor.shape) == ((), (2,), ())
        return state + factor * jax.lax.psum(batch["x"].sum(), DATA_AXIS)

    compiled = devices.compile(Program(function, [SEED, DATA, REPLICATED], [state, batch, factor]))
    assert compiled(state, batch, factor).tolist() == [281.0, 282.0][:runs]


# --- Settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "says"),
    [
        (20, 1, "--batch-size 20 is not divisible by 8 devices; use 16"),
        (24, 2, "is not divisible by 8 devices with 2 microbatches each; use 32"),
        (4, 1, "use 8"),
    ],
)
def test_a_batch_that_does_not_divide(batch_size, accumulation, says):
    with pytest.raises(UserError, match=says):
        Devices.create(1, 8).check_divides(batch_size, accumulation)


def test_mixup_takes_whole_pairs():
    Devices.create(1, 8).check_divides(32, 2, mixup=0.2)
    with pytest.raises(UserError, match="24 is not divisible by 8 devices, in pairs for --mixup; use 32"):
        Devices.create(1, 8).check_divides(24, 1, mixup=0.2)


@pytest.mark.parametrize(
    ("seeds", "devices", "groups"),
    [
        (6, 1, [(0,), (1,), (2,), (3,), (4,), (5,)]),
        (6, 8, [(0, 1, 2, 3, 4, 5)]),
        (6, 4, [(0, 1, 2), (3, 4, 5)]),
        (7, 4, [(0, 1, 2, 3), (4, 5, 6, 6)]),
        (0, 4, []),
    ],
)
def test_run_groups(seeds, devices, groups):
    assert run_groups(range(seeds), group_size(seeds, devices)) == groups
