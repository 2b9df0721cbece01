"""The readable results of a study (a page, a table, sentences), all made from its files."""

import json
import shutil
from pathlib import Path

import pytest

from mnv2_jax.ablation import report
from mnv2_jax.ablation.report import is_run, read_study, run_section, study_section, write_files, write_page
from mnv2_jax.errors import UserError

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
FILES = ("summary.json", "figure.png", "figure.svg", "report.html")


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
    assert "All arms were trained with the same learning rate." in page
    assert "Failures too rare to occur in 2 runs of an arm go undetected" in page
    for word in ("http://", "https://"):
        # XML namespaces in the SVG are not links.
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
    assert "relu6 was trained differently: label_smoothing 0.1, steps 4." in page
    assert "with the same learning rate" not in page


def test_several_studies_on_one_page(finished_folder, tmp_path):
    folder = finished_folder[0]
    sections = [study_section(*read_study(folder), folder, folder)] * 2
    write_page(sections, tmp_path / "all.html", "All of them")
    page = (tmp_path / "all.html").read_text()
    assert page.count("<svg") == 2
    assert 'href="#section-1"' in page
    assert "differences\nare in accuracy, in percentage points" in page
    # Ids in the figures are unique over the page.
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("name", "content", "says"), [
    ("summary.json", "{", "summary.json is damaged .*run its experiment again"),
    ("summary.json", "{}", "is not a study: its summary.json belongs to something else"),
    ("summary.json", '{"comparisons": []}', "from another version .experiment is missing"),
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
    with pytest.raises(UserError, match=f"summary.json is damaged or from another version .{says}"):
        read_study(copy)


def test_a_training_run_is_a_section_with_its_curve_and_its_numbers(tmp_path, finished_folder):
    run = RESULTS / "train_fashion_mnist"
    assert is_run(run)
    assert not is_run(finished_folder[0])
    assert not is_run(tmp_path)
    write_page([run_section(run)], tmp_path / "run.html", "A run")
    page = (tmp_path / "run.html").read_text()
    assert '<h1 id="section-0">A run</h1>' in page
    assert "<th>top-5 accuracy</th>" in page
    assert "<td>91.23 %</td>" in page
    assert page.count('src="data:image/png;base64,') == 1


def test_a_training_run_without_its_figure_is_named(tmp_path):
    shutil.copy(RESULTS / "train_fashion_mnist" / "summary.json", tmp_path)
    with pytest.raises(UserError, match="figure.png is missing; restore it from a copy, or train it again"):
        run_section(tmp_path)
