import pytest

from experiments.scripts import costs_of, study_of


def test_shortcuts_cost_nothing(digits):
    study = study_of("ablate_residual")
    assert [arm.name for arm in study.arms] == ["bottleneck", "expansion", "none"]
    assert len(set(costs_of(study, digits).values())) == 1


def test_classic_blocks_are_matched_within_two_percent(digits, few_blocks):
    study = study_of("ablate_residual", question="classic", convolution=("depthwise", "full"))
    costs = costs_of(study, digits)
    madds, parameters = costs.pop("inverted")
    assert len(costs) == 4
    for name, (own_madds, own_parameters) in costs.items():
        ratio = own_madds / madds if name.endswith("madds") else own_parameters / parameters
        assert ratio == pytest.approx(1, abs=0.02), name
    # The notes name what was matched, with the resulting numbers.
    assert f"{costs['classic full, params'][1]:,} parameters" in study.arms[4].note
