"""`python -m mnv2_jax convert`."""

import os

import jax
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV2
from mnv2_jax.commands.convert import read_class_names
from mnv2_jax.errors import UserError
from mnv2_jax.models import names
from mnv2_jax.models.blocks import LinearInside
from mnv2_jax.network import save_network
from mnv2_jax.weights.load import load_weights

from .conftest import STAGES, random_network


def test_there_and_back(run, tmp_path):
    network = random_network(MobileNetV2(3, 0.1, convention="pytorch"), "torchvision", "torchvision")
    saved = tmp_path / "ours"
    save_network(saved, network)
    code, output, _ = run(
        "convert", "--input", saved, "--output", tmp_path / "x.safetensors", "--target", "torchvision"
    )
    assert code == 0
    code, output, _ = run(
        "convert", "--input", tmp_path / "x.safetensors", "--output", tmp_path / "y", "--source", "torchvision"
    )
    assert code == 0
    assert "MobileNetV2, width 0.1, 3 classes, from torchvision" in output
    assert "preprocessing torchvision: shorter side bilinear to 256, central 224 pixels, mean (0.485" in output
    restored = load_weights(tmp_path / "y")
    assert restored.model == network.model
    assert restored.class_names is None
    jax.tree.map(np.testing.assert_array_equal, restored.variables, network.variables)
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "x.safetensors", "y"}

    before = (tmp_path / "x.safetensors").read_bytes()
    again = ["convert", "--input", saved, "--output", tmp_path / "x.safetensors", "--target", "torchvision"]
    code, _, errors = run(*again)
    assert code == 2
    assert "already exists; choose another or use --overwrite to replace it" in errors
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert run(*again, "--overwrite")[0] == 0
    code, _, errors = run("convert", "--input", saved, "--output", tmp_path / "x.safetensors", "--overwrite")
    assert code == 2
    assert "is a file; choose another" in errors


def test_names_preprocessing_and_resolution_can_be_given(run, saved, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    code, *_ = run("convert", "--input", saved, "--output", tmp_path / "y", "--class-names", tmp_path / "names.txt",
                   "--preprocessing", "timm", "--resolution", 64)  # fmt: skip
    assert code == 0
    restored = load_weights(tmp_path / "y")
    assert (restored.class_names, restored.preprocessing, restored.resolution) == (("a", "b", "c"), "timm", 64)
    (tmp_path / "names.txt").write_text("a\nb\n")
    code, _, errors = run(
        "convert", "--input", saved, "--output", tmp_path / "z", "--class-names", tmp_path / "names.txt"
    )
    assert code == 2
    assert "has 2 lines, expected one for each of 3 classes" in errors
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize(
    "content",
    [
        "café\r\nb\u2028b\r\n c \r\n\r\n".encode("utf-8-sig"),
        "café\nb\u2028b\nc".encode("utf-16"),
        "cafe\u0301\rb\u2028b\rc\r".encode(),
    ],
    ids=["windows", "utf-16", "mac"],
)
def test_class_names_as_editors_save_them(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    assert read_class_names(tmp_path / "names.txt", 3) == ("café", "b\u2028b", "c")


def test_class_names_that_are_none(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café\nb".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt is not UTF-8 text .*; save it as UTF-8"):
        read_class_names(tmp_path / "latin.txt", 2)
    (tmp_path / "empty.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match="empty.txt has no name on line 2"):
        read_class_names(tmp_path / "empty.txt", 3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a file; expected a text file"):
        read_class_names(tmp_path / "pipe", 3)


def test_published_weights_by_reference(run, hub_network, tmp_path):
    reference, theirs = hub_network
    code, output, errors = run("convert", "--input", reference, "--output", tmp_path / "x")
    assert (code, errors) == (0, "")
    assert "3 classes, from transformers" in output
    restored = load_weights(tmp_path / "x")
    assert restored.replace(variables={}) == theirs.replace(variables={})
    jax.tree.map(np.testing.assert_array_equal, restored.variables, theirs.variables)


class Mine(InvertedResidual):
    """A user-defined block."""


class Gained(MobileNetV2):
    """A user-defined network with one more setting."""

    gain: float = 1.0


# tests/weights/test_load.py covers all settings.
@pytest.mark.parametrize(
    ("settings", "target", "file", "named"),
    [
        ({"convention": "pytorch", "block": LinearInside}, "torchvision", "x.safetensors", "stages, block"),
        ({"convention": "tensorflow", "activation": "hard_swish"}, "keras", "x.weights.h5", "activation, stages"),
    ],
)
def test_a_network_that_others_would_read_as_another_is_refused(refused, settings, target, file, named, tmp_path):
    save_network(tmp_path / "x", random_network(MobileNetV2(3, 0.1, stages=STAGES, **settings)))
    said = refused("convert", "--input", tmp_path / "x", "--output", file, "--target", target)
    assert f"the network is not the published mobilenet_v2 but differs in {named}: loaded by" in said


def test_a_setting_of_one_s_own_is_a_difference_too(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(names.MODELS, "mobilenet_v2", Gained)
    save_network(tmp_path / "x", random_network(Gained(3, 0.1, stages=STAGES, convention="pytorch", gain=2.0)))
    said = refused("convert", "--input", tmp_path / "x", "--output", "x.safetensors", "--target", "torchvision")
    assert "differs in stages, gain: loaded by torchvision, it would compute a different function" in said


def test_a_network_of_one_s_own_blocks_is_named(refused, tmp_path):
    save_network(tmp_path / "x", random_network(MobileNetV2(3, 0.1, stages=STAGES, block=Mine)))
    said = refused("convert", "--input", tmp_path / "x", "--output", "x.h5", "--target", "keras")
    assert f"unknown block '{__name__}.Mine'" in said


def test_overwrite_replaces_networks_and_nothing_else(run, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.tex").write_text("x")
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "empty").mkdir()
    for name in (".", "..", "docs", "link"):
        code, _, errors = run("convert", "--input", saved, "--output", name, "--overwrite")
        assert code == 2
        assert "is a folder that contains more than a network; choose another" in errors
    assert (tmp_path / "docs" / "thesis.tex").read_text() == "x"
    for name in ("new", "new", "empty"):
        assert run("convert", "--input", saved, "--output", name, "--overwrite")[0] == 0
        load_weights(tmp_path / name)
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert run("convert", "--input", saved, "--output", "new", "--overwrite")[0] == 2
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written(run, saved, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = run("convert", "--input", saved, "--output", tmp_path / "file" / "y")
    assert code == 2
    assert "cannot be written" in errors
    assert os.listdir(tmp_path) == ["file"]
    for file in ("x.safetensors", "x.h5"):  # /proc/self is a folder in which no file can be created
        network = random_network(MobileNetV2(3, 0.1, convention="pytorch" if file == "x.safetensors" else "tensorflow"))
        save_network(tmp_path / file, network)
        target = "torchvision" if file == "x.safetensors" else "keras"
        code, _, errors = run(
            "convert", "--input", tmp_path / file, "--output", f"/proc/self/{file}", "--target", target
        )
        assert (code, errors.count("\n")) == (2, 1)
        assert f"--output /proc/self/{file} cannot be written (No such file or directory)" in errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "x"], "--output must be given"),
        (["--input", "nowhere", "--output", "y"], "nowhere does not exist; expected a weights file"),
        (["--input", "gs://bucket/x", "--output", "y"], "gs://bucket/x is not a supported reference to weights"),
        (["--input", "x", "--output", "y", "--source", "caffe"], "unknown --source caffe; choose from"),
        (
            ["--input", "x", "--output", "y", "--preprocessing", "z"],
            "unknown preprocessing 'z'; choose from tensorflow",
        ),
        (["--input", "x", "--output", "y", "--resolution", "0"], "--resolution must be from 1 to 4096 pixels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(refused, arguments, says):
    assert says in refused("convert", *arguments)
