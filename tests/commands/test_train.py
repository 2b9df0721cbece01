"""`python -m mnv2_jax`: train, evaluate, datasets; and `experiments/train_imagenet.py`, which is train."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from samples import prepare_imagenet_like, write_folder

from mnv2_jax.commands import train
from mnv2_jax.training.config import RECIPES
from mnv2_jax.training.metrics import read_records
from mnv2_jax.weights.load import load_weights

ROOT = Path(__file__).parents[2]
IMAGENET = ROOT / "experiments" / "train_imagenet.py"
# Seventeen blocks without expansion: compiled in seconds.
TINY = ["--width-multiplier", "0.1", "--expansion", "1", "--epochs", "1", "--batch-size", "240", "--evaluations", "2"]


@pytest.fixture(scope="module")
def finished(data_dir, digits, tmp_path_factory):
    """The folder of a run, and what was printed."""
    from mnv2_jax import cli

    folder = tmp_path_factory.mktemp("train") / "run"
    train.main(cli.parse(train.Options, "", [*TINY, "--ema-decay", "0.5", "--out", str(folder)]))
    return folder


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "network",
        "summary.json",
        "tensorboard",
        "figure.png",
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["test"]["examples"] == 454
    assert summary["settings"]["ema_decay"] == 0.5
    assert len(summary["parameters_sha256"]) == 64
    records = read_records(finished / "metrics.jsonl")
    assert [(r.step, r.split) for r in records if r.split != "train"] == [
        (2, "validation"),
        (5, "validation"),
        (5, "test"),
    ]
    assert {"loss", "accuracy", "top5_accuracy", "learning_rate"} == set(records[0].metrics)


def test_tensorboard_has_every_record(finished):
    (file,) = (finished / "tensorboard").iterdir()
    content = file.read_bytes()
    for name in (b"train/learning_rate", b"validation/accuracy", b"test/top5_accuracy", b"train/images_per_second"):
        assert name in content


def test_a_finished_run_is_not_repeated(finished, run):
    code, output, _ = run("train", *TINY, "--ema-decay", "0.5", "--out", finished)
    assert code == 0
    assert "finished before" in output
    code, _, errors = run("train", *TINY, "--ema-decay", "0.9", "--out", finished)
    assert code == 2
    assert "holds another run: ema_decay is 0.5 there and 0.9 here" in errors


def test_evaluation_of_a_run_is_what_the_run_says(finished, run):
    summary = json.loads((finished / "summary.json").read_text())
    for weights in (finished, finished / "network"):
        code, output, errors = run("evaluate", "--weights", weights, "--dataset", "digits", "--json")
        assert (code, errors) == (0, "")
        found = json.loads(output)
        assert found["examples"] == 454
        for name in ("loss", "accuracy", "top5_accuracy"):
            assert found[name] == pytest.approx(summary["test"][name], rel=1e-5)
    code, _, errors = run("evaluate", "--weights", finished / "network")
    assert code == 2
    assert "name the images with --dataset" in errors
    # From the checkpoint, since the network that a run leaves is the average.
    code, output, errors = run("evaluate", "--weights", finished, "--no-ema", "--json")
    assert "this is the network after step 5, from a checkpoint of the run" in errors
    assert json.loads(output)["loss"] != pytest.approx(summary["test"]["loss"], rel=1e-4)
    (last,) = (r for r in read_records(finished / "metrics.jsonl") if (r.step, r.split) == (5, "validation"))
    code, output, _ = run("evaluate", "--weights", finished, "--split", "validation")
    assert "digits validation, 134 images" in output
    assert f"{last.metrics['accuracy']:.2%}" in output


def test_a_runs_folder_is_weights(finished):
    assert load_weights(finished).model == load_weights(finished / "network").model


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--epochs", "0"], "--epochs must be greater than 0, got 0"),
        (["train", "--epochs", "many"], "invalid literal for int()"),
        (["train", "--recipe", "best"], "invalid choice 'best'"),
        (["train", "--momentum", "1"], "--momentum must be from 0 to below 1, got 1.0"),
        (["train", "--weight-decay", "-1"], "--weight-decay must be 0 or more"),
        (["train", "--batch-size", "20"], "--batch-size 20 does not divide by 8 devices; take 16"),
        (["train", "--batch-size", "2000"], "--batch-size 2000 is more than the 1209 images of the training split"),
        (["train", "--train-images", "9999"], "--train-images must be between 1 and the 1209 of digits"),
        (["train", "--dataset", "nothing"], "unknown data set 'nothing'; known are digits"),
        (["train", "--dataset", "a b"], "unknown data set 'a b'"),
        (["train", "--dataset", "folder"], "--dataset folder needs --data-files DIR"),
        (["train", "--dataset", "imagenette", "--input", "resident"], "so it is streamed; leave --input resident out"),
        (["train", "--width-multiplier", "0"], "--width-multiplier must be greater than 0"),
        (["train", "--seed", "-1"], "--seed must be from 0"),
        (["train", "--model", "mobilenet_v1", "--expansion", "3"], "mobilenet_v1 has no --expansion"),
        (["train", "--profile", "3"], "--profile must be FIRST:LAST, two steps, got '3'"),
        (["train", "--profile", "3:1000"], "--profile ends at step 1000, and the run has 90"),
        (["train", "--keep", "0"], "--keep must be 1 or more"),
        (["train", "--processes", "2"], "go together; give all three or none"),
        (["train", "--out", "/proc/mine"], "cannot be written"),
        (["evaluate", "--weights", "nowhere"], "nowhere does not exist"),
        (["datasets", "prepare"], "datasets prepare NAME"),
        (["datasets", "prepare", "nothing"], "unknown data set 'nothing'"),
        (["datasets", "list", "digits"], "datasets list takes nothing else"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(run, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    if "/proc/mine" in arguments:
        arguments = [*arguments, *TINY]
    code, _, errors = run(*arguments)
    assert code == 2
    assert says in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named_and_skipped_if_asked(run, tmp_path):
    folder = write_folder(tmp_path / "pets")
    broken = folder / "cat" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    tiny = [*TINY, "--batch-size", "16", "--resolution", "32", "--out", tmp_path / "run"]
    flags = ["train", "--dataset", "folder", "--data-files", folder, *tiny]
    code, _, errors = run(*flags)
    assert code == 2
    assert "007.jpg cannot be read as an image" in errors
    assert errors.count("\n") == 1
    code, output, errors = run(*flags, "--on-bad-image", "skip")
    assert (code, errors) == (0, "")
    assert "1 damaged images were skipped" in output
    assert "007.jpg" in output
    other = write_folder(tmp_path / "others", ("cow", "hen"))
    code, _, errors = run("evaluate", "--weights", tmp_path / "run", "--dataset", "folder", "--data-files", other)
    assert code == 2
    assert "the network's classes (cat, dog, ...) are not those of" in errors


def test_datasets_are_listed_and_prepared(run, data_dir):
    code, output, _ = run("datasets")
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines() if line}
    assert str(data_dir) in rows["digits"]
    assert "not prepared" in rows["cifar10"]
    assert "folder" in rows
    code, output, _ = run("datasets", "prepare", "digits")
    assert code == 0
    assert "train 1,343, test 454" in output


def test_a_recipe_sets_what_no_flag_does():
    from mnv2_jax import cli

    options = cli.parse(train.Options, "", ["--recipe=paper", "--epochs", "3"], default=train.default)
    assert options.training.epochs == 3
    assert options.training.optimizer == "rmsprop"
    assert options.training.ema_decay == 0.9999
    assert cli.parse(train.Options, "", [], default=train.default).training == RECIPES["small"]


# --- ImageNet --------------------------------------------------------------------------------------------

FEW = [
    *["--resolution", "32", "--width-multiplier", "0.1", "--expansion", "1", "--batch-size", "16", "--epochs", "1"],
    *["--evaluations", "2", "--checkpoint-every", "1", "--log-every", "1"],
]


@pytest.mark.slow
def test_imagenet_trains_is_killed_and_goes_on(data_dir, tmp_path):
    """A thousand classes, JPEGs, in TFDS's form; the paper's recipe."""
    prepare_imagenet_like(data_dir)
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }

    def start(folder):
        command = [sys.executable, str(IMAGENET), "--recipe", "paper", *FEW, "--out", str(folder)]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    _, errors = whole.communicate(timeout=300)
    assert (whole.returncode, errors) == (0, "")
    killed = start(tmp_path / "killed")
    began = time.monotonic()
    while not (tmp_path / "killed" / "checkpoints" / "3").exists():
        assert time.monotonic() - began < 200
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = start(tmp_path / "killed")
    output, errors = again.communicate(timeout=300)
    assert (again.returncode, errors) == (0, "")
    assert "going on from step" in output
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert one["steps"] == 12
    assert one["parameters_sha256"] == other["parameters_sha256"]
    assert one["test"] == other["test"]


def test_imagenet_is_what_the_script_asks_for():
    script = runpy.run_path(str(IMAGENET))
    options = script["default"]([])
    assert options.dataset == "imagenet2012"
    assert options.training == RECIPES["cosine"]
    assert script["default"](["--recipe", "paper"]).training == RECIPES["paper"]
