"""What people read of a study: a page, a table, sentences. All made from its files."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from ablation.studies import STUDY
from mnv2_jax.ablation import report
from mnv2_jax.ablation.report import arms_table, read_study, sentence, write_files, write_joined
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.classification import Classification

FILES = ("summary.json", "figure.png", "figure.svg", "report.html")


def comparison(difference, verdict, n=6, **changed):
    return {
        "arm": "relu6", "baseline": "linear", "n": n, "mean_difference": difference, "ci95": [-0.1, 0.1], "p_value": 0.03,
        "p_holm": 0.03, "baseline_spread": 0.01, "verdict": verdict, "paper": dataclasses.asdict(STUDY.arms[1].paper),
        "estimand": "mean", "median_difference": -0.02, "failed": {"arm": 0, "baseline": 0}, **changed,
    }  # fmt: skip


def test_everything_is_made_again_from_the_records_byte_for_byte(copy):
    before = {name: (copy / name).read_bytes() for name in FILES}
    for name in FILES[1:]:
        (copy / name).unlink()
    summary, records = read_study(copy)
    assert json.dumps(summary, indent=2) + "\n" == before["summary.json"].decode()
    write_files(summary, records, copy)
    assert {name: (copy / name).read_bytes() for name in FILES} == before


def test_a_report_is_one_page_that_needs_nothing_from_outside(finished_folder):
    page = (finished_folder[0] / "report.html").read_text()
    assert "Is &lt;linear&gt; better?" in page
    assert "Inconclusive" in page
    assert "<svg" in page
    assert "All arms were trained at one learning rate." in page
    assert "Failures rarer than 2 runs of an arm can show are not seen" in page
    for word in ("http://", "https://"):
        # Names of XML vocabularies in the SVG are no links.
        outside = [part.split('"')[0] for part in page.split(word)[1:]]
        assert all(address.startswith(("www.w3.org", "purl.org", "creativecommons.org")) for address in outside)
    assert "<script" not in page
    assert " src=" not in page


def test_a_report_says_which_arms_were_trained_otherwise_and_which_runs_failed(copy, monkeypatch):
    monkeypatch.setattr(report, "save_figure", lambda figure, folder: report.figures.plt.close(figure))
    summary, records = read_study(copy)
    summary["arms"]["relu6"] |= {"training": {"label_smoothing": 0.1, "steps": 4}, "learning_rate": 0.01}
    summary["comparisons"][0] |= {"estimand": "median", "failed": {"arm": 1, "baseline": 0}}
    write_files(summary, records, copy)
    page = (copy / "report.html").read_text()
    assert "A\nrun failed if it ended nearer to chance (10.00 %)" in page
    assert "relu6 was trained otherwise: label_smoothing 0.1, steps 4." in page
    assert "at one learning rate" not in page


def test_several_studies_on_one_page(finished_folder, tmp_path):
    folder = finished_folder[0]
    write_joined([folder, folder], tmp_path / "all.html")
    page = (tmp_path / "all.html").read_text()
    assert page.count("<svg") == 2
    assert 'href="#study-1"' in page
    assert "differences\nare of accuracy, in percentage points" in page
    # Parts of the figures are told apart.
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("name", "content", "says"), [
    ("summary.json", "{", "summary.json is damaged .*run its experiment to the end first"),
    ("summary.json", "{}", "holds no study: its summary.json is of something else"),
    ("summary.json", '{"comparisons": []}', "was written by another version .experiment is missing"),
    ("metrics.jsonl", "", "the test result of linear, seed 0, is missing"),
])  # fmt: skip
def test_what_is_half_written_is_named(copy, name, content, says):
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_study(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"seeds": ["0"]}, "seeds.0. is .0., expected a whole number"), ({"baseline": "none"}, "KeyError"),
     ({"task": "none"}, "KeyError"), ({"figure": "none"}, "ValueError"), ({"arms": {"linear": {}}}, "parameters is missing in linear")],
)  # fmt: skip
def test_a_damaged_summary_is_named(copy, change, says):
    path = copy / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"summary.json is damaged, or was written by another version .{says}"):
        read_study(copy)


@pytest.mark.parametrize(
    ("difference", "verdict", "expected"),
    [(-0.05, "worse", "relu6 is worse than linear"), (-0.05, "worse", "direction is the same"),
     (0.05, "better", "direction is the opposite"), (0.001, "inconclusive", "Inconclusive"),
     (-0.05, "worse", "over 6 pairs of runs relu6 scored -5.00 percentage points against linear")],
)  # fmt: skip
def test_plain_words(difference, verdict, expected):
    assert expected in sentence(comparison(difference, verdict), Classification.metric)


def test_failed_runs_stand_before_the_typical_difference():
    failed = comparison(-0.05, "worse", estimand="median", failed={"arm": 2, "baseline": 1})
    text = sentence(failed, Classification.metric)
    assert text.startswith(
        "2 of 6 runs of relu6 and 1 of 6 runs of linear failed: nearer to chance than to the median of the arm. Typically, relu6 is "
        "worse than linear: over 6 pairs of runs relu6 scored -2.00 percentage points against linear in the median"
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


def test_the_table_that_ends_a_study(finished):
    output = io.StringIO()
    Console(file=output, width=160).print(arms_table(finished.summary))
    text = output.getvalue()
    for arm in finished.summary["arms"].values():
        assert f"{arm['parameters']:,}" in text
        assert f"{100 * arm['mean']:.2f} %" in text
    assert "test accuracy" in text
    assert "no bound with 2 seeds" in text
    assert "inconclusive" in text
    assert "baseline" in text
