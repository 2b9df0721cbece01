import shutil

import pytest

from experiments.scripts import EXPERIMENTS

FOLDERS = ("ablate_bottleneck_digits", "ablate_residual_shortcut_digits")


@pytest.fixture
def studies(tmp_path):
    """Create folders of finished studies, without figures and pages."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        for file in ("summary.json", "metrics.jsonl"):
            shutil.copy(EXPERIMENTS / "results" / name / file, tmp_path / name / file)


def contents(folder):
    """Return all files below a folder, with their bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_studies_are_made_again_and_joined(command, tmp_path, capsys, studies):
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
        assert f"--out {out} must be a file in an existing folder" in refused("report", *studies, "--out", out)
    assert "--out is for the page of several studies" in refused("report", studies[0], "--out", "all.html")


def test_what_is_no_study_is_named(refused, tmp_path):
    assert "nowhere is not a finished study" in refused("report", "nowhere")


def test_another_view_is_a_page_with_its_picture_and_leaves_the_study_as_it_is(command, tmp_path, capsys, studies):
    before = contents(tmp_path)
    flags = ("--metric", "loss", "--arms", "none", "--title", "Are shortcuts needed?", "--out", "view.html")
    assert command("report", FOLDERS[1], *flags) == 0
    assert capsys.readouterr().out.split() == ["view.png", "view.html"]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {str(name) for name in after.keys() - before.keys()} == {"view.png", "view.html"}
    page = (tmp_path / "view.html").read_text()
    assert "Are shortcuts needed?</h1>" in page
    assert "test loss" in page
    assert "<td>none</td>" in page
    assert "<td>expansion</td>" not in page
    assert "corrected by Holm's procedure for 2 comparisons" in page


def test_training_runs_are_sections_of_the_page(command, tmp_path, capsys, studies):
    run = EXPERIMENTS / "results" / "train_fashion_mnist"
    assert command("report", FOLDERS[0], run) == 0
    assert capsys.readouterr().out.split() == [f"{FOLDERS[0]}/report.html", "report.html"]
    page = (tmp_path / "report.html").read_text()
    assert "Training run: mobilenet_v2 on fashion_mnist</h2>" in page
    assert page.count("<svg") == page.count("<img") == 1


def test_tables_go_to_the_terminal_or_to_a_file_and_nowhere_else(command, tmp_path, capsys, studies):
    before = contents(tmp_path)
    assert command("report", FOLDERS[0], "--markdown", "-") == 0
    assert capsys.readouterr().out.startswith("| arm | parameters |")
    assert command("report", *FOLDERS, "--markdown", "claims.md") == 0
    assert (tmp_path / "claims.md").read_text().startswith("| claim | paper on ImageNet |")
    (tmp_path / "claims.md").unlink()
    assert contents(tmp_path) == before


def test_the_tables_of_a_page_are_refreshed_in_place(command, tmp_path, capsys):
    page = tmp_path / "page.md"
    marker = f"<!-- report.py --markdown experiments/results/{FOLDERS[0]} -->"
    page.write_text(f"Before\n\n{marker}\n<!-- end -->\n")
    assert command("report", "--refresh", "page.md") == 0
    assert capsys.readouterr().out == "page.md\n"
    assert "| linear | 408,650 |" in page.read_text()
    assert command("report", "--refresh", "page.md") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([FOLDERS[0], "--arms", "tanh"], "unknown arm 'tanh' in --arms; choose from linear, relu6"),
        (["train_fashion_mnist", "--arms", "relu6"], "--arms and --metric are for studies"),
        (["train_fashion_mnist", "--markdown", "-"], "contains a training run"),
    ],
)
def test_flags_that_do_not_fit_what_the_folders_hold_are_refused(flags, says, refused):
    assert says in refused("report", EXPERIMENTS / "results" / flags[0], *flags[1:])


def test_refreshing_takes_pages_alone(refused):
    assert "--refresh takes only pages" in refused("report", "--refresh", "README.md", "--metric", "loss")
