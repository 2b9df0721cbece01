import json

import matplotlib.pyplot as plt
import pytest
from ablation.studies import with_accuracies

from experiments.scripts import EXPERIMENTS, load, study_of
from mnv2_jax.errors import UserError


def test_every_budget_is_a_study_of_its_own():
    script = load("budget")
    options = script.Options(budgets=(64, 640), seeds=7)
    studies = [script.create(options, images) for images in options.budgets]
    assert [study.training.images for study in studies] == [64, 640]
    assert {study.seeds for study in studies} == {7}
    assert [arm.name for arm in studies[0].arms] == ["linear", "relu6"]
    classic = study_of("budget", claim="classic")
    assert [arm.name for arm in classic.arms] == ["inverted", "classic depthwise, madds", "classic full, madds"]


def test_images_are_for_budgets_to_set():
    from mnv2_jax.training.config import Recipe

    with pytest.raises(UserError, match="--images is set by --budgets; remove it"):
        load("budget").Options(training=Recipe(1, 16, 0.1, images=32))
    with pytest.raises(UserError, match="--budgets must name at least one"):
        load("budget").Options(budgets=())
    with pytest.raises(UserError, match="--budgets 16 is less than one batch of 32; use 32 or more"):
        load("budget").Options(budgets=(640, 16))


def test_the_figure_shows_every_budget_with_its_interval():
    script = load("budget")
    committed = json.loads((EXPERIMENTS / "results" / "ablate_bottleneck_digits" / "summary.json").read_text())
    summaries = []
    for images, gap in ((640, 0.2), (6400, 0.01)):
        linear = [0.9, 0.91, 0.92, 0.9, 0.93, 0.94]
        made = with_accuracies(committed, linear=linear, relu6=[value - gap for value in linear])
        summaries.append({**made, "budget": {**made["budget"], "images": images}})
    assert script.finding(summaries) == (
        "Difference from linear after 640 and 6,400 images, in percentage points: relu6 −20.0 and −1.0"
    )
    figure = script.draw(summaries)
    right = figure.axes[1]
    assert [text.get_text() for text in right.get_xticklabels()] == ["640", "6,400"]
    line = next(line for line in right.get_lines() if line.get_label() == "relu6, difference with 95 % interval")
    assert list(line.get_ydata()) == pytest.approx([-20, -1])
    labels = right.get_legend_handles_labels()[1]
    assert "paper's difference on ImageNet (Fig. 6a, digitized)" in labels
    plt.close(figure)
