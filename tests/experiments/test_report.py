import shutil

from experiments.scripts import EXPERIMENTS

FOLDERS = ("ablate_bottleneck_digits", "ablate_residual_shortcut_digits")


def test_finished_studies_are_made_again_and_joined(command, tmp_path, capsys):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        for file in ("summary.json", "metrics.jsonl"):
            shutil.copy(EXPERIMENTS / "results" / name / file, tmp_path / name / file)
    assert command("report", *FOLDERS, "--out", "all.html") == 0
    assert capsys.readouterr().out.split() == [*(f"{name}/report.html" for name in FOLDERS), "all.html"]
    for name in FOLDERS:
        made, kept = (folder / name / "summary.json" for folder in (tmp_path, EXPERIMENTS / "results"))
        assert made.read_bytes() == kept.read_bytes()
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "summary.json", "metrics.jsonl", "figure.png", "figure.svg", "report.html"
        }  # fmt: skip
    page = (tmp_path / "all.html").read_text()
    assert page.count("<svg") == 2
    assert "Should shortcuts join the bottlenecks?" in page


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_made(refused):
    studies = [str(EXPERIMENTS / "results" / name) for name in FOLDERS]
    for out in ("/", ".", "nowhere/all.html"):
        assert f"--out {out} must be a file, in a folder that there is" in refused("report", *studies, "--out", out)
    assert "--out is the page of several studies" in refused("report", studies[0], "--out", "all.html")


def test_what_is_no_study_is_named(refused, tmp_path):
    assert "nowhere holds no finished study" in refused("report", "nowhere")
