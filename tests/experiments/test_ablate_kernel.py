from experiments.scripts import costs_of, study_of
from mnv2_jax.settings import SharedSettings


def test_an_arm_for_each_size_of_which_a_flag_says_the_baseline_s(digits):
    study = study_of("ablate_kernel")
    assert [(arm.name, arm.value) for arm in study.arms] == [("3x3", 3), ("5x5", 5), ("7x7", 7)]
    costs = costs_of(study, digits)
    channels = (costs["5x5"][1] - costs["3x3"][1]) / (25 - 9)
    assert costs["7x7"][1] - costs["3x3"][1] == channels * (49 - 9)
    assert costs["3x3"][0] < costs["5x5"][0] < costs["7x7"][0]
    other = study_of("ablate_kernel", network=SharedSettings(width_multiplier=0.35, expansion=6.0, kernel_size=5))
    assert [arm.name for arm in other.arms] == ["5x5", "3x3", "7x7"]
