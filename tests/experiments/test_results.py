"""The committed results: every summary follows from the records beside it."""

import json
from pathlib import Path

import pytest

from mnv2_jax.ablation.report import read_study
from mnv2_jax.ablation.statistics import seeds_needed

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STUDIES = sorted(
    path.parent for path in RESULTS.glob("*/summary.json") if "comparisons" in json.loads(path.read_text())
)


def test_there_is_evidence():
    assert len(STUDIES) >= 7


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_summary_is_made_again_from_its_records(folder):
    summary, _ = read_study(folder)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert len(summary["seeds"]) >= seeds_needed(len(summary["comparisons"]))
    assert (folder / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_no_interval_contradicts_its_verdict(folder):
    """Inconclusive arms (hollow dots) have intervals that contain zero; decided ones (filled) do not cross zero."""
    for comparison in json.loads((folder / "summary.json").read_text())["comparisons"]:
        low, high = comparison["ci95"]
        across = low < 0 < high
        assert (low <= 0 <= high) if comparison["verdict"] == "inconclusive" else not across
