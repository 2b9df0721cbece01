"""The figure of a study, of each kind."""

import json
from pathlib import Path

import pytest

from mnv2_jax.ablation import figures
from mnv2_jax.ablation.report import read_study

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


@pytest.fixture
def draw():
    """Draws, and closes behind the test."""
    drawn = []

    def of(*given):
        drawn.append(figures.draw(*given))
        return drawn[-1]

    yield of
    for figure in drawn:
        figures.plt.close(figure)


def test_a_figure_marks_the_paper_and_every_run(finished, draw):
    curves, runs, effects = draw(finished.summary, finished.records).axes
    assert len(curves.lines) == 2 * (2 + 1)
    assert [len(points.get_offsets()) for points in runs.collections if hasattr(points, "get_offsets")][:1] == [2]
    labels = [text.get_text() for text in effects.get_legend().get_texts()]
    assert any("Fig. 6a (digitized)" in label for label in labels)
    assert "−0.6" in [text.get_text() for text in effects.texts]


def test_a_difference_is_filled_where_it_is_decided_and_a_diamond_where_it_is_a_median(draw):
    _, _, effects = draw(*read_study(RESULTS / "ablate_residual_classic_fashion_mnist")).axes
    labels = [text.get_text() for text in effects.get_legend().get_texts()]
    assert labels == ["a seed", "mean and 95 % interval", "median (runs failed) and 95 % interval"]
    drawn = [line for line in effects.lines if line.get_marker() in "oD" and len(line.get_xdata())]
    assert [line.get_marker() for line in drawn] == ["D", "o", "D", "o"]
    summary, records = read_study(RESULTS / "ablate_expansion_width_fashion_mnist")
    effects = draw(summary, records).axes[2]
    drawn = [line.get_markerfacecolor() for line in effects.lines if line.get_marker() == "o" and len(line.get_xdata())]
    verdicts = {comparison["arm"]: comparison["verdict"] for comparison in summary["comparisons"]}
    in_order = sorted(verdicts, key=lambda name: summary["arms"][name]["value"])
    assert drawn == ["white" if verdicts[name] == "inconclusive" else "black" for name in in_order]


@pytest.mark.parametrize("kind", ["arms", "sweep", "tradeoff", "grid"])
def test_what_has_no_bounds_is_drawn_without_and_says_so(kind, finished, draw):
    arms = {
        name: {**arm, "value": place + 1.0, "series": "1"}
        for place, (name, arm) in enumerate(finished.summary["arms"].items())
    }
    figure = draw({**finished.summary, "arms": arms, "figure": kind, "axis": "a|b"}, finished.records)
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any("no bound with 2 seeds" in text for text in texts)
    assert not any("interval" in text for text in texts)


def test_a_curve_is_drawn_against_the_images_of_the_arms_own_batches(finished, draw):
    summary = json.loads(json.dumps(finished.summary))
    summary["arms"]["relu6"]["training"] = {"batch_size": 8}
    curves = draw(summary, finished.records).axes[0]
    assert [list(line.get_xdata()) for line in curves.lines[::3]] == [[32, 64], [16, 32]]


@pytest.mark.parametrize(
    ("folder", "panels"),
    [
        ("ablate_expansion_width_digits", ["Test accuracy", "Against cost", "Difference to t=6"]),
        ("compare_v1_v2_digits", ["Validation accuracy", "Test accuracy", "Difference in test accuracy", "Memory of each layer"]),
        ("width_resolution_digits", ["Test accuracy against multiply-adds", "Test accuracy against parameters", "The paper's"]),
        ("expressiveness_digits", ["Test accuracy, mean", "Difference in test accuracy"]),
    ],
)  # fmt: skip
def test_each_kind_of_figure_has_its_panels(folder, panels, draw):
    figure = draw(*read_study(RESULTS / folder))
    titles = [axes.get_title() for axes in figure.axes]
    assert [title[: len(panel)] for title, panel in zip(titles, panels, strict=True)] == panels


def test_the_pareto_front_has_no_point_with_a_cheaper_one_that_is_as_good():
    points = [(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (4, 0.9)]
    assert figures.pareto(points) == [(1, 0.5), (2, 0.6), (4, 0.9)]
    assert figures.pareto(points, higher_is_better=False) == [(1, 0.5), (2, 0.4)]
