import pytest

from experiments.scripts import costs_of, study_of
from mnv2_jax.errors import UserError
from mnv2_jax.settings import SharedSettings


def test_expansions_at_one_width(digits, few_blocks):
    study = study_of("ablate_expansion", expansions=(0.25, 6, 10))
    assert [(arm.name, arm.value) for arm in study.arms] == [("t=6", 6), ("t=0.25", 0.25), ("t=10", 10)]
    costs = [cost for cost, _ in costs_of(study, digits).values()]
    assert costs[1] < costs[0] < costs[2]


def test_expansions_at_one_cost(digits, few_blocks):
    wide = SharedSettings(width_multiplier=1.0, expansion=6.0)
    study = study_of("ablate_expansion", at="multiply_adds", expansions=(0.25, 10), network=wide)
    costs = [cost for cost, _ in costs_of(study, digits).values()]
    assert costs == pytest.approx([costs[0]] * 3, rel=0.02)


def test_an_expansion_that_no_network_has():
    with pytest.raises(UserError, match="--expansions must be greater than 0 and below 100, got -1"):
        study_of("ablate_expansion", expansions=(1, -1))


@pytest.mark.parametrize("at", ["width", "multiply_adds"])
def test_without_an_expansion_layer_an_arm_is_a_series_of_its_own(at, few_blocks):
    study = study_of("ablate_expansion", at=at, expansions=(1, 2))
    assert {arm.name: arm.series for arm in study.arms} == {"t=6": "", "t=1": "t=1: no expansion layer", "t=2": ""}
