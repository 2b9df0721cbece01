"""The network that is best on the validation split; `test_run.py` tests that runs keep it."""

import jax
import jax.numpy as jnp
import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.network import open_network, save_network, variable_shapes
from mnv2_jax.training.best import Best
from mnv2_jax.training.create import network_of
from mnv2_jax.training.step import TrainState
from training.runs import open_once, tiny_run


def test_the_best_network_is_replaced_by_a_better_one_alone(digits, tmp_path):
    run = tiny_run()
    network = network_of(run, open_once(run))
    shapes = variable_shapes(network.model, 1)

    def state(value):
        variables = jax.tree.map(lambda leaf: jnp.full((1, *leaf.shape), value, leaf.dtype), shapes)
        return TrainState(0, 0, variables["params"], variables["batch_stats"], (), None)

    def offer(best, step, accuracy):
        best(state(float(step)), step, [{"loss": 1.0, "accuracy": accuracy}])

    best = Best(tmp_path / "best", network)
    assert best.found is None
    for step, accuracy in ((1, 0.5), (2, 0.75), (3, 0.75), (4, 0.25)):
        offer(best, step, accuracy)
    resumed = Best(tmp_path / "best", network)
    assert resumed.found == best.found == {"step": 2, "validation": {"loss": 1.0, "accuracy": 0.75}}
    offer(resumed, 2, 0.75)
    offer(resumed, 3, 0.8)
    assert Best(tmp_path / "best", network).found["step"] == 3
    kept = open_network(tmp_path / "best")
    assert {float(leaf.max()) for leaf in jax.tree.leaves(kept.variables)} == {3.0}
    save_network(tmp_path / "other", kept)
    with pytest.raises(
        UserError, match="other is not the best network of a run .best is missing.; move it away and run the same"
    ):
        Best(tmp_path / "other", network)
