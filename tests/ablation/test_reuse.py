"""Runs that several studies have in common."""

import dataclasses
import json
import shutil

import pytest

from ablation.studies import STUDY, measured, run
from mnv2_jax.ablation import tuning
from mnv2_jax.ablation.design import Arm
from mnv2_jax.ablation.reuse import run_digests
from mnv2_jax.errors import UserError

LINEAR, RELU6 = STUDY.arms
OTHER = dataclasses.replace(
    STUDY,
    experiment="other",
    # The same networks as in `STUDY`, written differently and under other names.
    arms=(
        Arm("base", {"width_multiplier": 0.1, "channel_divisor": 8, "bottleneck_activation": "linear"}),
        Arm("relu six", {"width_multiplier": 0.1, "bottleneck_activation": "relu6"}),
    ),
    model={**STUDY.model, "width_multiplier": 0.2},
)


def changed(**training):
    return dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, **training))


def test_runs_are_the_same_if_everything_that_determines_them_is(tiny):
    own = run_digests(STUDY, tiny, None)
    assert own["run linear"] != own["run relu6"]
    assert run_digests(OTHER, tiny, None)["run base"] == own["run linear"]
    several = dataclasses.replace(STUDY, seeds=9, question="Why?", arms=(dataclasses.replace(LINEAR, note="!"), RELU6))
    assert run_digests(several, tiny, None) == own
    for other in (
        changed(learning_rate=0.03),
        changed(images=48),
        dataclasses.replace(STUDY, tune=True),
        dataclasses.replace(STUDY, arms=(dataclasses.replace(LINEAR, training={"mixup": 0.1}),)),
        dataclasses.replace(STUDY, arms=(dataclasses.replace(LINEAR, resolution=6),)),
        dataclasses.replace(STUDY, arms=(dataclasses.replace(LINEAR, model={"channel_divisor": 4}),)),
    ):
        assert run_digests(other, tiny, None)["run linear"] != own["run linear"]
    assert run_digests(STUDY, tiny.at(6), None)["run linear"] != own["run linear"]


def test_a_run_that_another_study_has_is_not_trained_again(finished_folder, tiny, tmp_path):
    """Seed 1 of one arm is missing there, and is trained here."""
    folder, finished = finished_folder
    source = shutil.copytree(folder, tmp_path / "source")
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not ('"arm": "relu6", "seed": 1' in line and '"split": "test"' in line)]
    (source / "metrics.jsonl").write_text("".join(kept))
    trained = run(tiny, tmp_path / "out", OTHER, reused=[source])
    assert trained.runs == 1
    assert f"{source}: 3 of its runs are used" in trained.log
    assert trained.summary["notes"] == [
        "base: 2 runs trained in the study source, as linear there.",
        "relu six: 1 run trained in the study source, as relu6 there.",
    ]
    names = {"linear": "base", "relu6": "relu six"}
    theirs = [(names[arm], *rest) for arm, *rest in measured(finished.records)]
    tested = lambda found: {row[:2]: row[5]["accuracy"] for row in found if row[3] == "test"}  # noqa: E731
    assert tested(measured(trained.records)) == pytest.approx(tested(theirs))
    # Again, without the other study: everything is here.
    shutil.rmtree(source)
    again = run(tiny, tmp_path / "out", OTHER)
    assert (again.runs, again.summary) == (0, trained.summary)


def test_a_run_that_was_interrupted_here_is_replaced_by_the_finished_one(finished_folder, tiny, tmp_path):
    first = run(tiny, tmp_path / "out", OTHER, reused=[finished_folder[0]])
    file = tmp_path / "out" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text("".join(line for line in whole.splitlines(keepends=True) if '"split": "test"' not in line))
    again = run(tiny, tmp_path / "out", OTHER, reused=[finished_folder[0]])
    assert (again.runs, again.summary) == (0, first.summary)
    assert sorted(file.read_text().splitlines()) == sorted(whole.splitlines())


def test_tuned_runs_bring_their_learning_rates(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "BUDGET", 1.0)
    monkeypatch.setattr(tuning, "LIMITS", (0.5, 1.0))
    monkeypatch.setattr(tuning, "RATES", (0.5, 1.0))
    tuned, other = (dataclasses.replace(study, tune=True) for study in (STUDY, OTHER))
    first = run(tiny, tmp_path / "first", tuned)
    second = run(tiny, tmp_path / "second", other, reused=[tmp_path / "first"])
    assert second.runs == 0
    rates = [[arm["learning_rate"] for arm in each.summary["arms"].values()] for each in (first, second)]
    assert rates[0] == rates[1]
    tried = [json.loads(line) for line in (tmp_path / "second" / "tuning.jsonl").read_text().splitlines()]
    assert {trial["arm"] for trial in tried} == {"base", "relu six"}


def test_what_is_no_study_is_refused(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty contains no study; specify the folders of studies"):
        run(tiny, tmp_path / "out", reused=[tmp_path / "empty"])
    assert not (tmp_path / "out").exists()
