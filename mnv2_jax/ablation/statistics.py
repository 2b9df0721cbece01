"""Is an arm better or worse than the baseline? Paired by seed.

What is estimated is the mean over seeds of the difference between the arm and the baseline trained with the same seed. Its
p-value is exact: the share of all 2^n ways to flip the signs of the differences that move their mean as far from zero. Its
interval holds every difference that this test does not reject. Its ends are means of subsets of the differences (Hartigan,
1969), so that the two never contradict each other. Both are exact where the differences scatter symmetrically, which they do where arm and
baseline differ by a constant; `experiments/null_studies.py` shows by how much they are missed elsewhere. With n seeds the
smallest p is 2 / 2^n: fewer than 6 seeds never reach p < 0.05, and their interval has no bounds.

**Failed runs.** Where a few runs learn nothing and the others learn well, the mean of six to ten runs says little of either.
Then failed runs are counted, and what is estimated is the typical difference, the median over all pairs, by the
sign test and the interval between order statistics that belongs to it, which is exact whatever the differences' distribution.
Failures rarer than the seeds can show are not seen: where one run in ten fails, six seeds show none in half of all studies.

**Several comparisons.** The verdict is Holm's (1979): whatever is true, the chance that any comparison without a difference is called
"better" or "worse" is at most 5 %. It takes more seeds; see `seeds_needed`. Intervals hold together: each is at 5 % / comparisons
(Bonferroni), so that all true differences lie in theirs in 95 % of studies or more. Holm rejects more than these intervals
do; where it does, the interval is cut off at zero, so that it is never at odds with the verdict. That costs nothing where all
comparisons are null, or none is; in between, the chance that any interval is wrong is at most 5 % * (2 - nulls / comparisons), as
far as no difference is called one of the opposite sign, which is rarer still.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.stats

LEVEL = 0.05
"""Of false verdicts, over all comparisons of a study."""
EXACT_UP_TO = 16
"""Seeds up to which all sign flips are tried (65,536); beyond, as many at random, the same for p-values and intervals."""
SAME = 1e-10
"""Sums of differences nearer to zero than this are zero: 0.9 - 0.8 and 0.8 - 0.7 are the tie that they are."""

Verdict = Literal["better", "worse", "inconclusive"]
Estimand = Literal["mean", "median"]
Interval = tuple[float, float] | None
"""Its ends; None where there are too few values for any bound, or one of them is no number."""


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Arm minus baseline, in the unit of the values.

    Attributes:
        n: pairs.
        estimand: what interval, p-values and verdict are about: the mean difference, or, where runs of the arm or of the baseline
            failed, the median.
        mean_difference, median_difference: of the pairs.
        ci95: interval, which holds together with those of the other comparisons; None where there are too few pairs.
        p_value: two-sided, of no difference.
        p_holm: corrected for the number of comparisons of the study; the same as `p_value` where there is one.
        verdict: "better" or "worse" if the corrected p < 0.05.
        failed: how many runs of the "arm" and of the "baseline" failed.
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

    @property
    def difference(self) -> float:
        """The one that the verdict is about."""
        return self.mean_difference if self.estimand == "mean" else self.median_difference


def compare_paired(
    arm: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    higher_is_better: bool = True,
    chance: float | None = None,
) -> PairedComparison:
    """Compare values of one arm with those of the baseline, pair by pair; see `compare_all`."""
    return compare_all({"arm": arm}, baseline, higher_is_better, chance)["arm"]


def compare_all(
    arms: Mapping[str, Sequence[float] | np.ndarray],
    baseline: Sequence[float] | np.ndarray,
    higher_is_better: bool = True,
    chance: float | None = None,
) -> dict[str, PairedComparison]:
    """Compare several arms with one baseline. Deterministic.

    Args:
        arms, baseline: values, one a seed, in the same order.
        higher_is_better: else lower is.
        chance: the value of a network that has learnt nothing; None where it is not known, and then no run counts as failed.

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
    """One comparison, whose interval misses the truth with the chance `level`; nothing is decided yet."""
    differences = np.asarray(arm, np.float64) - np.asarray(baseline, np.float64)
    n = len(differences)
    estimand: Estimand = "median" if any(failed.values()) else "mean"
    typical = _typical_values(differences, estimand)
    # What is no number may lie on either side.
    p_value = _p_value(int(min(np.count_nonzero(~(typical > 0)), np.count_nonzero(~(typical < 0)))), n, estimand)
    mean, median = float(differences.mean()), float(np.median(differences))
    interval = _ends(typical, n, estimand, level)
    return PairedComparison(n, estimand, mean, median, interval, p_value, p_value, "inconclusive", failed)


def _decide(comparison: PairedComparison, p_holm: float, higher_is_better: bool) -> PairedComparison:
    """The verdict by the corrected p, and the interval cut off at zero where it would contradict it."""
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
    """Which runs of each arm failed, a bool a run: they ended nearer to chance than to the median of their arm.

    An arm whose median is itself nearer to chance than to the best arm's has none: not a few of its runs
    did not learn, but the arm as a whole learns less.
    """
    medians = [float(np.median(values)) for values in arms]
    best = max(medians) if higher_is_better else min(medians)
    # Nothing to fail at, where not even the best arm is better than chance.
    if chance is None or best == chance or (best > chance) != higher_is_better:
        return [np.zeros(len(values), bool) for values in arms]
    return [
        (np.asarray(values) - chance) / (median - chance) < 0.5
        if (median - chance) / (best - chance) >= 0.5
        else np.zeros(len(values), bool)
        for values, median in zip(arms, medians, strict=True)
    ]


NEAR_CHANCE = 0.1
"""Of the way from chance to perfect: an arm whose median has gone less of it has hardly begun to learn."""


def near_chance(
    arms: Sequence[Sequence[float] | np.ndarray], higher_is_better: bool, chance: float | None
) -> list[bool]:
    """Tell which arms are near chance: (median - chance) / (perfect - chance) < 0.1, as in Cohen's kappa.

    Like a failed run an arm is judged by how far it is from chance, but measured from what is perfect (1 of a share, 0 of
    an error or a loss): arms that have all learnt nothing have no good one among them to be measured by.
    Without a known chance level no arm is called so.
    """
    if chance is None:
        return [False] * len(arms)
    perfect = float(higher_is_better)
    return [bool((np.median(values) - chance) / (perfect - chance) < NEAR_CHANCE) for values in arms]


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """95 % interval of a mean: all that the sign-flip test does not reject. None for fewer than 6 values."""
    return _ends(_typical_values(np.asarray(values, np.float64), "mean"), len(values), "mean", LEVEL)


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds with which `comparisons` comparisons can all reach a corrected p < 0.05."""
    n = 1
    while max(comparisons, 1) * 2 / 2**n >= LEVEL:
        n += 1
    return n


# --- A test and its interval -----------------------------------------------------------------------------
#
# Both tests count typical values (Hartigan): the true difference has as many of them below it as above it, by chance alone. For the
# mean they are the means of all subsets of the differences, for the median the differences. The test of a difference of x
# asks how few lie on one side of x, and the interval holds the x with enough of them on both.


def _typical_values(differences: np.ndarray, estimand: Estimand) -> np.ndarray:
    """In rising order; those that are zero but for rounding are zero."""
    if estimand == "median":
        sums, sizes = differences.copy(), np.ones(())
    else:
        subsets, sizes = _subsets(len(differences))
        sums = subsets @ differences
    sums[np.abs(sums) < SAME * max(1.0, float(np.abs(differences).max()))] = 0
    return np.sort(sums / sizes)


@functools.lru_cache(maxsize=8)
def _subsets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Subsets of n pairs, none empty, as rows of 0 and 1, and their sizes: all, or some at random.

    A sum whose signs are flipped in a subset is as large as the sum where the subset's own sum is not positive.
    """
    if n <= EXACT_UP_TO:
        subsets = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        subsets = np.random.default_rng(0).integers(0, 2, (2**EXACT_UP_TO - 1, n))
        subsets[~subsets.any(axis=1)] = 1
    return subsets.astype(np.float64), subsets.sum(axis=1).astype(np.float64)


@functools.lru_cache(maxsize=1024)
def _p_value(count: int, n: int, estimand: Estimand) -> float:
    """Two-sided p of n pairs with so many typical values on the side of zero that has fewer."""
    if estimand == "median":
        return float(scipy.stats.binomtest(min(count, n // 2), n).pvalue)
    # No flip at all is one of the flips.
    return min(1.0, 2 * (1 + count) / (1 + len(_subsets(n)[0])))


@functools.lru_cache(maxsize=1024)
def _outside(n: int, estimand: Estimand, level: float) -> int:
    """How many typical values on one side of the truth are so few that the test rejects it: fewer than this."""
    if estimand == "mean":
        return math.ceil(level / 2 * (1 + len(_subsets(n)[0]))) - 1
    return next(count for count in range(n + 1) if _p_value(count, n, estimand) >= level)


def _ends(typical: np.ndarray, n: int, estimand: Estimand, level: float) -> Interval:
    k = _outside(n, estimand, level)
    return (float(typical[k - 1]), float(typical[-k])) if k and not np.isnan(typical).any() else None
