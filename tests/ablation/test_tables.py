"""Tables of studies."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ablation.studies import with_accuracies
from mnv2_jax.ablation.tables import arms_table, markdown, refresh
from mnv2_jax.errors import UserError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
STUDIES = [path.parent for path in RESULTS.glob("*/summary.json") if "comparisons" in json.loads(path.read_text())]


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


def cells(table):
    return [line.strip("| \n").split(" | ") for line in table.splitlines()]


def test_one_study_in_markdown_is_its_arms(finished):
    columns, rule, *rows = cells(markdown([finished.summary]))
    assert columns == [
        "arm",
        "parameters",
        "multiply-adds",
        "test accuracy",
        "difference",
        "95 % interval",
        "p",
        "verdict",
    ]
    assert rule == [":--", *["--:"] * 6, ":--"]
    assert [row[0] for row in rows] == ["linear", "relu6"]
    assert (rows[0][-1], rows[1][-1].split()[0]) == ("baseline", "inconclusive")


def test_several_studies_in_markdown_are_the_claims(finished):
    columns, _, *rows = cells(markdown([finished.summary] * 2))
    assert columns == [
        "claim",
        "paper on ImageNet",
        "ours on handwritten digits (scikit-learn), percentage points",
        "verdict",
    ]
    assert rows[0][:2] == ["test: relu6 vs linear", "-0.6 (Fig. 6a)"]
    assert len(rows) == 2
    other = {**finished.summary, "title": "Fashion-MNIST"}
    columns, _, *rows = cells(markdown([finished.summary, other]))
    assert columns[:2] == ["claim", "data"]
    assert [row[1] for row in rows] == ["handwritten digits (scikit-learn)", "Fashion-MNIST"]


def test_a_table_says_where_arms_are_not_trained(finished):
    summary = with_accuracies(finished.summary, linear=[0.1, 0.1], relu6=[0.1, 0.1])
    assert "| inconclusive; not trained |" in markdown([summary])


def test_no_cell_is_long():
    """For all claims with committed results."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in STUDIES]
    assert max(len(cell) for row in cells(markdown(summaries)) for cell in row) <= 60


PAGE = """# A page

<!-- report.py --markdown results/a -->
old
<!-- end -->

Between.

<!-- report.py --markdown results/* -->
<!-- end -->
"""


@pytest.fixture
def root(finished_folder, tmp_path):
    (tmp_path / "results").mkdir()
    for name in ("a", "b"):
        (tmp_path / "results" / name).symlink_to(finished_folder[0])
    return tmp_path


def test_the_tables_of_a_page_are_made_again_between_their_markers(root, finished):
    made = refresh(PAGE, root)
    one, two = markdown([finished.summary]), markdown([finished.summary] * 2)
    assert made == PAGE.replace("old\n", f"\n{one}\n").replace("/* -->\n", f"/* -->\n\n{two}\n")
    assert refresh(made, root) == made
    some = PAGE.replace("results/a", "results/a --arms relu6 'another arm'")
    assert refresh(some, root) == some.replace("old\n", f"\n{one}\n").replace("/* -->\n", f"/* -->\n\n{two}\n")
    # A line with anything else on it is not a marker.
    assert refresh("`<!-- report.py --markdown nowhere -->`", root) == "`<!-- report.py --markdown nowhere -->`"


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (PAGE.replace("old\n<!-- end -->", "old"), "results/a --> has no <!-- end --> before the next table"),
        (PAGE.replace("results/* -->\n<!-- end -->", "results/* -->"), "2 lines .* and 1 lines <!-- end -->"),
        (PAGE.replace("results/a", "results/c"), "results/c is not a finished study"),
        (PAGE.replace("results/*", "none/*"), "none/. --> matches no existing folder"),
        (
            PAGE.replace("results/a", "results/a --arms 'relu6, V1'"),
            "has none of these arms; choose from linear, relu6",
        ),
    ],
)
def test_a_marker_that_no_table_can_be_made_for_is_named(page, says, root):
    with pytest.raises(UserError, match=says):
        refresh(page, root)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_our_pages_repeat_the_committed_records(page):
    name = page.relative_to(ROOT)
    assert refresh(page.read_text(), ROOT) == page.read_text(), f"python experiments/report.py --refresh {name}"
