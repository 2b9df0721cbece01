"""Summaries of studies, for tasks with any metric."""

import dataclasses
import json
from pathlib import Path

import pytest
import toy

import mnv2_jax.ablation
from ablation.studies import ENVIRONMENT, STUDY, run, with_accuracies
from mnv2_jax.ablation.design import Arm, PaperResult
from mnv2_jax.ablation.report import read_study, write_files
from mnv2_jax.ablation.study import study_metric
from mnv2_jax.ablation.summary import describe, metric_of, speeds, summarize
from mnv2_jax.ablation.tables import arms_table
from mnv2_jax.ablation.verdicts import last_tenths, sentence
from mnv2_jax.errors import UserError
from mnv2_jax.network import open_network
from mnv2_jax.tasks.task import TASKS
from mnv2_jax.training.metrics import Record


def test_a_summary_has_what_the_readers_of_it_expect(finished_folder):
    folder, (summary, records, _, _) = finished_folder
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (summary["experiment"], summary["task"]) == ("test", "classification")
    assert (summary["dataset"], summary["baseline"], summary["seeds"]) == ("digits", "linear", [0, 1])
    assert set(summary["arms"]) == {"linear", "relu6"}
    for arm in summary["arms"].values():
        assert arm["network"] == "MobileNetV2"
        assert arm["parameters"] == summary["arms"]["linear"]["parameters"] > 1000
        assert arm["multiply_adds"] > 0
        # Fractions of 50 images
        assert all((accuracy * 50) % 1 == pytest.approx(0, abs=1e-9) for accuracy in arm["test_accuracy"])
        assert len(arm["test_accuracy"]) == len(arm["test_loss"]) == 2
    (comparison,) = summary["comparisons"]
    assert set(comparison) == {
        "arm", "baseline", "metric", "n", "estimand", "mean_difference", "median_difference", "failed", "detectable", "ci95", "p_value", "p_holm",
        "baseline_spread", "verdict", "paper",
    }  # fmt: skip
    assert comparison["metric"] == "test_accuracy"
    assert comparison["paper"] == {"difference": -0.006, "where": "Fig. 6a", "how": "digitized"}
    assert (comparison["n"], comparison["verdict"]) == (2, "inconclusive")
    # Two seeds give no bounds.
    assert {each["ci95"] for each in (comparison, *summary["arms"].values())} == {None}
    assert summary["chance"] == 0.1
    assert summary["environment"] == ENVIRONMENT
    assert {record.split for record in records} == {"train", "validation", "test"}


def test_the_budget_is_of_whole_batches(tiny):
    study = dataclasses.replace(STUDY, training=dataclasses.replace(STUDY.training, images=47))
    budget = describe(study, tiny, None, "", {})["budget"]
    assert budget == {
        "epochs": None, "steps": 2, "images": 32, "train_images": 70, "validation_images": 30, "test_images": 50
    }  # fmt: skip


def test_a_run_without_a_test_is_named(finished):
    records = [r for r in finished.records if (r.arm, r.seed, r.split) != ("relu6", 1, "test")]
    with pytest.raises(UserError, match="the test result of relu6, seed 1, is missing; the study is not finished"):
        summarize(finished.summary, records)


def test_a_summary_is_made_again_of_itself_and_the_records(finished):
    assert summarize(finished.summary, finished.records) == finished.summary


def test_failed_runs_are_counted_and_the_verdict_is_of_the_others(finished):
    """Eight of ten runs are better by 5 points, two learnt nothing: the mean is 8 points worse."""
    linear, relu6 = [0.7 + seed / 100 for seed in range(10)], [0.75 + seed / 100 for seed in range(8)] + [0.1, 0.12]
    summary = with_accuracies(finished.summary, linear=linear, relu6=relu6)
    (comparison,) = summary["comparisons"]
    assert comparison["failed"] == {"arm": 2, "baseline": 0}
    assert comparison["estimand"] == "median"
    assert comparison["mean_difference"] < 0 < comparison["median_difference"]
    assert json.loads(json.dumps(summary)) == summary
    text = sentence(comparison, metric_of(summary))
    assert text.startswith(
        "2 of 10 runs of relu6 failed: nearer to chance than to the median of the arm. Inconclusive: "
    )
    assert (
        "the median difference of relu6 from linear is +5.00 percentage points (95 % interval: -67.00 to +5.00" in text
    )
    # Summaries of earlier versions do not have the chance value.
    before = {name: value for name, value in finished.summary.items() if name != "chance"}
    (unknown,) = with_accuracies(before, linear=linear, relu6=relu6)["comparisons"]
    assert (unknown["estimand"], unknown["failed"]) == ("mean", {"arm": 0, "baseline": 0})


def test_speeds_are_as_far_as_known():
    records = [Record("a", seed, 1, "train", 0.0, {}, 16, speed) for seed, speed in ((0, 10.0), (1, 30.0), (2, None))]
    timings = [{"arms": ["a", "b"], "compile_seconds": 3.0}]
    assert speeds(records, timings) == {
        "a": {"images_per_second": 20.0, "compile_seconds": 3.0},
        "b": {"compile_seconds": 3.0},
    }


# --- Another task ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pointing(toy.Pointing):
    """Create the task from the number of classes, like other tasks."""

    num_classes: int
    label_smoothing: float = 0.0


@pytest.fixture(scope="module")
def pointing(tmp_path_factory):
    """Train a study whose metric is a distance, lower being better; return (folder, `Trained`)."""
    arms = (
        Arm("linear", value=1.0, series="1"),
        Arm("relu6", {"bottleneck_activation": "relu6"}, PaperResult(0.5, "Fig. 0", "guessed"), value=2.0, series="1"),
    )
    study = dataclasses.replace(STUDY, dataset="bright", task="pointing", arms=arms)
    folder = tmp_path_factory.mktemp("pointing") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "pointing", Pointing)
        assert study_metric(study) is Pointing.metric
        trained = run(toy.pointing_dataset(), folder, study)
        write_files(trained.summary, trained.records, folder)
        yield folder, trained


def test_the_metric_of_another_task_decides(pointing):
    folder, (summary, records, _, log) = pointing
    assert summary["task"] == "pointing"
    tests = {(r.arm, r.seed): r.metrics for r in records if r.split == "test"}
    for name, arm in summary["arms"].items():
        assert arm["test_distance"] == [tests[name, seed]["distance"] for seed in (0, 1)]
        assert arm["mean"] == pytest.approx(sum(arm["test_distance"]) / 2)
        assert "test_accuracy" not in arm
    assert (summary["comparisons"][0]["metric"], summary["chance"]) == ("test_distance", None)
    # Metrics that are not ratios of sums come from the evaluator.
    assert all("median_distance" in metrics for metrics in tests.values())
    assert f"linear seed 0: test distance in pixels {tests['linear', 0]['distance']:.3f}, loss" in log
    assert "validation distance in pixels" in log
    assert "%" not in log
    network = open_network(folder / "checkpoints" / "relu6-0")
    assert network.task == Pointing(2)


def test_figure_and_report_speak_of_another_tasks_metric(pointing):
    folder, (summary, records, _, _) = pointing
    page = (folder / "report.html").read_text()
    assert "distance in pixels" in page
    assert "no run was counted as failed" in page
    assert read_study(folder)[0] == json.loads((folder / "summary.json").read_text())
    assert "distance in pixels" in [column.header.removeprefix("test ") for column in arms_table(summary).columns]
    for text in (page, sentence(summary["comparisons"][0], metric_of(summary))):
        # The only percent signs are those of confidence levels and of CSS.
        percents = text.replace("95 %", "").replace("width: 100%", "")
        assert "%" not in percents
        assert "percentage" not in text
        assert "ccuracy" not in text
    from mnv2_jax.ablation import figures

    for kind, axis in (("arms", ""), ("sweep", "t"), ("tradeoff", ""), ("grid", "a|b")):
        figure = figures.draw({**summary, "figure": kind, "axis": axis}, records)
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        assert any("distance in pixels" in text for text in texts), kind
        assert not [text for text in texts if "%" in text.replace("95 %", "") or "ccuracy" in text], kind
        figures.plt.close(figure)


@pytest.mark.parametrize(("higher", "verdict"), [(True, "better"), (False, "worse")])
def test_the_verdict_goes_by_which_way_is_better(finished, monkeypatch, higher, verdict):
    metric = dataclasses.replace(Pointing.metric, higher_is_better=higher)
    monkeypatch.setitem(TASKS, "pointing", type("Task", (), {"metric": metric, "others": ()}))
    described = {**finished.summary, "task": "pointing", "seeds": list(range(6))}
    records = [
        Record(arm, seed, 4, "test", 0.0, {"distance": seed / 10 + (arm == "relu6"), "loss": 1.0}, 50)
        for arm in ("linear", "relu6")
        for seed in range(6)
    ]
    (comparison,) = summarize(described, records)["comparisons"]
    assert (comparison["mean_difference"], comparison["verdict"]) == (1, verdict)


def test_studies_know_of_no_tasks_metric_but_by_asking():
    """They mention accuracy only for the paper's own number."""
    folder = Path(mnv2_jax.ablation.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(folder.iterdir())
        if path.is_file()
        for line in path.read_text().splitlines()
        if "accuracy" in line.lower() and "top-1 accuracy" not in line
    ]
    assert found == []


def test_the_change_over_the_last_tenth_of_training(finished):
    """A straight line through the evaluations from 90 % of the steps on; two of them are too few."""

    def with_evaluations(steps, values):
        found = [record for record in finished.records if record.split != "validation"]
        for arm in finished.summary["arms"]:
            for seed in finished.summary["seeds"]:
                for step, value in zip(steps, values, strict=True):
                    metrics = {"accuracy": value + 0.1 * seed, "loss": 1.0}
                    found.append(Record(arm, seed, step, "validation", 0.0, metrics, 30))
        return summarize(finished.summary, found)

    summary = with_evaluations((50, 90, 95, 100), (0.2, 0.80, 0.81, 0.82))
    assert summary["arms"]["linear"]["last_tenth"] == {"mean": pytest.approx(0.02), "ci95": None}
    assert "over the last tenth of training, in percentage points" in last_tenths(summary)
    assert "linear +2.00, relu6 +2.00" in last_tenths(summary)
    few = with_evaluations((50, 90, 100), (0.2, 0.80, 0.82))
    assert "last_tenth" not in few["arms"]["linear"]
    assert last_tenths(few) == ""
