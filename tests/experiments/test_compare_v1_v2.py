import pytest

from experiments.scripts import costs_of, study_of
from mnv2_jax.ablation.arms import run_of
from mnv2_jax.ablation.design import identity
from mnv2_jax.results import plain


def test_mobilenet_v1_at_one_width_and_at_one_cost(digits):
    study = study_of("compare_v1_v2")
    model = run_of(study, study.arms[1]).model
    assert (model["name"], model["width_multiplier"]) == ("mobilenet_v1", 0.35)
    assert "expansion" not in model
    costs = costs_of(study, digits)
    assert costs["V1"][0] > 1.1 * costs["V2"][0]
    assert costs["V1, equal madds"][0] == pytest.approx(costs["V2"][0], rel=0.02)
    assert plain(identity(study))["arm V1, equal madds"]["width_multiplier"] != 0.35
    assert f"{costs['V1, equal madds'][0]:,} multiply-adds" in study.arms[2].note
