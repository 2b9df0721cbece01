"""The command itself, as a user runs it: in a process of its own."""

import functools
import json
import os
import pty
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mnv2_jax import cli
from mnv2_jax.data import resident
from mnv2_jax.models.layers import ACTIVATIONS

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "experiments" / "ablate_bottleneck.py")
TINY = [
    "--seeds",
    "2",
    "--epochs",
    "1",
    "--width-multiplier",
    "0.1",
    "--expansion",
    "2",
    "--train-images",
    "64",
]


@pytest.fixture
def command(data_dir, tmp_path):
    """Runs the script with one CPU device and this session's data and compilation cache."""

    def start(*flags, **options):
        environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "TFDS_DATA_DIR": str(data_dir),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "COLUMNS": "200",
        }
        return subprocess.Popen([sys.executable, SCRIPT, *flags], cwd=tmp_path, env=environment, text=True, **options)

    def run(*flags):
        process = start(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    run.start = start
    return run


@pytest.fixture
def in_this_process(data_dir, tmp_path, monkeypatch):
    """The script's exit code, without the seconds that a process of its own needs to start."""
    monkeypatch.setattr(resident, "load", functools.partial(resident.load, data_dir=data_dir))
    monkeypatch.chdir(tmp_path)
    # These change the process for good.
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(SCRIPT, run_name="__main__")
        return stop.value.code

    return run


def test_from_flags_to_files_and_again(command, digits, tmp_path):
    code, output, errors = command("--activation", "relu6", *TINY)
    assert (code, errors) == (0, "")
    folder = tmp_path / "runs" / "ablate_bottleneck-digits-relu6"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints", "config.json", "metrics.jsonl", "timings.jsonl", "summary.json", "figure.png", "figure.svg", "report.html"
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"].endswith("ablate_bottleneck.py --activation relu6 " + " ".join(TINY))
    assert summary["model"]["unit_strides"] == 1
    assert summary["budget"]["test_images"] == 454
    assert set(summary["environment"]) >= {"jax", "device", "device_count", "git"}
    assert "inconclusive" in output
    assert "figure.png" in output
    # Nothing in the output but what we print.
    known = (
        "ablate_bottleneck on",
        "linear",
        "relu6",
        "4 runs trained",
        "",
        "Is a linear",
        "┏",
        "┃",
        "┡",
        "│",
        "└",
        "runs/",
    )
    assert [line for line in output.splitlines() if not line.startswith(known[:4] + known[5:]) and line] == []

    before = (folder / "summary.json").read_bytes()
    code, output, _ = command("--activation", "relu6", *TINY)
    assert code == 0
    assert "4 of 4 runs were finished before" in output
    assert (folder / "summary.json").read_bytes() == before

    code, _, errors = command("--activation", "relu6", *TINY, "--learning-rate", "0.5")
    assert code == 2
    assert "learning_rate is 0.02 there and 0.5 here" in errors


def test_a_terminal_gets_a_bar_and_interrupt_ends_cleanly_and_says_how_to_go_on(command, digits, tmp_path):
    ours, theirs = pty.openpty()
    process = command.start("--activation", "relu6", *TINY, "--seeds", "200", stdout=theirs, stderr=theirs)
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
    for part in ("linear, relu6 seed 0 step", "loss", "images/s", "left", "━"):
        assert part in text
    assert "the same command continues" in text
    assert "Traceback" not in text
    code, output, _ = command("--activation", "relu6", *TINY)
    assert code == 0
    assert "of 4 runs were finished before" in output


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--activation", "relu7"], "invalid choice 'relu7' for argument '--activation'. Expected one of ('relu6', 'relu'"),
        (["--activation", "linear"], "invalid choice 'linear'"),
        (["--dataset", "mnist"], "invalid choice 'mnist' for argument '--dataset'. Expected one of ('digits', 'fashion_mnist', 'cifar10', 'cifar100')"),
        (["--colour", "red"], "Unrecognized options: --colour"),
        (["--seeds", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--seeds", "0"], "--seeds must be 2 or more"),
        (["--epochs", "0"], "--epochs must be greater than 0, got 0"),
        (["--batch-size", "-4"], "--batch-size must be greater than 0, got -4"),
        (["--width-multiplier", "0"], "--width-multiplier must be greater than 0 and below 100, got 0"),
        (["--expansion", "-1"], "--expansion must be greater than 0 and below 100, got -1"),
        (["--unit-strides", "6"], "--unit-strides must be from 0 to 5, got 6"),
        (["--validation-images", "0"], "--validation-images must be between 1 and the 134 of digits, got 0"),
        (["--learning-rate", "nan"], "--learning-rate must be greater than 0, got nan"),
        (["--batch-size", "5000"], "--batch-size 5000 is more than the 1209 images of the training split; take 1209 or fewer"),
        (["--dataset", "fashion_mnist", "--data-files", "nowhere"], "nowhere is not a folder; expected the four IDX files"),
        (["--out", "/proc/mine"], "--out /proc/mine cannot be written"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(in_this_process, digits, tmp_path, capfd, flags, says):
    assert in_this_process(*flags) == 2
    output, errors = capfd.readouterr()
    assert says in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in output + errors
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_bad_input_ends_the_same_way(command, digits, tmp_path):
    code, _, errors = command("--batch-size", "5000")
    assert code == 2
    assert errors == "error: --batch-size 5000 is more than the 1209 images of the training split; take 1209 or fewer\n"
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_flag_with_its_default(command):
    code, output, _ = command("--help")
    assert code == 0
    for flag in ("activation", "dataset", "data-files", "train-images", "seeds", "epochs", "width-multiplier", "expansion",
                 "batch-size", "learning-rate", "out", "overwrite"):  # fmt: skip
        assert f"--{flag}" in output
    assert output.count("default:") >= 11
    for activation in set(ACTIVATIONS) - {"linear"}:
        assert activation in output


@pytest.mark.fashion_mnist
def test_real_fashion_mnist_from_files(command, fashion_files, tmp_path):
    code, _, errors = command("--dataset", "fashion_mnist", "--data-files", str(fashion_files), *TINY)
    assert (code, errors) == (0, "")
    summary = json.loads((tmp_path / "runs/ablate_bottleneck-fashion_mnist-relu6/summary.json").read_text())
    assert summary["budget"]["test_images"] == 10_000
