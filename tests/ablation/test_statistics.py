import math

import numpy as np
import pytest
import scipy.stats

from mnv2_jax.ablation.statistics import (
    compare_all,
    compare_paired,
    failed_runs,
    mean_interval,
    near_chance,
    seeds_needed,
)


def test_six_pairs_of_one_sign_are_the_smallest_p_that_six_can_reach():
    """Of all 2^6 sign flips, 2 are as extreme as the observed one: p = 2 / 64."""
    baseline = np.array([0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    result = compare_paired(baseline - np.array([0.01, 0.02, 0.03, 0.01, 0.02, 0.03]), baseline)
    assert result.n == 6
    assert result.mean_difference == pytest.approx(-0.02)
    assert result.p_value == 2 / 64
    assert result.verdict == "worse"
    assert result.ci95 == pytest.approx((-0.03, -0.01))


def test_hand_worked_p_value():
    """Differences 3, 1, -1: for 6 of 8 sign flips the absolute sum is 3 or more (+-5, +-3, +-3)."""
    assert compare_paired([3, 1, -1], [0, 0, 0]).p_value == 6 / 8


def test_five_pairs_are_never_a_verdict_and_have_no_bounds():
    result = compare_paired([0.1, 0.2, 0.3, 0.2, 0.1], [0.9, 0.9, 0.8, 0.9, 0.9])
    assert result.ci95 is None
    assert result.p_value == 2 / 32
    assert result.verdict == "inconclusive"
    assert mean_interval([0.1] * 5) is None


def test_direction_of_the_verdict():
    high, low = [0.9, 0.91, 0.92, 0.9, 0.91, 0.93], [0.8, 0.82, 0.81, 0.8, 0.8, 0.8]
    assert compare_paired(high, low).verdict == "better"
    assert compare_paired(low, high).verdict == "worse"
    assert compare_paired(high, low, higher_is_better=False).verdict == "worse"


@pytest.mark.parametrize("difference", [0.0, 0.25])
def test_equal_differences_have_no_spread(difference):
    baseline = np.linspace(0.1, 0.6, 6)
    result = compare_paired(baseline + difference, baseline)
    assert result.ci95 == pytest.approx((difference, difference))
    assert result.verdict == ("better" if difference else "inconclusive")
    assert result.p_value == (2 / 64 if difference else 1)


@pytest.mark.parametrize("n", [6, 9])
def test_agrees_with_scipy(n):
    """Whole numbers give ties, which floating point represents exactly."""
    rng = np.random.default_rng(n)
    for differences in (*rng.integers(-3, 6, (10, n)).astype(float), *rng.normal(0.5, 1, (5, n))):
        exact = scipy.stats.permutation_test(
            (differences,), lambda values, axis: np.mean(values, axis=axis), permutation_type="samples", n_resamples=np.inf
        )  # fmt: skip
        assert compare_paired(differences, np.zeros(n)).p_value == pytest.approx(exact.pvalue)


def test_ties_of_fractions_are_ties():
    """Fractions of 454 images: subsets that sum to zero are found; rounding to 12 decimals would lose some."""
    correct = np.array([3, 2, 15, 10, 16, 6, -24, 16])
    baseline = np.array([400, 413, 401, 409, 402, 405, 420, 404])
    rounded = np.round((baseline + correct) / 454 - baseline / 454, 12)
    whole, fractions = (compare_paired((baseline + correct) / of, baseline / of) for of in (1, 454))
    assert whole.p_value == fractions.p_value
    subsets = (np.arange(1, 2**8)[:, None] >> np.arange(8)) & 1
    assert np.count_nonzero(subsets @ correct == 0) > np.count_nonzero(subsets @ rounded == 0)


@pytest.mark.parametrize("n", [6, 8, 10])
def test_the_interval_is_what_the_test_does_not_reject(n):
    """The test keeps differences at each end of the interval and rejects those slightly outside."""
    rng = np.random.default_rng(n)
    for values in (rng.normal(0, 1, n), rng.integers(-3, 4, n) + 0.5):
        low, high = mean_interval(values)
        for inside, outside in ((low, low - 1e-6), (high, high + 1e-6)):
            assert compare_paired(values, np.full(n, inside)).p_value >= 0.05
            assert compare_paired(values, np.full(n, outside)).p_value < 0.05


def test_all_subset_means_by_hand():
    """The interval of six values ends at the extreme subset means, of seven at the third ones: 2.5 % of 2^7 is 3.2."""
    assert mean_interval([3, 1, 4, 1, 5, 9]) == (1, 9)
    # 1, (1 + 2) / 2, 2; and 64, (64 + 32) / 2, (64 + 16) / 2
    assert mean_interval([1, 2, 4, 8, 16, 32, 64]) == (2, 40)


def test_beyond_sixteen_pairs_some_flips_stand_for_all():
    rng = np.random.default_rng(0)
    values = rng.normal(0.45, 1, 18)
    low, high = mean_interval(values)
    assert compare_paired(values, np.full(18, low - 1e-6)).p_value < 0.05 <= compare_paired(values, np.full(18, low)).p_value  # fmt: skip
    t_low, t_high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((t_low, t_high), abs=0.1)


@pytest.mark.parametrize("chance", [None, -10.0])
def test_an_interval_and_a_verdict_are_never_at_odds(chance):
    """Over random studies with one or several comparisons, about means and medians."""
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(150):
        n, arms = int(rng.integers(5, 11)), int(rng.integers(1, 6))
        values = rng.normal(rng.choice([0, 0, 0.7, 1.5, -2], (arms, 1)), 1, (arms, n))
        values[rng.random((arms, n)) < 0.05] = -9.5
        found = compare_all(dict(zip("abcde", values, strict=False)), rng.normal(0, 0.3, n), chance=chance)
        for each in found.values():
            seen.add((each.estimand, each.verdict))
            assert (each.p_holm < 0.05) == (each.verdict != "inconclusive")
            if each.ci95 is None:
                assert each.verdict == "inconclusive"
                continue
            low, high = each.ci95
            assert low <= each.difference <= high
            if each.verdict == "inconclusive":
                assert low <= 0 <= high
            else:
                assert low >= 0 if each.verdict == "better" else high <= 0
    kinds = ("mean",) if chance is None else ("mean", "median")
    assert seen == {(kind, verdict) for kind in kinds for verdict in ("better", "worse", "inconclusive")}


def test_an_interval_ends_at_zero_where_only_holm_decides():
    """p are 2/128 and 6/128: for the second, Bonferroni's level of 2.5 % keeps zero and Holm's 5 % rejects it."""
    found = compare_all({"a": [1, 2, 3, 4, 5, 6, 7], "b": [-1.5, 1, 4, 5, 6, 7, 8]}, [0] * 7)
    assert [found[name].p_value for name in "ab"] == [2 / 128, 6 / 128]
    assert [found[name].ci95 for name in "ab"] == [(1, 7), (0, 8)]
    assert found["b"].verdict == "better"
    alone = compare_all({"b": [-1.5, 1, 4, 5, 6, 7, 8], "c": [0, 1, -1, 0, 0, 1, -1]}, [0] * 7)["b"]
    assert (alone.ci95, alone.verdict) == ((-1.5, 8), "inconclusive")


def test_what_is_no_number_decides_nothing():
    found = compare_paired([0.8, 0.9, 0.85, 0.8, 0.9, 0.85, math.nan], [0.5] * 7, chance=0.1)
    assert (found.p_value, found.ci95, found.verdict) == (1, None, "inconclusive")


# --- Failed runs -----------------------------------------------------------------------------------------


def test_where_runs_failed_the_verdict_is_about_the_median():
    """One of eight runs never learnt. By the sign test, eight differences of one sign have p = 2 / 256."""
    baseline = np.array([0.70, 0.71, 0.72, 0.70, 0.69, 0.70, 0.71, 0.72])
    arm = baseline + np.array([0.05, 0.06, 0.04, 0.05, 0.07, 0.05, 0.03, 0])
    arm[-1] = 0.1
    mean, median = (compare_paired(arm, baseline, chance=chance) for chance in (None, 0.1))
    assert (mean.estimand, mean.failed) == ("mean", {"arm": 0, "baseline": 0})
    assert mean.difference < 0
    assert (median.estimand, median.failed) == ("median", {"arm": 1, "baseline": 0})
    assert median.difference == pytest.approx(0.05)
    assert median.p_value == scipy.stats.binomtest(1, 8).pvalue == pytest.approx(18 / 256)
    assert median.ci95 == pytest.approx((-0.62, 0.07))
    assert compare_paired(baseline, arm, chance=0.1).failed == {"arm": 0, "baseline": 1}


def test_the_interval_of_a_median_is_scipys():
    rng = np.random.default_rng(0)
    arm = np.append(rng.normal(0.8, 0.01, 11), 0.1)
    found = compare_paired(arm, np.full(12, 0.75), chance=0.1)
    interval = scipy.stats.quantile_test(arm - 0.75, p=0.5).confidence_interval(0.95)
    assert found.ci95 == (interval.low, interval.high)


def test_differences_of_zero_count_for_neither_side():
    arm = np.array([0.8] * 6 + [0.75] * 3 + [0.1])
    assert compare_paired(arm, np.full(10, 0.75), chance=0.1).p_value == scipy.stats.binomtest(4, 10).pvalue
    assert compare_paired([0.75] * 9 + [0.1], [0.75] * 9 + [0.1], chance=0.1).p_value == 1


@pytest.mark.parametrize(
    ("arms", "higher", "chance", "failed"),
    [
        (([0.8, 0.8, 0.44], [0.7, 0.41, 0.7]), True, 0.1, [1, 0]),
        (([0.8, 0.8, 0.46], [0.7, 0.39, 0.7]), True, 0.1, [0, 1]),
        # Lower is better; chance is 20 pixels off.
        (([1.0, 2.0, 18.0], [3.0, 3.0, 4.0]), False, 20.0, [1, 0]),
        # No run of the second arm learns.
        (([0.8, 0.8, 0.8], [0.1, 0.1, 0.3]), True, 0.1, [0, 0]),
        # No run learns.
        (([0.1, 0.1, 0.1], [0.1, 0.1, 0.0]), True, 0.1, [0, 0]),
        (([0.8, 0.8, 0.1], [0.7, 0.1, 0.7]), True, None, [0, 0]),
    ],
)
def test_a_failed_run_is_nearer_to_chance_than_to_its_arms_median(arms, higher, chance, failed):
    assert [int(of_arm.sum()) for of_arm in failed_runs(arms, higher, chance)] == failed


def test_the_runs_that_failed_are_named():
    assert failed_runs(([0.8, 0.44, 0.8], [0.7, 0.7, 0.7]), True, 0.1)[0].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("medians", "higher", "chance", "near"),
    [
        # A tenth of the way from chance to perfect is 0.19.
        ((0.9, 0.18, 0.2), True, 0.1, [False, True, False]),
        # No run has learnt, so there is no arm to measure the others by.
        ((0.1, 0.12, 0.05), True, 0.1, [True, True, True]),
        # Two classes.
        ((0.54, 0.56), True, 0.5, [True, False]),
        # An error rate, whose perfect value is 0.
        ((0.85, 0.3), False, 0.9, [True, False]),
        ((0.1, 0.1), True, None, [False, False]),
    ],
)
def test_an_arm_near_chance_has_gone_less_than_a_tenth_of_the_way_to_perfect(medians, higher, chance, near):
    assert near_chance([[median] * 3 for median in medians], higher, chance) == near


def test_twice_the_same():
    rng = np.random.default_rng(2)
    arm, baseline = rng.random(20), rng.random(20)
    assert compare_paired(arm, baseline) == compare_paired(arm, baseline)


def test_chance_alone_is_called_inconclusive_at_least_19_times_in_20():
    """And the intervals cover the truth as often as promised; `experiments/null_studies.py` tests this at length."""
    rng = np.random.default_rng(0)
    results = [compare_paired(*rng.normal(0.9, 0.02, (2, 6))) for _ in range(200)]
    assert np.mean([result.verdict != "inconclusive" for result in results]) <= 0.05
    assert np.mean([result.ci95[0] <= 0 <= result.ci95[1] for result in results]) >= 0.95


@pytest.mark.parametrize(("arm", "baseline"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_refuses_what_is_not_paired(arm, baseline):
    with pytest.raises(ValueError, match="two or more pairs"):
        compare_paired(arm, baseline)


def test_holm_by_hand():
    """p are 2/64, 2/64 and 1: the first times 3, the second the larger of that and times 2, the third 1."""
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


def test_a_detectable_difference_is_decided_in_four_of_five_studies():
    """Ten pairs of normal differences around the smallest difference that such a study can see."""
    generator, n, studies = np.random.default_rng(0), 10, 400
    noise = generator.normal(size=(studies, n))
    spreads = [compare_paired(row, np.zeros(n)).detectable / row.std(ddof=1) for row in noise]
    assert spreads == pytest.approx([spreads[0]] * studies)
    decided = [compare_paired(row + spreads[0], np.zeros(n)).verdict == "better" for row in noise]
    assert np.mean(decided) == pytest.approx(0.8, abs=0.05)
    # It is the worst of several comparisons that matters, and five pairs see nothing.
    both = compare_all({"a": noise[0], "b": noise[1]}, np.zeros(n))
    assert both["a"].detectable > compare_paired(noise[0], np.zeros(n)).detectable
    assert compare_paired(noise[0, :5], np.zeros(5)).detectable is None
