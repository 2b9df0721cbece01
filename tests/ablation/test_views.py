"""Views of a study: by another metric, or of some arms only."""

import pytest

from ablation.studies import with_accuracies
from mnv2_jax.ablation.summary import comparison_count, failed_of, metric_of
from mnv2_jax.ablation.verdicts import untrained
from mnv2_jax.ablation.views import judged_by, with_arms
from mnv2_jax.errors import UserError


def test_another_recorded_metric_decides(finished):
    summary = judged_by(finished.summary, finished.records, "loss")
    (comparison,) = summary["comparisons"]
    linear, relu6 = (finished.summary["arms"][name]["test_loss"] for name in ("linear", "relu6"))
    assert comparison["mean_difference"] == pytest.approx(sum(relu6) / 2 - sum(linear) / 2)
    assert not metric_of(summary).higher_is_better
    # The paper's number is for another metric.
    assert (comparison["paper"], summary["chance"]) == (None, None)
    assert judged_by(finished.summary, finished.records, "accuracy") == finished.summary


def test_a_metric_that_was_not_recorded_is_refused(finished):
    with pytest.raises(
        UserError, match="--metric speed is not recorded by test; choose from accuracy, loss, top5_accuracy"
    ):
        judged_by(finished.summary, finished.records, "speed")


def test_fewer_arms_keep_what_all_comparisons_were_corrected_for(finished):
    runs = [0.8 + seed / 100 for seed in range(7)]
    names = ("linear", "b", "c", "d")
    arms = dict.fromkeys(names, finished.summary["arms"]["relu6"])
    all_arms = with_accuracies(
        {**finished.summary, "arms": arms},
        **{name: [run - index / 9 for run in runs] for index, name in enumerate(names)},
    )
    few = with_arms(all_arms, ["c"])
    assert list(few["arms"]) == ["linear", "c"]
    assert few["comparisons"] == [all_arms["comparisons"][1]]
    assert comparison_count(few) == 3
    assert untrained(few) == untrained(all_arms)
    with pytest.raises(UserError, match="--arms: test has none of these arms; choose from linear, b, c, d"):
        with_arms(all_arms, ["e"])


def test_fewer_arms_have_the_failed_runs_of_the_whole_study(finished):
    """Otherwise, without the best arm, the others would be measured against each other."""
    arms = dict.fromkeys(("linear", "c", "best"), finished.summary["arms"]["relu6"])
    values = {"linear": [0.4, 0.4, 0.4], "c": [0.4, 0.4, 0.15], "best": [0.9, 0.9, 0.9]}
    few = with_arms(with_accuracies({**finished.summary, "arms": arms}, **values), ["c"])
    assert {name: runs.sum() for name, runs in failed_of(few).items()} == {"linear": 0, "c": 0}
