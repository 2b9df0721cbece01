"""Learning rates and updates, compared with the paper's code and recipes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.training.config import RECIPES, Recipe
from mnv2_jax.training.optimizer import create_optimizer, create_schedule, decays


def rates_of(recipe, steps_per_epoch, count):
    """Return the learning rates that plain SGD actually uses."""
    recipe = dataclasses.replace(recipe, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    optimizer = create_optimizer(recipe, recipe.batch_size * steps_per_epoch)
    params = {"kernel": jnp.zeros(())}

    def step(state, _):
        update, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        return state, -update["kernel"]

    return jax.lax.scan(step, optimizer.init(params), length=count)[1].tolist()


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = rates_of(Recipe(1, 1, learning_rate=0.5, warmup=0.2), 10, 11)
    assert rates[:3] == pytest.approx([0, 0.25, 0.5])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0)


def test_the_papers_learning_rate():
    """0.045 per 96 images of a batch, 2 % less after every epoch."""
    rates = rates_of(RECIPES["paper"], 10, 25)
    assert rates[:10] == pytest.approx([0.045 * 8] * 10)
    assert rates[10:20] == pytest.approx([0.045 * 8 * 0.98] * 10)
    assert rates[20] == pytest.approx(0.045 * 8 * 0.98**2)


def test_the_cosine_recipe():
    rates = rates_of(RECIPES["cosine"], 2, 301)
    assert rates[0] == pytest.approx(0.05)
    assert rates[150] == pytest.approx(0.025)
    assert rates[300] == pytest.approx(0, abs=1e-9)


def test_an_exponential_schedule_after_a_warmup():
    recipe = Recipe(4, 1, learning_rate=1.0, schedule="exponential", epoch_decay=0.5, warmup=0.5)
    assert rates_of(recipe, 2, 8) == pytest.approx([0, 0.25, 0.5, 0.75, 0.25, 0.25, 0.125, 0.125])


def test_schedules_are_known_to_who_logs_them():
    recipe = Recipe(2, 1, learning_rate=0.5)
    schedule = create_schedule(recipe, 5)
    assert schedule(np.arange(10)).tolist() == pytest.approx(rates_of(recipe, 5, 10))


def test_rmsprop_is_tensorflows():
    """ms = 0.9 ms + 0.1 g^2 from 1; mom = 0.9 mom + lr g / sqrt(ms + epsilon); var -= mom; g holds the L2 penalty."""
    recipe = dataclasses.replace(RECIPES["paper"], batch_size=96)
    optimizer = create_optimizer(recipe, 96_000)
    params = {"kernel": jnp.array([0.5, -2.0]), "bias": jnp.array([1.0])}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    ms = {name: np.ones_like(value) for name, value in expected.items()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(4):
        gradients = {"kernel": jnp.array([0.3, 4.0]) * (step + 1), "bias": jnp.array([-2.0])}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in expected:
            g = np.asarray(gradients[name], np.float64) + (4e-5 * expected[name] if name == "kernel" else 0)
            ms[name] = 0.9 * ms[name] + 0.1 * g**2
            momentum[name] = 0.9 * momentum[name] + 0.045 * g / np.sqrt(ms[name] + 1.0)
            expected[name] -= momentum[name]
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-6)


def test_adamw_decays_weights_apart_from_their_gradients():
    """m = 0.9 m + 0.1 g; v = 0.999 v + 0.001 g^2; var -= lr (m' / (sqrt(v') + 1e-8) + 0.05 var), m' and v' unbiased."""
    recipe = Recipe(1, 10, 0.01, optimizer="adamw", weight_decay=0.05, warmup=0.0)
    optimizer, rates = create_optimizer(recipe, 1000), create_schedule(recipe, 1000)
    params = {"kernel": jnp.array([0.5, -2.0]), "bias": jnp.array([1.0])}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for step in range(4):
        gradients = {"kernel": jnp.array([0.3, 4.0]) * (step + 1), "bias": jnp.array([-2.0])}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in expected:
            g = np.asarray(gradients[name], np.float64)
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g**2
            unbiased, square = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            decay = 0.05 * expected[name] if name == "kernel" else 0
            expected[name] -= float(rates(step)) * (unbiased / (np.sqrt(square) + 1e-8) + decay)
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


# --- Which parameters ------------------------------------------------------------------------------------


def test_weight_decay_spares_depthwise_kernels_norms_and_biases():
    variables = jax.eval_shape(MobileNetV2(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    decayed = {
        "/".join(entry.key for entry in path)
        for path, on in jax.tree_util.tree_leaves_with_path(decays(variables["params"]))
        if on
    }
    # Stem, head and classifier; 17 projections; 16 expansions.
    assert len(decayed) == 3 + 17 + 16
    assert {"stem/conv/kernel", "classifier/kernel", "block_1/expand/conv/kernel"} <= decayed
    assert not [name for name in decayed if "depthwise" in name or not name.endswith("kernel")]


def test_weight_decay_of_the_cosine_recipe_is_on_everything():
    optimizer = create_optimizer(dataclasses.replace(RECIPES["cosine"], momentum=0.0), 2560)
    params = {"depthwise": {"kernel": jnp.ones(())}, "norm": {"scale": jnp.full((), 2.0)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert float(updates["depthwise"]["kernel"]) == pytest.approx(-0.05 * 4e-5)
    assert float(updates["norm"]["scale"]) == pytest.approx(-0.05 * 4e-5 * 2)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_the_backbone_s_updates_are_those_of_its_share_of_the_learning_rate(name):
    """Including momentum, since the whole update is proportional to the run's learning rate."""
    recipe = Recipe(1, 10, 0.5, optimizer=name, backbone_learning_rate=0.1)
    gradients = {"stem": {"kernel": jnp.array([1.0, -2.0])}, "classifier": {"kernel": jnp.array([3.0])}}
    params = jax.tree.map(lambda leaf: 0 * leaf + 1, gradients)

    def updates_of(recipe):
        optimizer = create_optimizer(recipe, 100, task_layers=("classifier",))
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(gradients, state, params)
        return updates

    slow, fast = updates_of(recipe), updates_of(dataclasses.replace(recipe, backbone_learning_rate=1.0))
    np.testing.assert_allclose(slow["stem"]["kernel"], 0.1 * fast["stem"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(slow["classifier"]["kernel"], fast["classifier"]["kernel"])
    assert np.abs(fast["stem"]["kernel"]).min() > 0
