"""Descriptions of comparisons in words."""

import pytest

from ablation.studies import comparison, with_accuracies
from mnv2_jax.ablation.verdicts import peak_memory, sentence, sentences, untrained, verdict
from mnv2_jax.tasks.classification import Classification


@pytest.mark.parametrize(
    ("difference", "verdict", "expected"),
    [(-0.05, "worse", "relu6 is worse than linear"), (-0.05, "worse", "direction is the same"),
     (0.05, "better", "direction is the opposite"), (0.001, "inconclusive", "Inconclusive"),
     (-0.05, "worse", "over 6 pairs of runs, the mean difference of relu6 from linear is -5.00 percentage points")],
)  # fmt: skip
def test_plain_words(difference, verdict, expected):
    assert expected in sentence(comparison(difference, verdict), Classification.metric)


def test_failed_runs_stand_before_the_typical_difference():
    failed = comparison(-0.05, "worse", estimand="median", failed={"arm": 2, "baseline": 1})
    text = sentence(failed, Classification.metric)
    assert text.startswith(
        "2 of 6 runs of relu6 and 1 of 6 runs of linear failed: nearer to chance than to the median of the arm. Typically, relu6 is "
        "worse than linear: over 6 pairs of runs, the median difference of relu6 from linear is -2.00 percentage points"
    )


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [(None, "no bound with 6 seeds"), ([-0.1, 0.0], "-10.00 to 0"), ([0.01, 0.02], "+1.00 to +2.00")],
)
def test_an_interval_in_words(bounds, expected):
    text = sentence(comparison(-0.05, "worse", ci95=bounds), Classification.metric)
    assert f"95 % interval: {expected}, p = 0.03" in text


def test_too_few_seeds_are_said_and_so_is_holms_correction():
    text = sentence(comparison(0.001, "inconclusive", n=3), Classification.metric, comparisons=2)
    assert "Fewer than 7 seeds cannot reach p < 0.05 here" in text
    assert "after Holm's correction" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (comparison(-0.05, "worse"), "worse, as in the paper"),
        (comparison(0.05, "better"), "better, unlike the paper"),
        (comparison(0.05, "better", paper=None), "better"),
        (comparison(-0.05, "inconclusive"), "inconclusive"),
        (comparison(0, "worse", paper=None, estimand="median", failed={"arm": 1, "baseline": 0}), "worse (median; 1 of 6 failed)"),
        (comparison(0, "worse", paper=None, estimand="median", failed={"arm": 0, "baseline": 2}),
         "worse (median; 0 of 6 failed, 2 of the baseline's)"),
    ],
)  # fmt: skip
def test_a_verdict_in_few_words(given, expected):
    assert verdict(given) == expected


def test_a_study_of_arms_near_chance_is_said_to_be_untrained_first_of_all(finished):
    summary = with_accuracies(finished.summary, linear=[0.1, 0.12], relu6=[0.11, 0.1])
    assert untrained(summary) == "not trained: arms are near chance"
    assert sentences(summary)[0].startswith("Not trained: arms are near chance: their medians")
    # Half of the arms is not most of them: an arm that does not learn may be the finding.
    assert untrained(with_accuracies(finished.summary, linear=[0.9, 0.8], relu6=[0.11, 0.1])) == ""


def test_the_highest_peak_memory_is_named(finished):
    arms = dict(zip(finished.summary["arms"], ([["a", 4000], ["b", 9000]], [["a", 3000]]), strict=True))
    arms = {name: {**finished.summary["arms"][name], "activation_bytes": layers} for name, layers in arms.items()}
    said = "linear has the highest peak memory: 9 kB, 3.0 times the 3 kB of relu6"
    assert peak_memory({**finished.summary, "arms": arms}) == said
    assert sentences({**finished.summary, "arms": arms})[-1].startswith(said)
    assert peak_memory(finished.summary) == ""
