import dataclasses

import pytest

from experiments.scripts import costs_of, study_of
from mnv2_jax.errors import UserError


def test_widths_and_resolutions_of_both_networks(digits):
    study = study_of("width_resolution", widths=(0.35, 0.5), resolutions=(32, 16))
    assert study.arms[0].name == "V2 0.35 20"
    assert len(study.arms) == 9
    few = dataclasses.replace(study, arms=tuple(arm for arm in study.arms if " 0.5 " in arm.name))
    costs = costs_of(few, digits)
    # A quarter of the pixels, but the classifier costs the same and odd sizes round up.
    assert costs["V2 0.5 16"][0] == pytest.approx(costs["V2 0.5 32"][0] / 4, rel=0.15)
    assert costs["V1 0.5 16"][1] == costs["V1 0.5 32"][1]
    assert max(cost for _, cost, _ in study.published) == 582e6


def test_the_baseline_is_there_whatever_is_asked_for():
    study = study_of("width_resolution", widths=(0.5,), resolutions=(14,))
    assert [arm.name for arm in study.arms] == ["V2 0.35 20", "V2 0.5 14", "V1 0.5 14"]


def test_a_resolution_that_no_image_has():
    with pytest.raises(UserError, match="--resolutions must be from 1 to 1024 pixels, got 0"):
        study_of("width_resolution", resolutions=(0,))
