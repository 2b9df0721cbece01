"""activation_patterns.py, training a network of two blocks."""

import functools
import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.scripts import EXPERIMENTS, load
from mnv2_jax.data import open as open_module
from mnv2_jax.models.create import create_model
from mnv2_jax.network import Network, save_network, variable_shapes
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.training.config import Recipe, Run

TINY = {"width_multiplier": 0.1, "unit_strides": 0, "stages": ((1, 16, 1, 2), (2, 24, 1, 2)), "expansion": 2.0}


@pytest.fixture
def run(command, one_device, monkeypatch, digits):
    """Run the script; return its exit code."""

    def tiny_run(options, dataset):
        recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.02, evaluations=1, images=32)
        model = {"name": "mobilenet_v2", **TINY}
        return Run(dataset, model, recipe, seed=options.seed, train_images=32, validation_images=20)

    monkeypatch.setattr(load("activation_patterns"), "create_run", tiny_run)
    monkeypatch.setattr(open_module, "load", functools.cache(open_module.load))
    return lambda *flags: command("activation_patterns", *flags)


@pytest.mark.slow
def test_from_flags_to_files_and_again(run, tmp_path, capsys, monkeypatch):
    assert run("--images", "20") == 0
    folder = tmp_path / "runs" / "activation_patterns"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "figure.png", "figure.svg", "summary.json", "training"
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert {"experiment", "environment", "command", "findings", "before", "after"} <= summary.keys()
    assert summary["before"]["blocks"]["block_1"]["bottleneck"] == 8
    assert summary["after"]["layers"]["stem"]["positive"]["minimum"] >= 0
    assert "after training all but two layers stay above the threshold" in capsys.readouterr().out

    # Draw only once: drawing takes as long as everything else.
    monkeypatch.setattr(load("activation_patterns"), "draw", lambda *given: plt.figure())
    assert run("--images", "20") == 0
    assert "only the figure is redrawn" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text()) == summary
    # Recompute from the trained network, which is kept.
    (folder / "summary.json").unlink()
    assert run("--images", "20") == 0
    assert "This run is already finished." in capsys.readouterr().out
    again = json.loads((folder / "summary.json").read_text())
    # The commit of the source may have changed meanwhile.
    assert {**again, "environment": summary["environment"]} == summary

    assert run("--images", "21") == 2
    assert "images is 20 there and 21 here" in capsys.readouterr().err
    # The trained network by its own path: it knows its data set, and its initial weights were the same.
    assert run("--weights", str(folder / "training"), "--images", "20", "--out", "other") == 0
    other = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert (other["before"], other["after"]) == (summary["before"], summary["after"])


@pytest.fixture
def committed():
    """Return the committed summary, for digits."""
    return json.loads((EXPERIMENTS / "results" / "activation_patterns" / "summary.json").read_text())


def test_what_can_be_inverted_is_drawn_where_something_cannot(committed):
    script, model = load("activation_patterns"), create_model("mobilenet_v2", width_multiplier=0.35)
    figure = script.draw(committed, model)
    assert len(figure.axes) == 4
    plt.close(figure)
    said = "50 % of the channels are positive before training and 48 % after it; all 16 expansions can be inverted everywhere"
    assert script.finding(committed) == said
    committed["after"]["blocks"]["block_3"]["invertible"]["positions"] = 0.9
    figure = script.draw(committed, model)
    assert len(figure.axes) == 6
    plt.close(figure)
    assert "15 of 16 expansions can be inverted everywhere" in script.finding(committed)


def test_bad_input_is_one_line_and_nothing_is_written(run, tmp_path, capsys):
    def checkpoint(name, kind, **settings):
        model = create_model(kind, num_classes=10, **settings)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model, 1))
        network = Network(model, zeros, Classification(10), "test", "keras", 28, image_channels=1)
        save_network(tmp_path / name, network)
        return name

    (tmp_path / "empty").mkdir()
    v2 = checkpoint("v2", "mobilenet_v2", **TINY)
    cases = [
        (("--weights", "hf://nobody/nothing/at/all"), "hf://nobody/nothing/at/all"),
        (("--weights", "empty", "--dataset", "digits"), "empty"),
        (("--weights", "nowhere", "--dataset", "digits"), "nowhere does not exist"),
        (("--weights", v2), "v2 does not record what it was trained on"),
        (
            ("--weights", v2, "--dataset", "digits", "--images", "500"),
            "--images must be from 1 to 454, the number of images",
        ),
        (
            ("--weights", checkpoint("v1", "mobilenet_v1", width_multiplier=0.1), "--dataset", "digits"),
            "the network is a MobileNetV1",
        ),
        (
            ("--weights", checkpoint("t1", "mobilenet_v2", **{**TINY, "expansion": 1.0}), "--dataset", "digits"),
            "there are no expansions",
        ),
        (
            ("--weights", checkpoint("tanh", "mobilenet_v2", **TINY, activation="tanh"), "--dataset", "digits"),
            "the network's activation is tanh",
        ),
        (("--dataset", "imagenette"), "this script cannot train a network on imagenette; choose from digits"),
        (("--images", "0"), "--images must be 1 or more"),
        (("--seed", "-1"), "--seed must be from 0"),
        (("--width-multiplier", "0"), "--width-multiplier must be greater than 0"),
    ]
    for flags, message in cases:
        assert run(*flags, "--out", "out") == 2, flags
        errors = capsys.readouterr().err
        assert message in errors, errors
        assert errors.count("\n") == 1
        assert not (tmp_path / "out").exists()
