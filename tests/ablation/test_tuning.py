"""Tuning of each arm's learning rate."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ablation.studies import STUDY, run
from mnv2_jax.ablation import study as study_module
from mnv2_jax.ablation import tuning
from mnv2_jax.ablation.arms import learner_of
from mnv2_jax.tasks.metric import Metric
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.evaluation import fetch
from mnv2_jax.training.programs import Member

ACCURACY = Metric("accuracy", "accuracy")
TUNED = dataclasses.replace(STUDY, tune=True, training=dataclasses.replace(STUDY.training, learning_rate=0.01))


def trials(*found):
    """Return trials of one arm from (rate, metric, loss)."""
    return [
        {"arm": "a", "seed": 1000 + index, "rate": rate, "accuracy": value, "loss": loss}
        for index, (rate, value, loss) in enumerate(found)
    ]


@pytest.fixture(autouse=True, scope="module")
def small():
    """Tune with as many steps as a run has, since four are few enough, and only at the first rates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "BUDGET", 1.0)
        patch.setattr(tuning, "LIMITS", (0.5, 2.0))
        yield


@pytest.fixture(scope="module")
def tuned(tiny, small, tmp_path_factory):
    """Train a study with tuned learning rates; return (folder, `Trained`)."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    return folder, run(tiny, folder, TUNED)


def tried(folder):
    return [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]


def test_a_learning_rate_is_chosen_for_each_arm_without_the_test_split(tuned):
    folder, trained = tuned
    found = tried(folder)
    assert len(found) == 2 * len(tuning.RATES) * len(tuning.SEEDS)
    assert "linear at learning rate 0.005, seed 1000: validation accuracy" in trained.log
    for name, arm in trained.summary["arms"].items():
        means = {}
        for trial in found:
            if trial["arm"] == name:
                means.setdefault(trial["rate"], []).append(trial["accuracy"])
        best = max(sum(values) for values in means.values())
        assert sum(means[round(arm["learning_rate"] / 0.01, 6)]) == best
    # Trials leave no records, networks or test results.
    assert {record.seed for record in trained.records} == {0, 1}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"linear-0", "linear-1", "relu6-0", "relu6-1"}
    assert trained.log.count(": test accuracy") == 4


def test_nothing_is_tried_twice(tuned, tiny):
    folder, trained = tuned
    before = tried(folder)
    again = run(tiny, folder, TUNED)
    assert (again.runs, again.summary) == (0, trained.summary)
    assert tried(folder) == before


def test_trials_that_were_interrupted_are_continued(tuned, tiny, tmp_path):
    """Two trials and a run are missing."""
    folder, trained = tuned
    out = shutil.copytree(folder, tmp_path / "out")
    trials, records = (out / "tuning.jsonl").read_text(), (out / "metrics.jsonl").read_text()
    (out / "tuning.jsonl").write_text("".join(trials.splitlines(keepends=True)[:-2]))
    kept = [line for line in records.splitlines(keepends=True) if '"arm": "relu6", "seed": 1' not in line]
    (out / "metrics.jsonl").write_text("".join(kept))
    again = run(tiny, out, TUNED)
    assert again.runs == 1
    assert again.log.count(" at learning rate ") == 2
    assert tried(out) == tried(folder)
    assert again.summary == trained.summary


def test_a_learning_rate_that_diverges_is_one_not_to_choose(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "RATES", (1.0, 1e30))
    monkeypatch.setattr(tuning, "LIMITS", (1.0, 1.0))
    monkeypatch.setattr(tuning, "SEEDS", (1000,))
    trained = run(tiny, tmp_path / "out", TUNED)
    for name in ("linear", "relu6"):
        assert f"{name} at learning rate 1e+28, seed 1000: diverged" in trained.log
        assert trained.summary["arms"][name]["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("found", "next_rate"),
    [
        ({0.5: 0.7, 1.0: 0.9, 2.0: 0.8}, None),
        ({0.5: 0.9, 1.0: 0.8, 2.0: 0.7}, 0.25),
        ({0.5: 0.7, 1.0: 0.8, 2.0: 0.9}, 4.0),
        ({0.5: 0.7, 1.0: 0.8, 2.0: 0.9, 4.0: 0.95}, 8.0),
        ({0.5: 0.7, 1.0: 0.8, 2.0: 0.9, 4.0: 0.85}, None),
        ({0.5: 0.7, 1.0: 0.8, 2.0: 0.9, 4.0: 0.95, 8.0: 0.96, 16.0: 0.97}, None),  # the highest there is
    ],
)
def test_while_the_best_rate_is_at_an_end_the_next_is_tried(found, next_rate, monkeypatch):
    class Arms:
        names = ("a",)

        def member(self, *member):
            return Member(*member)

    monkeypatch.setattr(tuning, "LIMITS", (1 / 16, 16.0))
    tried = [
        {**trial, "seed": seed} for seed in tuning.SEEDS for trial in trials(*((*each, 1.0) for each in found.items()))
    ]
    left = tuning.pending(Arms(), tried, ACCURACY)
    assert [member[:3] for member in left] == ([("a", seed, next_rate) for seed in tuning.SEEDS] if next_rate else [])
    # Before the first rates are all tried, no other is.
    assert [member[:3] for member in tuning.pending(Arms(), tried[1:], ACCURACY)] == [("a", 1000, 0.5)]


def test_tuning_runs_have_a_quarter_of_the_budget(monkeypatch):
    monkeypatch.setattr(tuning, "BUDGET", 0.25)
    study = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, epochs=8, batch_size=32))
    short = tuning.shortened(study, 1000)  # 8 epochs of 31 steps
    assert (short.training.steps(1000), short.training.evaluations) == (62, 1)
    arms = (STUDY.arms[0], dataclasses.replace(STUDY.arms[1], training={"batch_size": 48}))
    uneven = tuning.shortened(dataclasses.replace(study, arms=arms), 1000)
    assert uneven.training.images == 1984 // 96 * 96 + 96  # the nearest whole number of batches of either size


def test_a_factor_of_the_learning_rate_is_the_learning_rate(tiny, finished):
    """A run with rate factor 2 equals a run with twice the learning rate, up to rounding."""
    learner = learner_of(TUNED, TUNED.arms, tiny)
    programs = study_module.trace_programs(learner, tiny, TUNED.training, Devices.create(2, 1))()
    state, found = programs.start([Member("linear", 0, 2.0), Member("linear", 0, 1.0)]), []
    for _ in range(4):
        state, totals, _ = programs.train(state, programs.no_totals(), tiny.train)
        found.append([sums["loss"] / 16 for sums in fetch(totals)])
    twice, once = np.transpose(found)
    high = [r.metrics["loss"] for r in finished.records if (r.arm, r.seed, r.split) == ("linear", 0, "train")]
    np.testing.assert_allclose(twice, high, rtol=1e-5)
    # The rate has an effect from the third step on, because warmup starts from 0.
    assert abs(twice[3] - once[3]) > 1e-3


@pytest.mark.parametrize(
    ("metric", "found", "best"),
    [
        (ACCURACY, [(0.5, 0.8, 1.0), (1.0, 0.9, 1.0), (2.0, 0.7, 1.0)], 1.0),
        # The mean decides, not the best trial.
        (ACCURACY, [(0.5, 0.8, 1.0), (0.5, 0.8, 1.0), (1.0, 0.9, 1.0), (1.0, 0.6, 1.0)], 0.5),
        # Ties are decided by the lower loss.
        (ACCURACY, [(0.5, 0.8, 0.7), (1.0, 0.8, 0.6), (2.0, 0.8, 0.9)], 1.0),
        (dataclasses.replace(ACCURACY, higher_is_better=False), [(0.5, 0.8, 1.0), (1.0, 0.9, 1.0)], 0.5),
        # Diverged trials rank last.
        (dataclasses.replace(ACCURACY, higher_is_better=False), [(0.5, 0.0, None), (1.0, 0.9, 1.0)], 1.0),
    ],
)
def test_the_best_rate(metric, found, best):
    assert tuning.best_rates(trials(*found), metric) == {"a": best}


def test_of_rates_that_all_diverge_one_is_chosen_all_the_same():
    assert tuning.best_rates(trials((0.5, 0.0, None), (1.0, 0.0, None)), ACCURACY)["a"] in (0.5, 1.0)
