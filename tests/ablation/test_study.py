import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

from mnv2_jax.ablation import plots
from mnv2_jax.ablation import engine
from mnv2_jax.ablation.design import Arm, PaperResult, Study
from mnv2_jax.ablation.engine import run_study
from mnv2_jax.ablation.progress import Reporter
from mnv2_jax.ablation.report import read_study, sentence, write_files
from mnv2_jax.ablation.statistics import compare_paired
from mnv2_jax.ablation.study import families
from mnv2_jax.errors import UserError
from mnv2_jax.models.mobilenet_v2 import Stage
from mnv2_jax.training.config import TrainConfig
from mnv2_jax.training.metrics import read_records
from mnv2_jax.training.progress import duration
from mnv2_jax.weights.load import load_weights

# Two blocks instead of seventeen: compiled in seconds.
TINY_STAGES = (Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))

STUDY = Study(
    experiment="test",
    question="Is <linear> better?",
    claim="Yes.",
    dataset="digits",
    arms=(
        Arm("linear"),
        Arm("relu6", {"bottleneck_activation": "relu6"}, PaperResult(-0.006, "Fig. 6a", "digitized")),
    ),
    model={"width_multiplier": 0.1, "unit_strides": 1, "stages": TINY_STAGES},
    training=TrainConfig(epochs=1, batch_size=16, learning_rate=0.02, evaluations=2),
    seeds=2,
)
ENVIRONMENT = {"jax": "0", "device": "cpu", "device_count": 8, "git": "abc"}


def run(tiny, folder, study=STUDY, **options):
    log = io.StringIO()
    reporter = Reporter(Console(file=log, width=100))
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
    monkeypatch.setattr(engine, "compile_programs", lambda *a, f=engine.compile_programs: calls.append(a) or f(*a))
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
    assert "-0.6" in [text.get_text() for text in effects.texts]
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
