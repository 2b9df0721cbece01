import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ablation.studies import ENVIRONMENT, STUDY
from rich.console import Console

from mnv2_jax.ablation import engine, plots
from mnv2_jax.ablation.design import Arm, Run
from mnv2_jax.ablation.engine import run_study
from mnv2_jax.ablation.progress import Reporter
from mnv2_jax.ablation.report import read_study, sentence, write_files
from mnv2_jax.ablation.statistics import compare_paired
from mnv2_jax.ablation.study import create_learner, families
from mnv2_jax.errors import UserError
from mnv2_jax.training.loop import Logged, compile_programs, train
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.parallel import create_mesh
from mnv2_jax.training.progress import duration
from mnv2_jax.weights.load import load_weights


def run(tiny, folder, study=STUDY, devices=None, **options):
    log = io.StringIO()
    reporter = Reporter(Console(file=log, width=100))
    if devices is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.jax, "device_count", lambda: devices)
            return run(tiny, folder, study, **options)
    summary, records = run_study(study, tiny, folder, reporter, command="python x", environment=ENVIRONMENT, **options)
    return summary, records, reporter.trained, log.getvalue()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished study; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("study") / "out"
    summary, records, trained, log = run(tiny, folder)
    assert trained == 4
    return folder, summary, records, log


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_summary_has_what_the_readers_of_it_expect(finished):
    folder, summary, records, _ = finished
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["experiment"] == "test"
    assert (summary["dataset"], summary["baseline"], summary["seeds"]) == ("digits", "linear", [0, 1])
    assert set(summary["arms"]) == {"linear", "relu6"}
    for arm in summary["arms"].values():
        assert arm["parameters"] == summary["arms"]["linear"]["parameters"] > 1000
        assert arm["multiply_adds"] > 0
        # Fractions of 50 images
        assert all((accuracy * 50) % 1 == pytest.approx(0, abs=1e-9) for accuracy in arm["test_accuracy"])
        assert len(arm["test_accuracy"]) == len(arm["test_loss"]) == 2
    (comparison,) = summary["comparisons"]
    assert {
        "arm",
        "baseline",
        "metric",
        "n",
        "mean_difference",
        "ci95",
        "p_value",
        "p_holm",
        "baseline_spread",
        "verdict",
        "paper",
    } == set(comparison)
    assert comparison["paper"] == {"difference": -0.006, "where": "Fig. 6a", "how": "digitized"}
    assert comparison["n"] == 2
    assert comparison["verdict"] == "inconclusive"
    assert summary["environment"] == ENVIRONMENT
    assert {record.split for record in records} == {"train", "validation", "test"}


def test_arms_that_differ_in_an_activation_share_a_program():
    arms = (Arm("a"), Arm("b", {"bottleneck_activation": "relu"}), Arm("c", {"expansion": 2.0}))
    arms += (Arm("d", {"expansion": 2.0, "bottleneck_activation": "relu6"}), Arm("e", {"width_multiplier": 0.2}))
    found = families(dataclasses.replace(STUDY, arms=arms))
    assert [[arm.name for arm in family] for family in found] == [["a", "b"], ["c", "d"], ["e"]]


def test_plain_lines_instead_of_a_bar_where_there_is_no_terminal(finished):
    log = finished[3]
    assert "linear seed 1 step 2/4: loss" in log
    assert "images/s" in log
    assert "left" in log
    assert "relu6 seed 0: test accuracy" in log
    assert "\x1b" not in log


def test_a_finished_study_trains_nothing_and_gives_the_same_summary(copy, tiny):
    before = {name: (copy / name).read_bytes() for name in ("summary.json", "metrics.jsonl", "config.json")}
    assert run(tiny, copy)[2] == 0
    assert before == {name: (copy / name).read_bytes() for name in before}


def test_the_same_study_elsewhere_gives_the_same_numbers(finished, tiny, tmp_path):
    assert run(tiny, tmp_path / "again")[0] == finished[1]


def test_an_interrupted_study_continues_with_what_is_missing(finished, copy, tiny):
    """One run done, one cut off in the middle of a line: the done one is kept, three are trained."""
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [line for line in lines if '"arm": "linear", "seed": 1' in line]
    part = [line for line in lines if '"arm": "linear", "seed": 0' in line][:2]
    (copy / "metrics.jsonl").write_text("".join([*whole, *part, lines[0][:30]]))
    (copy / "summary.json").unlink()
    summary, _, trained, log = run(tiny, copy)
    assert trained == 3
    assert "1 of 4 runs were finished before" in log
    assert summary == finished[1]
    assert len(read_records(copy / "metrics.jsonl")) == len(lines)


def test_a_study_killed_inside_a_run_goes_on_there_and_ends_the_same(finished, tiny, tmp_path):
    """Killed in the second half of its first runs, whose state it had saved at half-time."""
    script = Path(__file__).parent / "killed_study.py"
    killed = subprocess.run([sys.executable, script, tmp_path / "out", "3"], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "summary.json").exists()
    summary, records, trained, _ = run(tiny, tmp_path / "two", devices=2)
    again = run(tiny, tmp_path / "out", devices=2)
    assert "going on from step 2" in again[3]
    assert again[2] == trained == 4
    assert (tmp_path / "out" / "summary.json").read_bytes() == (tmp_path / "two" / "summary.json").read_bytes()
    # Every record is there once, also those from before it was killed.
    keys = [(r.arm, r.seed, r.step, r.split) for r in again[1]]
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted((r.arm, r.seed, r.step, r.split) for r in records)
    assert not (tmp_path / "out" / "running").exists()
    # And it is the study that eight devices train, to rounding.
    for name, arm in finished[1]["arms"].items():
        assert summary["arms"][name]["test_loss"] == pytest.approx(arm["test_loss"], rel=1e-5)


def test_a_damaged_state_inside_a_run_is_named_and_the_run_begins_anew(finished, tiny, tmp_path, monkeypatch):
    class Stop(Reporter):
        def step(self, logged):
            super().step(logged)
            if logged.step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(engine, "SAVE_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, tiny, tmp_path / "out", Stop(Console(file=io.StringIO())))
    for path in (tmp_path / "out" / "running" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    summary, _, _, log = run(tiny, tmp_path / "out")
    assert "these runs begin anew" in " ".join(log.split())
    assert summary == finished[1]


def test_more_arms_extend_a_study_and_fewer_leave_the_others_alone(copy, finished, tiny):
    more = dataclasses.replace(STUDY, arms=(*STUDY.arms, Arm("relu", {"bottleneck_activation": "relu"})))
    summary, _, trained, _ = run(tiny, copy, more)
    assert trained == 2
    assert list(summary["arms"]) == ["linear", "relu6", "relu"]
    assert summary["arms"]["relu6"]["test_loss"] == finished[1]["arms"]["relu6"]["test_loss"]
    assert {comparison["p_holm"] for comparison in summary["comparisons"]} == {1.0}
    summary, _, trained, _ = run(tiny, copy, more.with_arms(["relu"]))
    assert (trained, list(summary["arms"])) == (0, ["linear", "relu"])
    assert run(tiny, copy)[2] == 0
    other = dataclasses.replace(STUDY, arms=(STUDY.arms[0], Arm("relu", {"bottleneck_activation": "elu"})))
    with pytest.raises(UserError, match="arm relu is .*'relu'.* there and .*'elu'.* here"):
        run(tiny, copy, other)


def test_an_unknown_arm_is_named():
    with pytest.raises(UserError, match="there is no arm 'relu7'; this study has linear, relu6"):
        STUDY.with_arms(["relu7"])


def test_a_folder_of_another_version_is_named_and_kept(copy, tiny):
    config = json.loads((copy / "config.json").read_text())
    del config["format"]
    (copy / "config.json").write_text(json.dumps(config))
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="format is None there and 2 here"):
        run(tiny, copy)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_learning_rate_is_chosen_for_each_arm_without_the_test_split(tiny, tmp_path):
    study = dataclasses.replace(STUDY, tune=True)
    summary, _, _, log = run(tiny, tmp_path / "out", study)
    tried = [json.loads(line) for line in (tmp_path / "out" / "tuning.jsonl").read_text().splitlines()]
    assert len(tried) == 2 * len(engine.RATES) * len(engine.TUNING_SEEDS)
    assert "linear at learning rate 0.01, seed 1000: validation accuracy" in log
    for name, arm in summary["arms"].items():
        means = {}
        for trial in tried:
            if trial["arm"] == name:
                means.setdefault(trial["rate"], []).append(trial["accuracy"])
        best = max(sum(values) for values in means.values())
        assert sum(means[round(arm["learning_rate"] / study.training.learning_rate, 6)]) == best
    # Nothing is tried twice.
    assert run(tiny, tmp_path / "out", study)[2] == 0
    assert len((tmp_path / "out" / "tuning.jsonl").read_text().splitlines()) == len(tried)


def test_a_factor_of_the_learning_rate_is_the_learning_rate(finished, tiny):
    """A run at twice the rate is the run whose rate is twice as high, to rounding."""
    results = []
    twice = dataclasses.replace(STUDY.training, learning_rate=0.04)
    for config, rates in ((STUDY.training, [2.0]), (twice, None), (STUDY.training, [1.0])):
        study = dataclasses.replace(STUDY, training=config, tune=rates is not None)
        learner = create_learner(study, STUDY.arms[:1], tiny)
        programs = compile_programs(learner, tiny, config, create_mesh(1, 1))
        state = programs.start([0], None, rates)
        events = list(train(programs, state, 0, range(4), 1, ()))
        results.append([event.metrics[0]["loss"] for event in events if isinstance(event, Logged)])
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    # The rate shows from the third step on: the first warms up from nothing.
    assert abs(results[0][3] - results[2][3]) > 1e-3


def test_a_learning_rate_that_diverges_is_one_not_to_choose(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "RATES", (1.0, 1e30))
    monkeypatch.setattr(engine, "TUNING_SEEDS", (1000,))
    study = dataclasses.replace(STUDY, tune=True, arms=STUDY.arms[:1])
    summary, _, _, log = run(tiny, tmp_path / "out", study)
    assert "linear at learning rate 2e+28, seed 1000: diverged" in log
    assert summary["arms"]["linear"]["learning_rate"] == 0.02


def test_a_state_is_only_its_own_runs(tiny, tmp_path):
    """Where a run's choice is a number among other arms, it is another network."""
    runs = [Run("b", 0), Run("c", 0)]
    mine, other = engine.State(tmp_path / "s", ["a", "b", "c"], runs), engine.State(tmp_path / "s", ["b", "c"], runs)
    learner = create_learner(STUDY, STUDY.arms, tiny)
    state = compile_programs(learner, tiny, STUDY.training, create_mesh(2, 1)).start([0, 1], [0, 1])
    reporter = Reporter(Console(file=io.StringIO()))
    reporter.start(4, 1, 2, 2)
    mine.save(state, 3, 1.5, [])
    restored = mine.restore(state, reporter)
    assert (restored.step, restored.seconds, restored.records) == (3, 1.5, [])
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    assert other.restore(state, reporter) is None
    assert not (tmp_path / "s").exists()


def test_arms_of_another_resolution_see_the_same_images_smaller(tiny, tmp_path):
    arms = (Arm("12"), Arm("6", resolution=6))
    summary = run(tiny, tmp_path / "out", dataclasses.replace(STUDY, arms=arms))[0]
    assert [arm["resolution"] for arm in summary["arms"].values()] == [12, 6]
    assert tiny.at(6).augmentation.shift == 1
    assert summary["arms"]["6"]["multiply_adds"] < summary["arms"]["12"]["multiply_adds"]
    assert summary["arms"]["6"]["parameters"] == summary["arms"]["12"]["parameters"]


def test_a_budget_of_images_takes_whole_batches(tiny, tmp_path):
    study = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, images=47))
    assert run(tiny, tmp_path / "out", study)[0]["budget"]["images"] == 32
    with pytest.raises(UserError, match="--images 15 do not fill a batch of 16; take 16 or more"):
        dataclasses.replace(STUDY.training, images=15)


def test_everything_is_made_again_from_the_records(copy):
    names = ("summary.json", "figure.png", "figure.svg", "report.html")
    summary, records = read_study(copy)
    write_files(summary, records, copy)
    before = {name: (copy / name).read_bytes() for name in names}
    for name in names[1:]:
        (copy / name).unlink()
    again, records = read_study(copy)
    assert json.dumps(again, indent=2) + "\n" == before["summary.json"].decode()
    write_files(again, records, copy)
    assert {name: (copy / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(("name", "content", "says"), [
    ("summary.json", "{", "holds no finished study"),
    ("summary.json", "{}", "holds no study: its summary.json is of something else"),
    ("summary.json", '{"comparisons": []}', "was written by another version: arms is missing"),
    ("metrics.jsonl", "", "the test result of linear, seed 0, is missing"),
])  # fmt: skip
def test_what_is_half_written_is_named(copy, name, content, says):
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_study(copy)


def test_more_seeds_extend_a_study(copy, finished, tiny):
    summary, _, trained, _ = run(tiny, copy, dataclasses.replace(STUDY, seeds=3))
    assert trained == 2
    assert summary["arms"]["linear"]["test_accuracy"][:2] == finished[1]["arms"]["linear"]["test_accuracy"]


def test_trained_networks_are_kept(finished):
    weights = load_weights(finished[0] / "checkpoints" / "relu6-1")
    assert weights.model.bottleneck_activation == "relu6"
    assert weights.class_names == tuple("0123456789")
    assert set(weights.variables) == {"params", "batch_stats"}
    assert weights.variables["params"]["classifier"]["bias"].shape == (10,)


def test_another_study_is_not_overwritten_unless_asked(copy, tiny):
    other = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, learning_rate=0.03))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"holds another study: learning_rate is 0.02 there and 0.03 here; .*--overwrite"
    ):
        run(tiny, copy, other)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    summary, _, trained, _ = run(tiny, copy, other, overwrite=True)
    assert trained == 4
    assert summary["training"]["learning_rate"] == 0.03


def test_a_folder_of_something_else_is_never_touched(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds files of something else \(thesis.tex\)"):
            run(tiny, tmp_path / "mine", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_damaged_config_is_named(copy, tiny):
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not a study's .*--overwrite"):
        run(tiny, copy)


def test_out_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        run(tiny, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        run(tiny, tmp_path / "file" / "below")


def test_a_single_seed_shows_no_spread(tiny, tmp_path):
    with pytest.raises(UserError, match="--seeds must be 2 or more"):
        run(tiny, tmp_path / "out", dataclasses.replace(STUDY, seeds=1))
    assert not (tmp_path / "out").exists()


def test_a_null_study_is_inconclusive(tiny, tmp_path):
    """The baseline against itself with six other seeds."""
    study = dataclasses.replace(STUDY, arms=STUDY.arms[:1], seeds=12)
    accuracy = run(tiny, tmp_path / "null", study)[0]["arms"]["linear"]["test_accuracy"]
    assert len(set(accuracy)) > 1
    assert compare_paired(accuracy[:6], accuracy[6:]).verdict == "inconclusive"


def test_arms_are_compiled_once_for_all_of_their_runs(tiny, tmp_path, monkeypatch):
    """Eighteen runs on eight devices are three groups, but the two arms have one program."""
    calls = []
    monkeypatch.setattr(engine, "trace_programs", lambda *a, f=engine.trace_programs: calls.append(a) or f(*a))
    run(tiny, tmp_path / "out", dataclasses.replace(STUDY, seeds=9))
    assert len(calls) == 1


# --- What people look at ---------------------------------------------------------------------------------


def test_figure_and_report_are_made_from_the_files_and_twice_the_same(finished, tmp_path):
    _, summary, records, _ = finished
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_files(summary, records, folder)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"figure.png", "figure.svg", "report.html"}
    page = contents[0]["report.html"].decode()
    assert "Is &lt;linear&gt; better?" in page
    assert "Inconclusive" in page
    assert "<svg" in page
    for word in ("http://", "https://"):
        # Names of XML vocabularies in the SVG are no links.
        outside = [part.split('"')[0] for part in page.split(word)[1:]]
        assert all(address.startswith(("www.w3.org", "purl.org", "creativecommons.org")) for address in outside)
    assert "<script" not in page
    assert " src=" not in page


def test_figure_marks_the_paper_and_every_run(finished):
    figure = plots.draw(finished[1], finished[2])
    curves, runs, effects = figure.axes
    assert len(curves.lines) == 2 * (2 + 1)
    assert [len(points.get_offsets()) for points in runs.collections if hasattr(points, "get_offsets")][:1] == [2]
    labels = [text.get_text() for text in effects.get_legend().get_texts()]
    assert any("Fig. 6a (digitized)" in label for label in labels)
    assert "−0.6" in [text.get_text() for text in effects.texts]
    plots.plt.close(figure)


@pytest.mark.parametrize(
    ("difference", "verdict", "expected"),
    [(-0.05, "worse", "relu6 is worse than linear"), (-0.05, "worse", "direction is the same"),
     (0.05, "better", "direction is the opposite"), (0.001, "inconclusive", "Inconclusive")],
)  # fmt: skip
def test_plain_words(difference, verdict, expected):
    comparison = {"arm": "relu6", "baseline": "linear", "n": 6, "mean_difference": difference, "ci95": [-0.1, 0.1],
                  "p_value": 0.03, "p_holm": 0.03, "baseline_spread": 0.01, "verdict": verdict, "paper": dataclasses.asdict(STUDY.arms[1].paper)}  # fmt: skip
    assert expected in sentence(comparison)


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3725, "1:02:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text
