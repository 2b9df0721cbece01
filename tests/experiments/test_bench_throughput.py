import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.scripts import load
from mnv2_jax.errors import UserError
from mnv2_jax.models import mobilenet_v2
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.mobilenet_v2 import MobileNetV2

TINY = ["--width-multiplier", "0.1", "--resolution", "32", "--batch-size", "2", "--rounds", "2", "--steps", "1"]


@pytest.fixture(scope="module")
def script():
    return load("bench_throughput")


def check(found, folder):
    """Check the results for our network alone, in two rounds."""
    assert [result["task"] for result in found["results"]] == ["train", "evaluate"]
    for result in found["results"]:
        assert (result["width_multiplier"], result["resolution"], result["batch_size"]) == (0.1, 32, 2)
        low, high = result["spread"]["ours"]
        assert 0 < low <= result["images_per_second"]["ours"] <= high
        assert result["ratio"] == {}
    assert "memory_mb" in found["results"][0]
    assert json.loads((folder / "results.json").read_text()) == found
    assert found["versions"]["ours"].keys() == {"jax", "flax", "python"}
    assert found["device"] == {"ours": "cpu"}
    assert {path.name for path in folder.iterdir()} == {"results.json", "figure.png", "figure.svg"}
    assert (folder / "figure.png").stat().st_size > 1000


class HereWorker:
    """A `Worker` in this process, with a network of two blocks."""

    def __init__(self, name, task, python, settings, folder):
        self.steps_ = networks().ours(task, settings, folder)
        self.device = next(self.steps_)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def steps(self, count, memory=False):
        losses = [next(self.steps_) for _ in range(count)]
        versions = dict.fromkeys(("jax", "flax", "python"), "0")
        answer = {"seconds": 0.1, "loss": losses[0], "device": self.device, "versions": versions}
        return {**answer, "memory_mb": 1.0} if memory else answer


def networks():
    return sys.modules["throughput_networks"]


class TwoBlocks(MobileNetV2):
    stages: tuple[Stage, ...] = (Stage(1, 16, 1, 2), Stage(6, 24, 1, 2))


@pytest.mark.slow
def test_rates_of_ours_alone(script, command, capsys, tmp_path, monkeypatch):
    """Both tasks start from one set of weights, in this process."""

    def write_inputs(command, **_):
        assert command[2] == "inputs"
        networks().write_inputs(json.loads(command[3]), Path(command[4]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(mobilenet_v2, "MobileNetV2", TwoBlocks)
    monkeypatch.setattr(script, "Worker", HereWorker)
    monkeypatch.setattr(script.subprocess, "run", write_inputs)
    assert command("bench_throughput", *TINY, "--json", "--out", "out") == 0
    found = json.loads(capsys.readouterr().out)
    check(found, tmp_path / "out")
    assert found["results"][0]["images_per_second"] == {"ours": pytest.approx(20)}


def test_a_ratio_is_of_the_same_round(script):
    found = script.summarize({"ours": [10.0, 20.0, 30.0], "torch": [5.0, 40.0, 15.0]})
    assert found["ratio"] == {"torch": 2.0}
    assert found["ratio_spread"] == {"torch": [0.5, 2.0]}
    assert found["images_per_second"] == {"ours": 20.0, "torch": 15.0}


def test_names_are_told_apart_by_spaces_or_commas(script):
    assert script.split(("torch,keras",)) == script.split(("torch", "keras", "torch")) == ("torch", "keras")
    assert script.split(()) == ()


def test_a_process_that_fails_says_its_last_line(script, tmp_path):
    with (
        script.Worker("ours", "train", Path(sys.executable), {"convention": "tensorflow"}, tmp_path) as worker,
        pytest.raises(UserError, match="^ours failed: KeyError: 'width_multiplier'"),
    ):
        worker.steps(1)


def test_networks_that_compute_something_else_are_not_compared(script):
    script.check_loss("torch", "train", 7.0001, 7.0)
    with pytest.raises(
        UserError, match=r"torch does not compute the same in train: its loss is 7\.10000, ours is 7\.0"
    ):
        script.check_loss("torch", "train", 7.1, 7.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "torch,jaxx"], "unknown --peers jaxx; choose from torch, keras"),
        (["--batch-size", "1"], "--batch-size must be 2 or more"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (
            ["--peers", "torch", "--peer-python", "/nowhere"],
            "--peer-python /nowhere is not a Python interpreter with torch",
        ),
        (["--tasks", "train,guess"], "unknown --tasks guess; choose from train, evaluate"),
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--width-multiplier", "nan"], "--width-multiplier must be greater than 0, got nan"),
        (["--out", "/proc/mine"], "--out /proc/mine cannot be written"),
        (["--out", "/dev/null"], "--out /dev/null is a file, not a folder"),
        (["--peers", "torch", "--unit-strides", "2"], "--unit-strides must be 0 to 1 with --peers"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, says):
    assert says in refused("bench_throughput", *arguments)
