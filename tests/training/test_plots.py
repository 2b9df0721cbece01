"""The figure of one run."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.metrics import Record, read_records
from mnv2_jax.training.plots import describe_training, draw_run, windows

COMMITTED = Path(__file__).parents[2] / "experiments" / "results" / "train_fashion_mnist"


def record(step, loss, images):
    return Record("a", 0, step, "train", 0.0, {"loss": loss}, images)


def test_a_point_is_a_mean_over_a_window_in_which_each_image_counts_once():
    """500 steps, ten per window. The second record ends early because the run was evaluated after step 12."""
    records = [record(10, 5.0, 100), record(12, 9.0, 20), record(20, 1.0, 80), record(30, 2.0, 100)]
    middles, means = windows(records, "loss", 500)
    assert middles == [5, 15, 25]
    assert means == pytest.approx([5, (9 * 20 + 1 * 80) / 100, 2])


def test_a_run_of_few_records_is_drawn_as_it_is():
    assert windows([record(1, 3.0, 8), record(2, 2.0, 8)], "loss", 2) == ([0.5, 1.5], [3, 2])


def test_a_figure_says_what_was_trained_and_how():
    """Also for a run of an earlier version, which has fewer settings."""
    summary = json.loads((COMMITTED / "summary.json").read_text())
    assert describe_training(summary) == (
        "mobilenet_v2 on Fashion-MNIST",
        "width 0.35, 28 pixels, seed 0",
        "4 epochs of 54,000 images (3,372 steps, batch size 64), SGD, learning rate 0.05",
    )
    more = {"dataset": "folder", "weights": "hub/net", "freeze": "backbone", "images": 640, "optimizer": "adamw"}
    settings = {**summary["settings"], **more, "mixup": 0.2, "rand_augment": 2, "expansion": 3.0, "resolution": 96}
    assert describe_training({**summary, "settings": settings, "data_files": "/home/me/pets"}) == (
        "mobilenet_v2 on pets",
        "width 0.35, expansion 3, 96 pixels, from hub/net, backbone frozen, seed 0",
        "640 images drawn from 54,000 (3,372 steps, batch size 64), AdamW, learning rate 0.05, mixup 0.2, RandAugment 2",
    )


def test_a_figure_marks_the_best_step_and_the_test_split():
    records = read_records(COMMITTED / "metrics.jsonl")
    summary = {**json.loads((COMMITTED / "summary.json").read_text()), "best": {"step": 3035, "validation": {}}}
    figure = draw_run(records, summary, Classification.metric)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["training, mean of about 67 steps", "validation", "best 91.93 %", "test 91.23 %"]
    assert figure.axes[0].get_ylabel() == "loss (nats per image)"
    plt.close(figure)
