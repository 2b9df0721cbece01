"""The main command, as a user runs it: in a process of its own, and where it trains nothing, in this one."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import tiny_study
from experiments.scripts import EXPERIMENTS, costs_of, load, study_of
from mnv2_jax.ablation import design
from mnv2_jax.environment import core_count
from mnv2_jax.models.names import ACTIVATIONS

SCRIPT = EXPERIMENTS / "ablate_bottleneck.py"
TINY = [
    "--activation",
    "relu6",
    "--seeds",
    "2",
    "--epochs",
    "1",
    "--evaluations",
    "2",
    "--width-multiplier",
    "0.1",
    "--train-images",
    "64",
    "--resolution",
    "12",
]


@pytest.fixture
def start(data_dir, tmp_path):
    """Starts the script in an empty folder with this session's data and compilation cache."""

    def process(*flags, **options):
        environment = {
            **os.environ,
            # As many devices as the command finds.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "TFDS_DATA_DIR": str(data_dir),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "COLUMNS": "200",
        }
        command = [sys.executable, Path(__file__).with_name("tiny_study.py"), SCRIPT, *flags]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **options)

    return process


@pytest.fixture(scope="module")
def trained(digits, data_dir, tmp_path_factory):
    """What a process left and said: (its folder, exit code, output, errors)."""
    folder = tmp_path_factory.mktemp("process")
    process = start.__wrapped__(data_dir, folder)(*TINY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    return folder / "runs" / "ablate_bottleneck-digits-relu6", process.returncode, output, errors


def test_several_activations_against_linear(digits):
    study = study_of("ablate_bottleneck", activation=("relu6", "hard_swish", "relu6"))
    assert [arm.name for arm in study.arms] == ["linear", "relu6", "hard_swish"]
    assert study.seeds == 7
    assert study.arms[1].paper.difference == -0.006
    assert len(set(costs_of(study, digits).values())) == 1


def test_from_flags_to_files(trained):
    folder, code, output, errors = trained
    assert (code, errors) == (0, "")
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard", "timings.jsonl", "summary.json", "figure.png",
        "figure.svg", "report.html",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"].endswith("ablate_bottleneck.py " + " ".join(TINY))
    assert summary["model"]["unit_strides"] == 3
    assert summary["environment"]["device_count"] == core_count()
    assert summary["budget"]["test_images"] == 454
    assert set(summary["environment"]) >= {"jax", "device", "device_count", "git"}
    assert "inconclusive" in output
    assert "figure.png" in output
    # Nothing in the output but what we print.
    known = ("ablate_bottleneck on", "linear", "relu6", "4 runs trained", "Is a linear", *"┏┃┡│└", "runs/")
    assert [line for line in output.splitlines() if line and not line.startswith(known)] == []


def test_the_same_command_again_trains_nothing_and_other_flags_are_refused(trained, command, capfd, monkeypatch):
    folder, *_ = trained
    monkeypatch.setattr(design, "shared_settings", tiny_study.shared_settings)
    before = (folder / "summary.json").read_bytes()
    assert command("ablate_bottleneck", *TINY, "--out", folder, "--learning-rate", "0.5") == 2
    assert "learning_rate is 0.02 there and 0.5 here" in capfd.readouterr().err
    assert (folder / "summary.json").read_bytes() == before


def test_a_terminal_gets_a_bar_and_interrupt_ends_cleanly_and_says_how_to_continue(start, digits, tmp_path):
    ours, theirs = pty.openpty()
    process = start(*TINY, "--seeds", "200", stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, interrupted = b"", False
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end was closed
            chunk = b""
        if not chunk:
            break
        seen += chunk
        if not interrupted and b"linear seed 0: test accuracy" in seen:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(ours)
    assert process.wait(60) == 130
    text = seen.decode()
    for part in ("linear, relu6 seed 0", "step", "loss", "images/s", "left", "━"):
        assert part in text
    assert "the same command continues" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--activation", "relu7"], "invalid choice 'relu7' for argument '--activation'. Expected one of ('relu6', 'relu'"),
        (["--activation", "linear"], "invalid choice 'linear'"),
        (["--dataset", "mnist"], "mnist is not prepared in"),
        (["--colour", "red"], "Unrecognized options: --colour"),
        (["--seeds", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--seeds", "0"], "--seeds must be 2 or more"),
        (["--epochs", "0"], "--epochs must be greater than 0, got 0"),
        (["--batch-size", "-4"], "--batch-size must be greater than 0, got -4"),
        (["--width-multiplier", "0"], "--width-multiplier must be greater than 0 and below 100, got 0"),
        (["--expansion", "-1"], "--expansion must be greater than 0 and below 100, got -1"),
        (["--unit-strides", "6"], "--unit-strides must be from 0 to 5, got 6"),
        (["--resolution", "0"], "--resolution must be from 1 to 4096 pixels, got 0"),
        (["--validation-images", "0"], "--validation-images must be between 1 and the 134 of digits, got 0"),
        (["--learning-rate", "nan"], "--learning-rate must be greater than 0, got nan"),
        (["--batch-size", "5000"], "--batch-size 5000 is more than the 1209 images of the training split; take 1209 or fewer"),
        (["--freeze", "backbone"], "--freeze is for a run that starts from trained weights"),
        (["--dataset", "fashion_mnist", "--data-files", "nowhere"], "nowhere is not a folder; expected the four IDX files"),
        (["--out", "/proc/mine"], "--out /proc/mine cannot be written"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(refused, digits, flags, says):
    assert says in refused("ablate_bottleneck", *flags)


def test_a_process_of_bad_input_ends_the_same_way(start, digits, tmp_path):
    process = start("--batch-size", "5000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors == "error: --batch-size 5000 is more than the 1209 images of the training split; take 1209 or fewer\n"
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_flag_with_its_default(command, capsys):
    assert command("ablate_bottleneck", "--help") == 0
    output = capsys.readouterr().out
    for flag in ("activation", "dataset", "data-files", "train-images", "seeds", "epochs", "width-multiplier", "expansion",
                 "batch-size", "learning-rate", "label-smoothing", "ema-decay", "out", "overwrite"):  # fmt: skip
        assert f"--{flag}" in output
    assert output.count("default:") >= 11
    for activation in set(ACTIVATIONS) - {"linear"}:
        assert activation in output
    assert "Should the bottleneck be linear?" in load("ablate_bottleneck").__doc__


@pytest.mark.fashion_mnist
def test_real_fashion_mnist_from_files(start, fashion_files, tmp_path):
    process = start("--dataset", "fashion_mnist", "--data-files", str(fashion_files), *TINY, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    summary = json.loads((tmp_path / "runs/ablate_bottleneck-fashion_mnist-relu6/summary.json").read_text())
    assert summary["budget"]["test_images"] == 10_000
