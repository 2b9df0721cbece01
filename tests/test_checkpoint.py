import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.checkpoint import load_description, load_variables, save_checkpoint
from mnv2_jax.errors import UserError

VARIABLES = {"params": {"a": jnp.arange(6.0).reshape(2, 3)}, "batch_stats": {"b": jnp.ones(2)}}
SHAPES = jax.eval_shape(lambda: VARIABLES)


def test_a_checkpoint_returns_what_was_saved_last(tmp_path):
    save_checkpoint(tmp_path / "x", VARIABLES, {"model": "small"})
    save_checkpoint(tmp_path / "x", jax.tree.map(lambda leaf: leaf + 1, VARIABLES), {"model": "large"})
    restored = load_variables(tmp_path / "x", SHAPES)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(lambda leaf: leaf + 1, VARIABLES))
    assert load_description(tmp_path / "x") == {"model": "large"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_shape_than_expected_is_refused(tmp_path):
    save_checkpoint(tmp_path / "x", VARIABLES, {})
    wrong = {**SHAPES, "params": {"a": jax.ShapeDtypeStruct((3, 3), jnp.float32)}}
    with pytest.raises(UserError, match="cannot be read"):
        load_variables(tmp_path / "x", wrong)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing cannot be read"):
        load_description(tmp_path / "nothing")
