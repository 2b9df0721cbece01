import sys

import numpy as np
from sklearn.datasets import load_digits

from mnv2_jax.data.resident import load


def test_digits_are_split_fixed_stratified_and_whole(digits):
    everything = np.bincount(load_digits().target)
    test = np.bincount(digits.test.targets)
    train = np.bincount(digits.train.targets) + np.bincount(digits.validation.targets)
    np.testing.assert_array_equal(test, -(-everything // 4))
    np.testing.assert_array_equal(train + test, everything)
    assert digits.image_shape == (20, 20, 1)
    assert digits.num_classes == 10
    assert digits.train.images.dtype == np.uint8
    assert len(digits.validation.targets) == 134
    # Images that stand in two splits would be counted twice here.
    pixels = [images.tobytes() for split in (digits.train, digits.validation, digits.test) for images in split.images]
    assert len(set(pixels)) == len({image.tobytes() for image in load_digits().images})


def test_digits_are_prepared_once_without_tensorflow(digits, data_dir):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*array_record*")}
    assert before
    again = load("digits", data_dir=data_dir)
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*array_record*")}
    assert "tensorflow" not in sys.modules
