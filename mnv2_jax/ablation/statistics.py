"""Paired comparison of arms with a baseline: is an arm better or worse?

Arm and baseline are paired by seed, and the estimand is the mean of their differences. The p-value is exact: the
fraction of all 2^n sign flips of the differences whose mean is at least as far from zero. The interval holds every
difference that this test does not reject, so the two never contradict each other. Its ends are means of subsets of
the differences (Hartigan, 1969). Both are exact if the differences are distributed symmetrically, as they are when
arm and baseline differ by a constant. `experiments/null_studies.py` measures the error for other distributions. With
n seeds the smallest p is 2 / 2^n: fewer than 6 seeds never reach p < 0.05, and their interval is unbounded.

**Failed runs.** If a few runs learn nothing and the others learn well, the mean of six to ten runs describes neither.
Failed runs are then counted, and the estimand is the median over all pairs. It is tested by the sign test, with the
corresponding interval between order statistics. Both are valid for any distribution of the differences. Rare failures
go unnoticed: if one run in ten fails, half of all studies with six seeds see no failure.

**Several comparisons.** Verdicts use Holm's correction (1979): the probability that any comparison without a true
difference is called "better" or "worse" is at most 5 %. This takes more seeds; see `seeds_needed`. Intervals are
simultaneous: each is at level 5 % / comparisons (Bonferroni), so all of them hold their true differences in at least
95 % of studies. Holm rejects more often than these intervals do. Where it does, the interval is cut off at zero to
agree with the verdict. This costs nothing if all comparisons are null or none is. Otherwise the probability that any
interval is wrong is at most 5 % * (2 - nulls / comparisons), apart from verdicts of the wrong sign, which are rarer
still.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.stats

LEVEL = 0.05
"""Probability of any false verdict among all comparisons of a study."""
POWER = 0.8
"""Probability with which a detectable difference is found."""
EXACT_UP_TO = 16
"""Up to this number of seeds, all sign flips (65,536) are tried. Beyond it, as many random ones are, the same for
p-values and intervals."""
SAME = 1e-10
"""Sums of differences nearer to zero than this count as zero, so that 0.9 - 0.8 and 0.8 - 0.7 are a tie."""

Verdict = Literal["better", "worse", "inconclusive"]
Estimand = Literal["mean", "median"]
Interval = tuple[float, float] | None
"""(low, high); None if there are too few values for a bound, or one of them is NaN."""


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Arm minus baseline, in the unit of the values.

    Attributes:
        n: number of pairs.
        estimand: what interval, p-values and verdict are about: the mean difference, or the median difference if any
            run of the arm or the baseline failed.
        mean_difference, median_difference: of the pairs.
        ci95: interval, simultaneous over all comparisons; None if there are too few pairs.
        p_value: two-sided, for the null hypothesis of no difference.
        p_holm: `p_value` corrected for the number of comparisons of the study.
        verdict: "better" or "worse" if the corrected p < 0.05.
        failed: number of failed runs of the "arm" and of the "baseline".
        detectable: the mean difference that 80 % of studies with so many seeds and such a spread would decide; None for
            the median, and if there are too few pairs.
    """

    n: int
    estimand: Estimand
    mean_difference: float
    median_difference: float
    ci95: Interval
    p_value: float
    p_holm: float
    verdict: Verdict
    failed: dict[str, int]
    detectable: float | None = None

    @property
    def difference(self) -> float:
        """The mean or median difference, whichever the verdict is about."""
        return self.mean_difference if self.estimand == "mean" else self.median_difference


def compare_paired(
    arm: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    higher_is_better: bool = True,
    chance: float | None = None,
) -> PairedComparison:
    """Compare one arm with the baseline; see `compare_all`."""
    return compare_all({"arm": arm}, baseline, higher_is_better, chance)["arm"]


def compare_all(
    arms: Mapping[str, Sequence[float] | np.ndarray],
    baseline: Sequence[float] | np.ndarray,
    higher_is_better: bool = True,
    chance: float | None = None,
) -> dict[str, PairedComparison]:
    """Compare several arms with one baseline. Deterministic.

    Args:
        arms, baseline: values, one per seed, in the same order.
        higher_is_better: whether higher values are better; otherwise lower ones are.
        chance: the value of a network that has learnt nothing; if None, no run counts as failed.

    Raises:
        ValueError: if the lengths differ or there are fewer than two pairs.
    """
    for values in arms.values():
        if len(values) != len(baseline) or len(values) < 2:
            raise ValueError(
                f"a paired comparison needs two or more pairs, got {len(values)} and {len(baseline)} values"
            )
    runs = failed_runs([baseline, *arms.values()], higher_is_better, chance)
    of_baseline, *of_arms = (int(np.count_nonzero(failed)) for failed in runs)
    found = {
        name: _compare(values, baseline, {"arm": failed, "baseline": of_baseline}, LEVEL / len(arms))
        for (name, values), failed in zip(arms.items(), of_arms, strict=True)
    }
    p_holm = 0.0
    for rank, name in enumerate(sorted(found, key=lambda name: found[name].p_value)):
        p_holm = max(p_holm, min(1.0, (len(found) - rank) * found[name].p_value))
        found[name] = _decide(found[name], p_holm, higher_is_better)
    return found


def _compare(
    arm: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, failed: dict[str, int], level: float
) -> PairedComparison:
    """Compare one arm, with an interval that misses the truth with probability `level`, and without a verdict."""
    differences = np.asarray(arm, np.float64) - np.asarray(baseline, np.float64)
    n = len(differences)
    estimand: Estimand = "median" if any(failed.values()) else "mean"
    typical = _typical_values(differences, estimand)
    # NaN counts against both sides.
    p_value = _p_value(int(min(np.count_nonzero(~(typical > 0)), np.count_nonzero(~(typical < 0)))), n, estimand)
    mean, median = float(differences.mean()), float(np.median(differences))
    interval = _ends(typical, n, estimand, level)
    seen = _detectable(differences, level) if estimand == "mean" and interval is not None else None
    return PairedComparison(n, estimand, mean, median, interval, p_value, p_value, "inconclusive", failed, seen)


def _detectable(differences: np.ndarray, level: float) -> float:
    """Return the true mean difference that a test at this level detects with probability `POWER`, as the t-test does."""
    n = len(differences)
    quantiles = scipy.stats.t.ppf([1 - level / 2, POWER], n - 1)
    return float(quantiles.sum() * differences.std(ddof=1) / math.sqrt(n))


def _decide(comparison: PairedComparison, p_holm: float, higher_is_better: bool) -> PairedComparison:
    """Set the verdict from the corrected p, and cut off the interval at zero if it would contradict the verdict."""
    if p_holm >= LEVEL:
        return dataclasses.replace(comparison, p_holm=p_holm)
    positive, interval = comparison.difference > 0, comparison.ci95
    if interval is not None:
        low, high = interval
        interval = (max(low, 0.0), high) if positive else (low, min(high, 0.0))
    verdict: Verdict = "better" if positive == higher_is_better else "worse"
    return dataclasses.replace(comparison, p_holm=p_holm, verdict=verdict, ci95=interval)


def failed_runs(
    arms: Sequence[Sequence[float] | np.ndarray], higher_is_better: bool, chance: float | None
) -> list[np.ndarray]:
    """Return which runs of each arm failed, one bool per run: those nearer to chance than to the median of their arm.

    If the arm's median is itself nearer to chance than to the best arm's median, none of its runs count as failed:
    the arm as a whole learns less.
    """
    medians = [float(np.median(values)) for values in arms]
    best = max(medians) if higher_is_better else min(medians)
    # If even the best arm is no better than chance, there is nothing to fail at.
    if chance is None or best == chance or (best > chance) != higher_is_better:
        return [np.zeros(len(values), bool) for values in arms]
    return [
        (np.asarray(values) - chance) / (median - chance) < 0.5
        if (median - chance) / (best - chance) >= 0.5
        else np.zeros(len(values), bool)
        for values, median in zip(arms, medians, strict=True)
    ]


NEAR_CHANCE = 0.1
"""An arm is near chance if its median covers less than this fraction of the way from chance to perfect."""


def near_chance(
    arms: Sequence[Sequence[float] | np.ndarray], higher_is_better: bool, chance: float | None
) -> list[bool]:
    """Return which arms are near chance: (median - chance) / (perfect - chance) < 0.1, as in Cohen's kappa.

    Unlike failed runs, arms are compared with a perfect value (1 if higher is better; 0 for errors and losses), since
    all arms may have learnt nothing. If `chance` is None, no arm is near chance.
    """
    if chance is None:
        return [False] * len(arms)
    perfect = float(higher_is_better)
    return [bool((np.median(values) - chance) / (perfect - chance) < NEAR_CHANCE) for values in arms]


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the 95 % interval of a mean: all values that the sign-flip test does not reject. None for fewer than 6."""
    return _ends(_typical_values(np.asarray(values, np.float64), "mean"), len(values), "mean", LEVEL)


def seeds_needed(comparisons: int) -> int:
    """Return the smallest number of seeds with which all `comparisons` can reach a corrected p < 0.05."""
    n = 1
    while max(comparisons, 1) * 2 / 2**n >= LEVEL:
        n += 1
    return n


# --- A test and its interval -----------------------------------------------------------------------------
#
# Both tests count typical values (Hartigan, 1969): each lies below or above the true difference with equal probability.
# For the mean they are the means of all subsets of the differences; for the median, the differences themselves. The
# test of a difference x counts the typical values on the side of x that has fewer, and the interval holds every x with
# enough of them on both sides.


def _typical_values(differences: np.ndarray, estimand: Estimand) -> np.ndarray:
    """Return the typical values in rising order. Those that are zero up to rounding are set to zero."""
    if estimand == "median":
        sums, sizes = differences.copy(), np.ones(())
    else:
        subsets, sizes = _subsets(len(differences))
        sums = subsets @ differences
    sums[np.abs(sums) < SAME * max(1.0, float(np.abs(differences).max()))] = 0
    return np.sort(sums / sizes)


@functools.lru_cache(maxsize=8)
def _subsets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return non-empty subsets of n pairs, as rows of 0 and 1, and their sizes: all of them, or a random sample.

    Flipping the signs of a subset does not lower the total if and only if the subset's own sum is not positive.
    """
    if n <= EXACT_UP_TO:
        subsets = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        subsets = np.random.default_rng(0).integers(0, 2, (2**EXACT_UP_TO - 1, n))
        subsets[~subsets.any(axis=1)] = 1
    return subsets.astype(np.float64), subsets.sum(axis=1).astype(np.float64)


@functools.lru_cache(maxsize=1024)
def _p_value(count: int, n: int, estimand: Estimand) -> float:
    """Return the two-sided p of n pairs with `count` typical values on the side of zero that has fewer."""
    if estimand == "median":
        return float(scipy.stats.binomtest(min(count, n // 2), n).pvalue)
    # The 1s count the identity, which flips no sign.
    return min(1.0, 2 * (1 + count) / (1 + len(_subsets(n)[0])))


@functools.lru_cache(maxsize=1024)
def _outside(n: int, estimand: Estimand, level: float) -> int:
    """Return k: the test rejects a difference with fewer than k typical values on one side."""
    if estimand == "mean":
        return math.ceil(level / 2 * (1 + len(_subsets(n)[0]))) - 1
    return next(count for count in range(n + 1) if _p_value(count, n, estimand) >= level)


def _ends(typical: np.ndarray, n: int, estimand: Estimand, level: float) -> Interval:
    k = _outside(n, estimand, level)
    return (float(typical[k - 1]), float(typical[-k])) if k and not np.isnan(typical).any() else None
