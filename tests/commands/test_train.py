"""`python -m mnv2_jax train`, and `experiments/train_imagenet.py`, which runs it."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from samples import prepare_imagenet_like, write_folder

from mnv2_jax import cli
from mnv2_jax.commands import train
from mnv2_jax.models import names
from mnv2_jax.network import save_network
from mnv2_jax.training.config import RECIPES
from mnv2_jax.training.metrics import read_records
from mnv2_jax.weights.load import export_weights, load_weights

from .conftest import FLAGS, TwoBlocks, random_network

IMAGENET = Path(__file__).parents[2] / "experiments" / "train_imagenet.py"


# --- A run -----------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "network",
        "best_network",
        "summary.json",
        "tensorboard",
        "figure.png",
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["test"]["examples"] == 454
    assert summary["settings"]["ema_decay"] == 0.5
    assert summary["settings"]["width_multiplier"] == 0.1
    assert len(summary["parameters_sha256"]) == 64
    records = read_records(finished / "metrics.jsonl")
    assert [(r.step, r.split) for r in records if r.split != "train"] == [
        (2, "validation"),
        (5, "validation"),
        (5, "test"),
    ]
    assert {"loss", "accuracy", "top5_accuracy", "learning_rate"} <= set(records[0].metrics)


def test_tensorboard_has_every_record(finished):
    (file,) = (finished / "tensorboard").rglob("events*")
    content = file.read_bytes()
    for name in (b"train/learning_rate", b"validation/accuracy", b"test/top5_accuracy", b"train/images_per_second"):
        assert name in content


def test_a_finished_run_is_not_repeated(finished, run, two_blocks):
    code, output, _ = run("train", *FLAGS, "--out", finished)
    assert code == 0
    assert "already finished" in output
    (metric,) = [line for line in output.splitlines() if line.startswith("test accuracy")]
    summary = json.loads((finished / "summary.json").read_text())
    assert f"test accuracy {100 * summary['test']['accuracy']:.2f} %, top5 accuracy" in metric
    assert output.splitlines()[-3:] == [
        str(finished / "network"),
        str(finished / "best_network"),
        f"tensorboard --logdir {finished / 'tensorboard'}",
    ]
    code, _, errors = run("train", *FLAGS, "--ema-decay", "0.9", "--out", finished)
    assert code == 2
    assert "contains another run: ema_decay is 0.5 there and 0.9 here" in errors


# --- A run from trained weights, on one's own images -----------------------------------------------------


@pytest.fixture
def flags(quick, saved, tmp_path, monkeypatch):
    """Return flags of a run of one step that starts from the network "three", on the folder "pets"."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "three")
    write_folder(tmp_path / "pets", images=12)
    return ["train", "--weights", "three", "--dataset", "folder", "--data-files", "pets", "--freeze", "backbone",
            "--epochs", "1", "--batch-size", "16", "--evaluations", "1", "--resolution", "12"]  # fmt: skip


def test_a_run_from_weights_is_of_their_network_and_says_what_starts_anew(run, flags):
    code, output, errors = run(*flags)
    assert (code, errors) == (0, "")
    assert "the classifier is newly initialised: three has 3 classes, the data have 2" in output
    folder = Path("runs") / "train-folder-weights-0"
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["weights"], settings["freeze"], settings["width_multiplier"]) == ("three", "backbone", 0.1)
    assert settings["data_files"] == str(Path("pets").resolve())
    before, after = load_weights("three"), load_weights(folder)
    assert after.model.stages == before.model.stages
    assert (after.preprocessing, after.class_names) == (before.preprocessing, ("cat", "dog"))
    theirs = {name: layer for name, layer in before.variables["params"].items() if name != "classifier"}
    ours = {name: layer for name, layer in after.variables["params"].items() if name != "classifier"}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    # The same images in another folder are the same run.
    Path("pets").rename("moved")
    (folder / "summary.json").unlink()
    moved = ["moved" if flag == "pets" else flag for flag in flags]
    code, output, errors = run(*moved)
    assert (code, errors) == (0, "")
    assert json.loads((folder / "config.json").read_text())["data_files"] == str(Path("moved").resolve())
    output = run(*moved)[1]
    assert (
        "moved: 24 images of 2 classes (cat 12, dog 12): train 16, validation 4, test 4, split by their names" in output
    )
    assert "already finished" in output
    Path("moved").rename("pets")
    # Other weights under the same name are another run.
    save_network(Path("three"), before.replace(variables=jax.tree.map(lambda leaf: leaf + 1, before.variables)))
    code, _, errors = run(*flags)
    assert code == 2
    assert "contains another run: the trained weights it starts from differ from those it was made with" in errors


def test_a_broken_image_is_named_and_skipped_if_asked(run, flags):
    broken = Path("pets") / "cat" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    code, _, errors = run(*flags)
    assert code == 2
    assert "007.jpg cannot be read as an image" in errors
    assert errors.count("\n") == 1
    code, output, errors = run(*flags, "--on-bad-image", "skip")
    assert (code, errors) == (0, "")
    assert "skipped 1 damaged image, the first of which is" in output
    assert "007.jpg" in output


def test_images_to_test_on_alone_train_nothing(refused, tmp_path):
    folder = write_folder(tmp_path / "photos" / "val", images=2).parent
    said = refused("train", "--dataset", "folder", "--data-files", folder)
    assert said == f"{folder} contains only test images; expected a train folder next to them"


@pytest.fixture(scope="module")
def weights(saved, tmp_path_factory):
    """Create a folder with networks to start from, intact and damaged."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(saved, folder / "three")
    file = folder / "torchvision.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)
        export_weights(file, random_network(TwoBlocks(1000, 0.35, convention="pytorch"), "torchvision"), "torchvision")
    (folder / "cut.safetensors").write_bytes(file.read_bytes()[:2000])
    shutil.copytree(saved, folder / "damaged")
    for part in (folder / "damaged" / "variables").rglob("*"):
        if part.is_file() and part.stat().st_size > 1000:
            part.write_bytes(b"")
    return folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["three", "--width-multiplier", "0.5"], "--width-multiplier 0.5 does not match {}/three, which has 0.1"),
        (["three", "--convention", "pytorch"], "--convention pytorch does not match {}/three, which has tensorflow"),
        (["three", "--model", "mobilenet_v1"], "--model mobilenet_v1 does not match {}/three, which has mobilenet_v2"),
        (["three", "--expansion", "3"], "--expansion 3.0 does not match {}/three, which has 2; remove"),
        (["torchvision.safetensors", "--convention", "tensorflow"], "--convention tensorflow does not match {}/tor"),
        (["nowhere"], "{}/nowhere does not exist; expected a weights file or a network's folder"),
        (["cut.safetensors"], "{}/cut.safetensors cannot be read as a safetensors file; it may be truncated"),
        (["damaged"], "the network {}/damaged cannot be read; it may be damaged"),
        (["."], "{} is a folder without weights"),
        (["gs://bucket/x"], "gs://bucket/x is not a supported reference to weights; expected hf://OWNER/NAME"),
        (["hf://mobilenet"], "hf://mobilenet is not a repository"),
        (["torchvision://resnet18.pth"], "torchvision://resnet18.pth is not one of torchvision's MobileNets"),
        (["three", "--freeze", "backbone", "--backbone-learning-rate", "0.1"], "remove --backbone-learning-rate"),
        (["three", "--backbone-learning-rate", "0"], "--backbone-learning-rate must be greater than 0, got 0.0"),
        ([None, "--freeze", "backbone"], "--freeze requires trained weights; set --weights"),
        ([None, "--backbone-learning-rate", "0.1"], "--backbone-learning-rate requires trained weights"),
        ([None, "--frozen-batch-norm"], "--frozen-batch-norm requires trained weights"),
    ],
)  # fmt: skip
def test_weights_that_a_run_cannot_start_from(refused, two_blocks, weights, digits, arguments, says):
    name, *others = arguments
    given = [] if name is None else ["--weights", name if "://" in name else str(weights / name)]
    assert says.format(weights) in refused("train", *given, *others)


# --- Flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs", "0"], "--epochs must be greater than 0, got 0"),
        (["--epochs", "many"], "--epochs takes whole numbers, got many"),
        (["--recipe", "best"], "unknown --recipe best; choose from small, paper, cosine"),
        (["--momentum", "1"], "--momentum must be from 0 to below 1, got 1.0"),
        (["--weight-decay", "-1"], "--weight-decay must be 0 or more"),
        (["--batch-size", "20"], "--batch-size 20 is not divisible by 8 devices; use 16"),
        (["--batch-size", "2000"], "--batch-size 2000 exceeds the 1,209 images of the training split"),
        (
            ["--train-images", "9999"],
            "--train-images must be from 1 to 1209, the number of images available in digits",
        ),
        (["--dataset", "nothing"], "unknown data set 'nothing'; choose from digits"),
        (["--dataset", "a b"], "unknown data set 'a b'"),
        (["--dataset", "folder"], "--dataset folder needs --data-files DIR"),
        (["--dataset", "imagenette", "--input", "resident"], "so it is streamed; remove --input resident"),
        (["--width-multiplier", "0"], "--width-multiplier must be greater than 0"),
        (["--resolution", "0"], "--resolution must be from 1 to 4096 pixels, got 0"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--model", "mobilenet_v1", "--expansion", "3"], "mobilenet_v1 has no --expansion"),
        (["--profile", "3"], "--profile must be two steps, FIRST:LAST, got '3'"),
        (["--profile", "3:1000"], "--profile ends at step 1000, but the run has only 90 steps"),
        (["--keep", "0"], "--keep must be 1 or more"),
        (["--processes", "2"], "go together; give all three or none"),
        (["--out", "/proc/mine"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(refused, digits, arguments, says):
    assert says in refused("train", *arguments)


def test_a_recipe_sets_what_no_flag_does():
    options = cli.parse(train.Options, "", ["--recipe=paper", "--epochs", "3"], default=train.default)
    assert options.training.epochs == 3
    assert options.training.optimizer == "rmsprop"
    assert options.training.ema_decay == 0.9999
    assert cli.parse(train.Options, "", [], default=train.default).training == RECIPES["small"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_named(recipe):
    for arguments in ([f"--recipe={recipe}"], ["--recipe", recipe], ["--recipe", "small", "--recipe", recipe]):
        assert cli.parse(train.Options, "", arguments, default=train.default).training == RECIPES[recipe]


# --- ImageNet --------------------------------------------------------------------------------------------

FEW = [
    *["--resolution", "32", "--width-multiplier", "0.1", "--expansion", "1", "--batch-size", "16", "--epochs", "1"],
    *["--evaluations", "2", "--checkpoint-every", "1", "--log-every", "1"],
]


@pytest.mark.slow
def test_imagenet_trains_is_killed_and_continues(data_dir, tmp_path):
    """A thousand classes of JPEGs as a TFDS data set, with the paper's recipe."""
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
    assert "resuming from step" in output
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert one["steps"] == 12
    assert one["parameters_sha256"] == other["parameters_sha256"]
    assert one["test"] == other["test"]


def test_imagenet_is_what_the_script_asks_for():
    script = runpy.run_path(str(IMAGENET))
    options = script["default"]([])
    assert options.data.dataset == "imagenet2012"
    assert options.training == RECIPES["cosine"]
    assert script["default"](["--recipe", "paper"]).training == RECIPES["paper"]
