"""Networks from the settings of runs: which images batch norm takes its statistics over."""

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.training.create import check_batch_norm
from training.runs import open_once, tiny_run


@pytest.fixture(autouse=True)
def _data(digits):
    """Make sure that digits are prepared."""


def check(devices, resolution=12, **training):
    run = tiny_run(training, resolution=resolution, weights="x" if training.get("frozen_batch_norm") else None)
    return check_batch_norm(run, open_once(run), devices)


@pytest.mark.parametrize(
    ("devices", "training"),
    [
        (1, {"batch_size": 1, "accumulation": 1}),
        (1, {"batch_size": 4, "accumulation": 4}),
        (4, {"batch_size": 4, "accumulation": 1, "batch_norm": "replica"}),
    ],
)
def test_statistics_of_one_image_are_told_and_of_one_number_are_refused(devices, training):
    (note,) = check(devices, **training)
    assert note.startswith("batch norm computes its statistics over one image at a time, unlike in evaluation; ")
    with pytest.raises(
        UserError, match="over one image of one pixel, so their variance is zero; use a larger --batch-size"
    ):
        check(devices, resolution=2, **training)


def test_statistics_of_several_images_are_all_right():
    assert check(4, resolution=2, batch_size=4, accumulation=1) == []  # over all devices
    assert check(1, resolution=2, batch_size=4, accumulation=2) == []
    assert check(1, resolution=2, batch_size=1, accumulation=1, frozen_batch_norm=True) == []
