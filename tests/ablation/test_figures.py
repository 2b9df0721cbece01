"""Figures of studies, of each kind."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ablation.studies import with_accuracies
from mnv2_jax.ablation import figures
from mnv2_jax.ablation.report import read_study
from mnv2_jax.ablation.style import FAILED
from mnv2_jax.ablation.views import judged_by

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
CLASSIC = RESULTS / "ablate_residual_classic_fashion_mnist"
"""A study with failed runs: one in its first arm, two in its third."""
SWEEP = RESULTS / "ablate_expansion_cost_fashion_mnist"


@pytest.fixture
def draw():
    """Draw a figure, and close it after the test."""
    drawn = []

    def of(*given):
        drawn.append(figures.draw(*given))
        return drawn[-1]

    yield of
    for figure in drawn:
        figures.plt.close(figure)


def texts_of(artist):
    return [text.get_text() for text in artist.findobj(lambda part: hasattr(part, "get_text"))]


def legend_of(figure):
    return texts_of(figure.legends[0])


def crosses_of(axes):
    """Return the number of runs drawn as failed."""
    drawn = [points for points in axes.collections if points.get_linewidth()[0] == FAILED["linewidths"]]
    return sum(len(points.get_offsets()) for points in drawn)


def test_a_figure_marks_the_paper_and_every_run(finished, draw):
    figure = draw(with_accuracies(finished.summary, linear=[0.9, 0.91], relu6=[0.8, 0.82]), finished.records)
    curves, runs, effects = figure.axes
    assert len([line for line in curves.lines if len(line.get_xdata()) == 2 and line.get_linewidth() < 1]) == 2 * 2
    assert [len(points.get_offsets()) for points in runs.collections if hasattr(points, "get_offsets")][:1] == [2]
    assert "paper's difference on ImageNet (digitized)" in legend_of(figure)
    assert any("paper: −0.6 (Fig. 6a)" in text for text in texts_of(effects))


def test_the_question_stands_apart_from_data_network_and_seeds(finished, draw):
    figure = draw(finished.summary, finished.records)
    assert figure.get_suptitle() == "Is <linear> better?"
    described = (
        "Data: handwritten digits (scikit-learn).  Baseline: MobileNetV2, width 0.1, 12 pixels.  n = 2 seeds per arm."
    )
    assert figure.subfigs[0].get_suptitle() == described


def test_every_comparison_says_its_verdict_its_value_its_interval_and_its_p(draw):
    effects = draw(*read_study(CLASSIC)).axes[-1]
    said = [text.get_text() for text in effects.texts]
    assert "verdict, difference (95 % interval), Holm's p" in said
    assert "worse (median; 1 of 8 failed)" in said
    assert "−9.73 (−67.78 to −7.43), p = 0.031" in said
    assert effects.get_xlabel().split() == ["←", "worse", "percentage", "points", "better", "→"]


def test_where_lower_is_better_the_arrows_point_the_other_way(finished, draw):
    effects = draw(judged_by(finished.summary, finished.records, "loss"), finished.records).axes[-1]
    assert effects.get_xlabel().split() == ["←", "better", "loss", "worse", "→"]


def test_a_difference_is_filled_where_it_is_decided_and_a_diamond_where_it_is_a_median(draw):
    figure = draw(*read_study(CLASSIC))
    labels = legend_of(figure)
    assert "mean difference, 95 % simultaneous interval" in labels
    assert "median difference (runs failed), 95 % simultaneous interval" in labels
    drawn = [line for line in figure.axes[-1].lines if line.get_marker() in "oD" and len(line.get_xdata())]
    assert [line.get_marker() for line in drawn] == ["o", "D", "o", "D"]  # from bottom to top
    summary, records = read_study(SWEEP)
    drawn = [
        line for line in draw(summary, records).axes[-1].lines if line.get_marker() == "o" and len(line.get_xdata())
    ]
    verdicts = {comparison["arm"]: comparison["verdict"] for comparison in summary["comparisons"]}
    in_order = sorted(verdicts, key=lambda name: -summary["arms"][name]["value"])
    filled = ["white" if verdicts[name] == "inconclusive" else "black" for name in in_order]
    assert [line.get_markerfacecolor() for line in drawn] == filled


def test_failed_runs_are_crosses_and_their_arms_median_stands_beside_the_mean(draw):
    figure = draw(*read_study(CLASSIC))
    _, runs, effects = figure.axes
    assert crosses_of(runs) == crosses_of(effects) == 3
    assert {"failed run: nearer to chance than to the median", "median (runs failed)"} <= set(legend_of(figure))
    assert "mean difference, failed runs included" in legend_of(figure)


@pytest.mark.parametrize(
    "folder", [CLASSIC, SWEEP, RESULTS / "width_resolution_fashion_mnist"], ids=lambda path: path.name
)
def test_chance_is_a_line_wherever_accuracy_is_drawn(folder, draw):
    panels = [axes for axes in draw(*read_study(folder)).axes if axes.get_title() != "The paper, on ImageNet"]
    marked = [any(line.get_label() == "chance: 10 %" for line in axes.lines) for axes in panels]
    assert marked == [True] * (len(panels) - 1) + [False]  # the panel of differences has no such line


def test_a_study_whose_arms_are_near_chance_is_stamped(finished, draw):
    said = "NOT TRAINED: ARMS ARE NEAR CHANCE"
    summary = with_accuracies(finished.summary, linear=[0.1, 0.12], relu6=[0.11, 0.1])
    assert said in texts_of(draw(summary, finished.records))
    # By another metric too.
    assert said in texts_of(draw(judged_by(summary, finished.records, "loss"), finished.records))
    trained = with_accuracies(finished.summary, linear=[0.9, 0.8], relu6=[0.11, 0.1])
    assert said not in texts_of(draw(trained, finished.records))


@pytest.mark.parametrize("kind", ["arms", "sweep", "tradeoff", "grid"])
def test_what_has_no_bounds_is_drawn_without_and_says_so(kind, finished, draw):
    arms = {
        name: {**arm, "value": place + 1.0, "series": "1"}
        for place, (name, arm) in enumerate(finished.summary["arms"].items())
    }
    texts = texts_of(draw({**finished.summary, "arms": arms, "figure": kind, "axis": "a|b"}, finished.records))
    assert any("no bound with 2 seeds" in text for text in texts)
    assert not any("interval" in text for text in texts)


def test_a_curve_is_drawn_against_the_images_of_the_arms_own_batches(finished, draw):
    summary = json.loads(json.dumps(finished.summary))
    summary["arms"]["relu6"]["training"] = {"batch_size": 8}
    curves = draw(summary, finished.records).axes[0]
    assert [list(line.get_xdata()) for line in curves.lines[:6:3]] == [[32, 64], [16, 32]]


def test_networks_of_another_kind_are_not_joined_with_those_that_are_swept(draw):
    figure = draw(*read_study(SWEEP))
    joined = [
        list(line.get_xdata())
        for line in figure.axes[0].lines
        if line.get_linestyle() == "-" and line.get_marker() in "os"
    ]
    assert joined == [[0.25, 0.5, 2, 3, 4, 6, 8, 10], [1]]
    assert "t=1: no expansion layer" in legend_of(figure)


def test_a_network_has_one_color_and_one_marker_in_all_panels(draw):
    *panels, _ = draw(*read_study(RESULTS / "width_resolution_fashion_mnist")).axes
    found = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            if label.startswith("MobileNet"):
                line = handle[0] if isinstance(handle, tuple) else handle
                found.setdefault(label[:11], set()).add((line.get_color(), line.get_marker()))
    assert {name: len(styles) for name, styles in found.items()} == {"MobileNetV2": 1, "MobileNetV1": 1}
    assert found["MobileNetV2"].isdisjoint(found["MobileNetV1"])


def test_the_best_cell_of_a_grid_is_the_brightest(draw):
    heat = draw(*read_study(RESULTS / "expressiveness_digits")).axes[0]
    (image,) = heat.images
    means = image.get_array()
    brightness = image.cmap(image.norm(means))[..., :3].sum(axis=-1)
    assert (np.argsort(means, axis=None) == np.argsort(brightness, axis=None)).all()


@pytest.mark.parametrize(
    ("folder", "panels"),
    [
        ("ablate_expansion_width_digits", ["Against t, the expansion factor", "Against multiply-adds"]),
        ("compare_v1_v2_digits", ["Training", "At the end: every run", "V2 has the highest peak memory: 96 kB, 1.8 times the 53 kB of V1"]),
        ("width_resolution_digits", ["Against multiply-adds", "Against parameters", "The paper, on ImageNet"]),
        ("expressiveness_digits", ["Mean test accuracy", "At the end: every run"]),
    ],
)  # fmt: skip
def test_each_kind_of_figure_has_its_panels(folder, panels, draw):
    titles = [axes.get_title() for axes in draw(*read_study(RESULTS / folder)).axes]
    panels = [*panels, "Difference from"]
    assert [title[: len(panel)] for title, panel in zip(titles, panels, strict=True)] == panels


@pytest.mark.parametrize("count", [2, 10])
def test_no_text_lies_on_another(count, finished, draw):
    """This holds for any number of arms and any length of their names."""
    names = ["linear", *(f"activation number {index}, of a long name" for index in range(1, count))]
    arms = {name: finished.summary["arms"]["linear" if name == "linear" else "relu6"] for name in names}
    comparisons = [{**finished.summary["comparisons"][0], "arm": name} for name in names[1:]]
    records = [record for record in finished.records if record.arm == "linear"]
    copies = [type(record)(**{**vars(record), "arm": name}) for name in names for record in records]
    figure = draw({**finished.summary, "arms": arms, "comparisons": comparisons}, copies)
    figure.canvas.draw()
    texts = [text for text in figure.findobj(figures.plt.Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    shown = [(text, box) for text, box in boxes if box.width and figure.bbox.overlaps(box)]
    assert not [(a, b) for (a, one), (b, two) in itertools.combinations(shown, 2) if one.overlaps(two)]
    whole = figure.bbox.padded(2)
    assert not [text for text, box in shown if not (whole.x0 <= box.x0 and box.x1 <= whole.x1)]


def test_the_pareto_front_has_no_point_with_a_cheaper_one_that_is_as_good():
    points = [(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (4, 0.9)]
    assert figures.pareto(points) == [(1, 0.5), (2, 0.6), (4, 0.9)]
    assert figures.pareto(points, higher_is_better=False) == [(1, 0.5), (2, 0.4)]
