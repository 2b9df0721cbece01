"""RandAugment: what each operation does, and that the draws depend only on the generator."""

import numpy as np
import pytest
from PIL import Image

from mnv2_jax.data.rand_augment import OPERATIONS, RandAugment

AUTOCONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, COLOR, CONTRAST, BRIGHTNESS, SHARPNESS = range(10)
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, CUTOUT, SOLARIZE_ADD = range(10, 16)
PIXELS = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
ROWS = np.arange(56)[:, None] * np.ones((1, 56), int)
COLUMNS = ROWS.T


def done(number, magnitude, pixels=PIXELS, seed=0):
    """Return the result of an operation."""
    image = OPERATIONS[number](Image.fromarray(pixels), magnitude / 10, np.random.default_rng(seed))
    return np.asarray(image).astype(int)


def test_what_is_drawn_is_the_generators_alone():
    results = []
    for seed in (0, 0, 1):
        pixels = PIXELS.copy()
        RandAugment(3)(pixels, np.random.default_rng(seed))
        results.append(pixels)
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_no_operations_draw_nothing():
    pixels, generator = PIXELS.copy(), np.random.default_rng(0)
    RandAugment()(pixels, generator)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert generator.integers(1 << 30) == np.random.default_rng(0).integers(1 << 30)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0.0, 9.0, 30.0])
def test_every_operation_takes_grey_and_rgb_images_at_any_magnitude(channels, magnitude):
    for seed in range(8):
        pixels = PIXELS[..., :channels].copy()
        RandAugment(16, magnitude)(pixels, np.random.default_rng(seed))
        assert pixels.shape == (56, 56, channels)


def test_colours_are_varied_as_in_the_source():
    values = PIXELS.astype(int)
    np.testing.assert_array_equal(done(INVERT, 9), 255 - values)
    np.testing.assert_array_equal(done(SOLARIZE, 5), np.where(values < 128, values, 255 - values))
    np.testing.assert_array_equal(done(SOLARIZE, 10), values)
    np.testing.assert_array_equal(done(SOLARIZE_ADD, 10), np.where(values < 128, np.minimum(values + 110, 255), values))
    np.testing.assert_array_equal(done(POSTERIZE, 10), values // 16 * 16)
    np.testing.assert_array_equal(done(POSTERIZE, 5), values // 64 * 64)
    np.testing.assert_allclose(done(BRIGHTNESS, 0), 0.1 * values, atol=1)
    for number in (COLOR, CONTRAST, BRIGHTNESS, SHARPNESS):
        np.testing.assert_array_equal(done(number, 5), values)
    assert done(CONTRAST, 9).std() > values.std() > done(CONTRAST, 1).std()
    dim = (PIXELS // 4 + 60).astype(np.uint8)
    assert (done(AUTOCONTRAST, 9, dim).min(), done(AUTOCONTRAST, 9, dim).max()) == (0, 255)
    assert np.ptp(done(EQUALIZE, 9, dim)) > 250


def test_images_are_moved_by_shares_of_their_side_in_either_direction_and_grey_moves_in():
    """At magnitude 10 by 100 of 224 pixels, i.e. 25 of 56."""
    rows, columns = ROWS.astype(np.uint8), COLUMNS.astype(np.uint8)
    expected = {-25: np.where(COLUMNS < 25, 128, COLUMNS - 25), 25: np.where(COLUMNS < 31, COLUMNS + 25, 128)}
    seen = set()
    for seed in range(8):
        found = done(TRANSLATE_X, 10, columns, seed)
        (by,) = (by for by, values in expected.items() if np.array_equal(values, found))
        np.testing.assert_array_equal(done(TRANSLATE_Y, 10, rows, seed), found.T)
        # Sheared by 0.3, which moves the last row by 16 or 17 pixels.
        sheared = done(SHEAR_X, 10, columns, seed)
        np.testing.assert_array_equal(sheared[0], COLUMNS[0])
        assert abs(sheared[-1, 28] - 28) in (16, 17)
        np.testing.assert_array_equal(done(SHEAR_Y, 10, rows, seed), sheared.T)
        turned = done(ROTATE, 30, rows, seed)  # by 90 degrees
        assert set(turned[:, 28].tolist()) <= {27, 28, 128}
        seen.add(by)
    assert seen == {-25, 25}


def test_a_square_is_cut_out():
    """At magnitude 10 of side 80 of 224 pixels, i.e. 20 of 56; smaller at an edge."""
    black = np.zeros((56, 56, 3), np.uint8)
    areas = []
    for seed in range(20):
        grey = done(CUTOUT, 10, black, seed) == 128
        rows, columns = np.nonzero(grey.any((1, 2)))[0], np.nonzero(grey.any((0, 2)))[0]
        assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(grey[..., 0].sum())
    assert max(areas) == 400
    assert min(areas) < 400
