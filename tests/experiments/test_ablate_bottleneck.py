"""The main script, in this process and, as users run it, in its own process."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ablation.studies import interrupt, quick, stopping
from rich.console import Console

from experiments import tiny_study
from experiments.scripts import EXPERIMENTS, costs_of, study_of
from mnv2_jax.ablation import design, study
from mnv2_jax.environment import core_count
from mnv2_jax.models.names import ACTIVATIONS

# fmt: off
TINY = [
    "--activation", "relu6", "--seeds", "2", "--epochs", "1", "--batch-size", "16", "--evaluations", "2", "--width-multiplier", "0.1",
    "--unit-strides", "0", "--resolution", "12", "--train-images", "64", "--validation-images", "30",
]
# fmt: on
FOLDER = Path("runs") / "ablate_bottleneck-digits-relu6"


@pytest.fixture
def tiny(command, digits, monkeypatch):
    """Run the script in this process with a network of one block; return its exit code."""
    monkeypatch.setattr(design, "shared_settings", tiny_study.shared_settings)
    with quick():
        yield lambda *flags: command("ablate_bottleneck", *TINY, *flags)


@pytest.fixture
def start(data_dir, tmp_path):
    """Start the script in a new process, with this session's data and compilation cache."""

    def process(*flags, **options):
        environment = {
            **os.environ,
            # Without the tests' eight devices: the command makes its own.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "TFDS_DATA_DIR": str(data_dir),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "COLUMNS": "200",
        }
        command = [sys.executable, Path(__file__).with_name("tiny_study.py"), EXPERIMENTS / "ablate_bottleneck.py"]
        return subprocess.Popen([*command, *flags], cwd=tmp_path, env=environment, text=True, **options)

    return process


def test_several_activations_against_linear(digits):
    study = study_of("ablate_bottleneck", activation=("relu6", "hard_swish", "relu6"))
    assert [arm.name for arm in study.arms] == ["linear", "relu6", "hard_swish"]
    assert study.seeds == 7
    assert study.arms[1].paper.difference == -0.006
    assert len(set(costs_of(study, digits).values())) == 1


def check_output(output):
    """Check that the output is what we print and nothing else."""
    few = "Fewer than 6 seeds cannot reach p < 0.05 here; use --seeds 6 to add runs."
    assert few in output.splitlines()
    known = ("ablate_bottleneck on", "linear", "relu6", "4 runs trained", "Is a linear", *"┏┃┡│└", few, "runs/")
    assert [line for line in output.splitlines() if line and not line.startswith(known)] == []
    assert "inconclusive" in output
    assert "figure.png" in output


def check_files(folder):
    """Check the files that a study leaves; return its summary."""
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard", "timings.jsonl", "summary.json", "figure.png",
        "figure.svg", "report.html",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"].endswith("ablate_bottleneck.py " + " ".join(TINY))
    assert summary["model"]["unit_strides"] == 0
    assert summary["budget"]["test_images"] == 454
    assert set(summary["environment"]) >= {"jax", "device", "device_count", "git"}
    return summary


def test_from_flags_to_files_and_again(tiny, tmp_path, capsys):
    assert tiny() == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    check_output(output)
    check_files(tmp_path / FOLDER)

    before = (tmp_path / FOLDER / "summary.json").read_bytes()
    assert tiny() == 0
    assert "4 of 4 runs are already finished" in capsys.readouterr().out
    assert (tmp_path / FOLDER / "summary.json").read_bytes() == before

    assert tiny("--learning-rate", "0.5") == 2
    assert "learning_rate is 0.02 there and 0.5 here" in capsys.readouterr().err
    assert (tmp_path / FOLDER / "summary.json").read_bytes() == before


def test_a_terminal_gets_a_bar_and_interrupt_says_how_to_continue(tiny, capsys, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr(study, "create_console", lambda: console)

    def stop():
        console.print()  # draws the bar, however little time has passed
        interrupt()

    monkeypatch.setattr(study, "Reporter", stopping(3, stop))
    assert tiny() == 130
    assert "run the same command to resume" in capsys.readouterr().err
    for part in ("linear, relu6 seed 0 step 3/4", "loss", "images/s", "left", "━"):
        assert part in screen.getvalue(), part


@pytest.mark.slow
def test_a_process_from_flags_to_files(start, digits, tmp_path):
    process = start(*TINY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    check_output(output)
    assert check_files(tmp_path / FOLDER)["environment"]["device_count"] == core_count()


@pytest.mark.slow
def test_a_process_in_a_terminal_is_interrupted_and_continues(start, digits, tmp_path):
    ours, theirs = pty.openpty()
    process = start(*TINY, "--seeds", "200", stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, interrupted = b"", False
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux raises this when the other end is closed
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
    assert "run the same command to resume" in text
    assert "Traceback" not in text
    output, _ = start(*TINY, stdout=subprocess.PIPE).communicate(timeout=300)
    assert "of 4 runs are already finished" in output
    check_files(tmp_path / FOLDER)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--activation", "relu7"], "unknown --activation relu7; choose from relu6, relu, "),
        (["--activation", "linear"], "unknown --activation linear; choose from"),
        (["--dataset", "mnist"], "mnist is not prepared in"),
        (["--colour", "red"], "unrecognized option --colour; see --help"),
        (["--seeds", "many"], "--seeds takes whole numbers, got many"),
        (["--seeds", "0"], "--seeds must be 2 or more"),
        (["--epochs", "0"], "--epochs must be greater than 0, got 0"),
        (["--batch-size", "-4"], "--batch-size must be greater than 0, got -4"),
        (["--width-multiplier", "0"], "--width-multiplier must be greater than 0 and below 100, got 0"),
        (["--expansion", "-1"], "--expansion must be greater than 0 and below 100, got -1"),
        (["--unit-strides", "6"], "--unit-strides must be from 0 to 5, got 6"),
        (["--resolution", "0"], "--resolution must be from 1 to 4096 pixels, got 0"),
        (["--validation-images", "0"], "--validation-images must be from 1 to 134, the number of images available in digits, got 0"),
        (["--learning-rate", "nan"], "--learning-rate must be greater than 0, got nan"),
        (["--batch-size", "5000"], "--batch-size 5000 exceeds the 1,209 images of the training split; use 1209"),
        (["--freeze", "backbone"], "--freeze requires trained weights"),
        (["--dataset", "fashion_mnist", "--data-files", "nowhere"], "nowhere is not a folder; expected the four IDX files"),
        (["--out", "/proc/mine"], "--out /proc/mine cannot be written"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(refused, digits, flags, says):
    assert says in refused("ablate_bottleneck", *flags)


@pytest.mark.slow
def test_a_process_of_bad_input_ends_the_same_way(start, digits, tmp_path):
    process = start("--batch-size", "5000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors == "error: --batch-size 5000 exceeds the 1,209 images of the training split; use 1209 or less\n"
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


@pytest.mark.fashion_mnist
def test_real_fashion_mnist_from_files(start, fashion_files, tmp_path):
    process = start("--dataset", "fashion_mnist", "--data-files", str(fashion_files), *TINY, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    summary = json.loads((tmp_path / "runs/ablate_bottleneck-fashion_mnist-relu6/summary.json").read_text())
    assert summary["budget"]["test_images"] == 10_000
