"""Matching of other networks at the same cost."""

import os
import subprocess
import sys

import pytest

from mnv2_jax.ablation.matching import TOLERANCE, Matching
from mnv2_jax.errors import UserError
from mnv2_jax.settings import DataSettings

DIGITS = DataSettings(dataset="digits", resolution=12)


@pytest.fixture(scope="module")
def matching():
    # Wide enough that one more channel is a small step in cost.
    return Matching(DIGITS, {"width_multiplier": 0.35, "unit_strides": 3, "stages": ((1, 64, 1, 1), (4, 96, 2, 2))})


@pytest.mark.parametrize("cost", ["multiply_adds", "parameters"])
def test_the_width_at_which_another_network_costs_as_much(matching, cost):
    target = matching.cost(cost, {})
    found = matching.match(cost, target, {"expansion": 2.0})
    assert (found["expansion"], found["channel_divisor"]) == (2.0, 1)
    assert found["width_multiplier"] > 0.35
    assert matching.cost(cost, found) == pytest.approx(target, rel=TOLERANCE)


def test_no_width_can_match_a_cost_that_is_too_small(matching):
    with pytest.raises(UserError, match=r"no width of .* has 1,000 multiply-adds within 2%; the nearest is off by"):
        matching.match("multiply_adds", 1000, {"expansion": 2.0})


def test_classes_of_a_folder_are_counted_in_it(tmp_path):
    from samples import write_folder

    folder = write_folder(tmp_path / "photos", classes=("a", "b", "c"), images=10)
    settings = {"name": "mobilenet_v2", "stages": ((1, 16, 1, 1),), "width_multiplier": 0.1}
    costs = [
        Matching(data, settings).cost("parameters", {})
        for data in (DataSettings(dataset="folder", data_files=folder, resolution=12), DIGITS)
    ]
    # RGB instead of grey for the stem's 8 kernels of 3 x 3; 3 classes instead of 10 on 1280 features.
    assert costs[0] - costs[1] == 8 * 9 * 2 - 7 * 1281


def test_matching_leaves_it_to_the_study_how_many_devices_there_are():
    """JAX counts devices once, when it initializes them."""
    code = (
        "from mnv2_jax.ablation.matching import Matching; from mnv2_jax.settings import DataSettings; "
        "m = Matching(DataSettings(), {'width_multiplier': 0.35, 'stages': [(1, 16, 1, 1)]}); m.cost('parameters', {}); "
        "import jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "3", result.stderr
