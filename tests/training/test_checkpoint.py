"""States of runs on disk, restored intact or not at all."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.network import tree_digest
from mnv2_jax.training.checkpoint import RunCheckpoints
from mnv2_jax.training.step import TrainState

UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step):
    """Return a state of two runs. No array is zeros, because missing parts of arrays are read as zeros."""
    numbers = jnp.arange(1.0, 7.0).reshape(2, 3) + step
    return TrainState(
        step=jnp.full(2, step, jnp.int32),
        seed=jnp.array([3, 4], jnp.int32),
        params={"stem": {"kernel": numbers}, "classifier": {"bias": 2 * numbers}},
        batch_stats={"mean": 3 * numbers},
        opt_state=({"trace": 4 * numbers},),
        ema=None,
    )


@contextlib.contextmanager
def opened(folder, **options):
    checkpoints = RunCheckpoints(folder, **options)
    with contextlib.closing(checkpoints):
        yield checkpoints


def restored(folder, like=None, **options):
    with opened(folder, **options) as checkpoints:
        return checkpoints.restore(like)


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size > 0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Save checkpoints of steps 20 and 40."""
    folder = tmp_path_factory.mktemp("checkpoints") / "two"
    with opened(folder) as checkpoints:
        for step in (20, 40):
            checkpoints.save(state_of(step), step, {"position": {"next_index": step}, "seconds": 1.5})
    return folder


@pytest.fixture
def copy(two, tmp_path):
    return shutil.copytree(two, tmp_path / "copy")


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_newest_comes_back_with_its_notes(two):
    saved = restored(two, state_of(0))
    assert_same(saved.state, state_of(40))
    assert isinstance(saved.state, TrainState)
    assert (saved.notes["position"], saved.notes["seconds"], saved.damaged) == ({"next_index": 40}, 1.5, [])


def test_what_is_in_a_checkpoint_is_read_without_knowing_it(two):
    saved = restored(two, read_only=True)
    assert_same(saved.state["params"], state_of(40).params)
    assert tree_digest(saved.state) == tree_digest(state_of(40))


def test_no_checkpoint_is_none(tmp_path):
    assert restored(tmp_path / "nothing", state_of(0)) is None


def test_what_is_written_is_the_state_as_it_was(tmp_path):
    """The next step reuses the memory of the state."""
    with opened(tmp_path / "x") as checkpoints:
        state = state_of(1)
        checkpoints.save(state, 1, {})
        jax.tree.map(lambda leaf: leaf.delete(), state)
        checkpoints.wait()
    assert_same(restored(tmp_path / "x", state_of(0)).state, state_of(1))


def test_the_newest_and_every_so_manieth_are_kept(tmp_path):
    with opened(tmp_path / "x", keep=1, keep_every=20) as checkpoints:
        for step in (10, 20, 30, 40, 50):
            checkpoints.save(state_of(step), step, {})
        checkpoints.wait()
        assert checkpoints.steps == [50, 40, 20]


def test_the_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "c[1] *" / "x"
    for step in (20, 40):
        with opened(folder) as checkpoints:
            checkpoints.save(state_of(step), step, {})
    assert_same(restored(folder, state_of(0)).state, state_of(40))
    assert {path.name for path in folder.iterdir()} == {"20", "40"}


def test_digests_tell_names_types_shapes_and_bits_apart():
    tree = {"a": np.arange(6, dtype=np.float32)}
    changed = [
        {"b": tree["a"]},
        {"a": tree["a"].astype(np.int32)},
        {"a": tree["a"].reshape(2, 3)},
        {"a": np.nextafter(tree["a"], 9, dtype=np.float32)},
    ]
    assert len({tree_digest(other) for other in (tree, *changed)}) == 5
    assert tree_digest({"a": jnp.asarray(tree["a"])}) == tree_digest(tree)


# --- Damage ----------------------------------------------------------------------------------------------


@UNRAISABLE
def test_any_file_of_a_checkpoint_may_be_deleted(copy, tmp_path):
    """Whichever file is missing, the saved state is restored intact, or the one before it."""
    names = [path.relative_to(copy) for path in files(copy / "40")]
    assert len(names) >= 4
    steps = set()
    for name in names:
        trial = shutil.copytree(copy, tmp_path / "trial")
        (trial / name).unlink()
        saved = restored(trial, state_of(0))
        step = int(saved.state.step[0])
        assert_same(saved.state, state_of(step))
        steps.add(step)
        shutil.rmtree(trial)
    assert 20 in steps <= {20, 40}


@UNRAISABLE
def test_a_damaged_one_is_named_and_set_aside_for_another_of_its_step(copy):
    victim = max(files(copy / "40"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with opened(copy) as checkpoints:
        saved = checkpoints.restore(state_of(0))
        assert_same(saved.state, state_of(20))
        ((step, why),) = saved.damaged
        assert step == 40
        assert why
        checkpoints.set_aside(40)
        assert checkpoints.steps == [20]
        checkpoints.save(state_of(40), 40, {})
    assert {path.name for path in copy.iterdir()} == {"20", "40", "damaged-40"}
    assert_same(restored(copy, state_of(0)).state, state_of(40))


@UNRAISABLE
def test_where_none_can_be_read_it_is_said_in_one_line(copy):
    for step in ("20", "40"):
        for path in files(copy / step):
            path.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"none of the checkpoints in .* \(steps 40, 20\) can be read .*--overwrite"
    ) as error:
        restored(copy, state_of(0))
    assert "\n" not in str(error.value)


@UNRAISABLE
def test_those_of_another_network_cannot_be_read(copy):
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), state_of(0))
    with pytest.raises(UserError, match="none of the checkpoints"):
        restored(copy, like)
