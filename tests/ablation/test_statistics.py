import numpy as np
import pytest
import scipy.stats

from mnv2_jax.ablation.statistics import compare_all, compare_paired, seeds_needed


def test_six_pairs_of_one_sign_are_the_smallest_p_that_six_can_reach():
    """All of 2^6 sign flips leave 2 as extreme as what was seen: p = 2 / 64."""
    baseline = np.array([0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    result = compare_paired(baseline - np.array([0.01, 0.02, 0.03, 0.01, 0.02, 0.03]), baseline)
    assert result.n == 6
    assert result.mean_difference == pytest.approx(-0.02)
    assert result.p_value == 2 / 64
    assert result.verdict == "worse"
    assert -0.03 <= result.ci95[0] < -0.02 < result.ci95[1] < 0


def test_hand_worked_p_value():
    """Differences 3, 1, -1: of 8 sign flips the sum is 3 or more in size for 6 (+-5, +-3, +-3)."""
    assert compare_paired([3, 1, -1], [0, 0, 0]).p_value == 6 / 8


def test_five_pairs_are_never_a_verdict():
    result = compare_paired([0.1, 0.2, 0.3, 0.2, 0.1], [0.9, 0.9, 0.8, 0.9, 0.9])
    assert result.ci95[1] < 0
    assert result.p_value == 2 / 32
    assert result.verdict == "inconclusive"


def test_direction_of_the_verdict():
    high, low = [0.9, 0.91, 0.92, 0.9, 0.91, 0.93], [0.8, 0.82, 0.81, 0.8, 0.8, 0.8]
    assert compare_paired(high, low).verdict == "better"
    assert compare_paired(low, high).verdict == "worse"
    assert compare_paired(high, low, higher_is_better=False).verdict == "worse"


@pytest.mark.parametrize("difference", [0.0, 0.25])
def test_equal_differences_have_no_spread(difference):
    baseline = np.linspace(0.1, 0.6, 6)
    result = compare_paired(baseline + difference, baseline)
    assert result.ci95 == (pytest.approx(difference), pytest.approx(difference))
    assert result.verdict == ("better" if difference else "inconclusive")
    assert result.p_value == (2 / 64 if difference else 1)


def test_agrees_with_scipy():
    rng = np.random.default_rng(1)
    arm, baseline = rng.normal(0.1, 1, 9), rng.normal(0, 1, 9)
    result = compare_paired(arm, baseline)
    d = np.round(arm - baseline, 12)
    interval = scipy.stats.bootstrap((d,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert result.ci95 == (interval.low, interval.high)
    # The same exact test by hand, over all sign patterns.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    sums = np.abs(d @ signs)
    assert result.p_value == pytest.approx(np.mean(sums >= abs(d.sum()) - 1e-12))
    # and close to what the t test, which assumes more, says
    assert result.p_value == pytest.approx(scipy.stats.ttest_rel(arm, baseline).pvalue, abs=0.1)


def test_twice_the_same():
    rng = np.random.default_rng(2)
    arm, baseline = rng.random(20), rng.random(20)
    assert compare_paired(arm, baseline) == compare_paired(arm, baseline)


def test_chance_alone_is_called_inconclusive_at_least_19_times_in_20():
    """Where nothing differs, a verdict may be wrong one time in 20; the interval alone would be so far more often."""
    rng = np.random.default_rng(0)
    results = [compare_paired(*rng.normal(0.9, 0.02, (2, 6))) for _ in range(200)]
    wrong = np.mean([result.verdict != "inconclusive" for result in results])
    interval_alone = np.mean([result.ci95[0] > 0 or result.ci95[1] < 0 for result in results])
    assert wrong <= 0.05 < interval_alone


@pytest.mark.parametrize(("arm", "baseline"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_refuses_what_is_not_paired(arm, baseline):
    with pytest.raises(ValueError, match="two or more pairs"):
        compare_paired(arm, baseline)


def test_holm_by_hand():
    """p of 2/64, 2/64 and 1: times 3, then the larger of that and times 2, then 1."""
    baseline = [0.5] * 6
    found = compare_all({"a": [0.4] * 6, "b": [0.6] * 6, "c": [0.5] * 6}, baseline)
    assert [found[name].p_holm for name in "abc"] == [6 / 64, 6 / 64, 1]
    assert [found[name].p_value for name in "abc"] == [2 / 64, 2 / 64, 1]
    assert {each.verdict for each in found.values()} == {"inconclusive"}
    found = compare_all({"a": [0.4] * 7, "b": [0.6] * 7}, [0.5] * 7)
    assert [found[name].verdict for name in "ab"] == ["worse", "better"]


@pytest.mark.parametrize(("comparisons", "seeds"), [(0, 6), (1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (8, 9), (17, 10)])
def test_the_seeds_that_a_corrected_verdict_takes(comparisons, seeds):
    assert seeds_needed(comparisons) == seeds
