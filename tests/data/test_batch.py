import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import PointTargets, pointing_dataset

from mnv2_jax.data.batch import CLASSES, ClassTargets, Dataset, Move, Targets, View, pad_batch


def test_a_class_stays_the_same_however_its_image_is_moved():
    label = CLASSES.encode(7, View(100, 80, 10, 20, 30, 40, True, 24))
    assert (label, label.dtype) == (7, np.int32)
    assert CLASSES.move(jnp.int32(7), Move(2, -1, True), 24) == 7
    assert CLASSES.empty().dtype == np.int32
    assert isinstance(CLASSES, Targets)
    assert isinstance(PointTargets(), Targets)
    assert ClassTargets() == CLASSES


def test_data_sets_have_what_training_asks_of_them(tiny):
    assert isinstance(tiny, Dataset)
    assert isinstance(pointing_dataset(), Dataset)


def test_a_view_takes_points_and_pixels_to_the_same_places():
    """A crop of 2 by 3 pixels of a 4 x 6 image, mirrored and scaled to 6 x 6."""
    view = View(4, 6, 1, 3, 2, 3, True, 6)
    corners = np.array([[1.0, 3.0], [3.0, 6.0], [1.0, 6.0]])
    np.testing.assert_allclose(view.move_points(corners), [[0, 6], [6, 0], [0, 0]])
    mask = np.arange(24).reshape(4, 6)
    moved = view.move_mask(mask)
    np.testing.assert_array_equal(moved[0], [11, 11, 10, 10, 9, 9])
    np.testing.assert_array_equal(moved[:, 0], [11, 11, 11, 17, 17, 17])


def test_a_view_beyond_the_image_is_empty_there():
    moved = View(2, 2, -1, 0.5, 4, 4, False, 4).move_mask(np.full((2, 2), 3, np.uint8), outside=255)
    np.testing.assert_array_equal(moved[[0, 3]], 255)
    np.testing.assert_array_equal(moved[1:3, 2:], 255)
    assert moved.dtype == np.uint8


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -1), (-3, 4)])
def test_a_move_takes_points_and_pixels_to_the_same_places(down, right, flip):
    mask = jnp.zeros((9, 9), jnp.int32).at[4, 3].set(5)
    move = Move(jnp.int32(down), jnp.int32(right), jnp.bool_(flip))
    moved, point = jax.jit(lambda move: (move.move_mask(mask), move.move_points(jnp.array([4.5, 3.5]), 9)))(move)
    assert int(moved.sum()) == 5
    np.testing.assert_array_equal(np.argwhere(moved)[0] + 0.5, point)


def test_a_batch_is_filled_up_with_examples_that_do_not_count():
    targets = {"boxes": np.ones((2, 3, 4), np.float32), "count": np.array([3, 2], np.int32)}
    empty = {"boxes": np.zeros((3, 4), np.float32), "count": np.int32(-1)}
    batch = pad_batch(np.ones((2, 5, 5, 1), np.float32), targets, 4, empty)
    np.testing.assert_array_equal(batch.weights, [1, 1, 0, 0])
    np.testing.assert_array_equal(batch.targets["count"], [3, 2, -1, -1])
    assert batch.targets["boxes"].shape == (4, 3, 4)
    assert (batch.images[2:] == 0).all()
    np.testing.assert_array_equal(batch.index, range(4))
