"""`python -m mnv2_jax`: summary, convert, predict."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import create_model
from mnv2_jax.data.preprocessing import PREPROCESSING, preprocess, read_image
from mnv2_jax.weights.load import Weights, load_weights, save_weights
from mnv2_jax.weights.mapping import variable_shapes


@pytest.fixture(scope="module")
def weights():
    model = create_model("mobilenet_v2", width_multiplier=0.1, num_classes=3, convention="pytorch")
    generator = np.random.default_rng(0)
    shapes = variable_shapes(model)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)
    return Weights(model, variables, "torchvision", "torchvision", 32, ("cat", "dog", "bird"))


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "x"
    save_weights(folder, weights)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for name, mode in [("a.png", "RGB"), ("b.jpg", "L"), ("c.webp", "RGBA")]:
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).convert(mode).save(folder / name)
    return folder


# --- The entry point -------------------------------------------------------------------------------------


def test_a_process_prints_what_it_knows():
    done = subprocess.run([sys.executable, "-m", "mnv2_jax"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == [
        "train",
        "evaluate",
        "datasets",
        "summary",
        "convert",
        "predict",
        "plan",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train-everything"], "there is no command 'train-everything'; known are train, evaluate, datasets, summary, convert, predict"),
        (["summary", "--model", "resnet"], "invalid choice 'resnet' for argument '--model'. Expected one of ('mobilenet_v1'"),
        (["summary", "--width-multiplier", "0"], "--width-multiplier must be greater than 0"),
        (["summary", "--resolution", "-1"], "--resolution must be from 1 to 4096 pixels, got -1"),
        (["summary", "--num-classes", "-1"], "--num-classes must not be negative, got -1"),
        (["summary", "--output-stride", "12"], "invalid choice '12'"),
        (["convert", "--input", "x"], "required"),
        (["convert", "--input", "nowhere", "--output", "y"], "nowhere does not exist; expected a checkpoint"),
        (["convert", "--input", "x", "--output", "y", "--source", "caffe"], "invalid choice 'caffe'"),
        (["convert", "--input", "x", "--output", "y", "--preprocessing", "z"], "no preprocessing 'z'; known are tensorflow"),
        (["predict", "--weights", "x"], "name the images with --image, or a preprocessed batch with --array"),
        (["predict", "--weights", "x", "--image", "nowhere.png"], "--image nowhere.png does not exist"),
        (["predict", "--weights", "x", "--array", "a.npy", "--top", "0"], "--top must be 1 or more, got 0"),
        (["predict", "--weights", "x", "--image", ".", "--resolution", "99999"], "--resolution must be from 1 to 4096 pixels"),
        (["summary", "--unit-strides", "6"], "--unit-strides must be from 0 to 5, got 6"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(run, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert says in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "datasets", "summary", "convert", "predict", "plan"])
def test_help(run, command):
    code, output, _ = run(command, "--help")
    assert code == 0
    assert f"usage: python -m mnv2_jax {command}" in output


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m mnv2_jax summary --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


# --- summary ---------------------------------------------------------------------------------------------


def test_summary_as_json(run):
    code, output, errors = run(
        "summary", "--model", "mobilenet_v2", "--width-multiplier", "0.5", "--resolution", 160, "--json"
    )
    assert (code, errors) == (0, "")
    summary = json.loads(output)
    assert summary["parameters"] == 1_968_680
    assert summary["parameters_without_batch_norm"] == 1_950_136
    assert round(summary["multiply_adds"] / 1e6, 2) == 50.18
    assert sum(layer["multiply_adds"] for layer in summary["layers"]) == summary["multiply_adds"]
    first = summary["layers"][0]
    assert (first["name"], first["input_shape"], first["output_shape"]) == ("stem", [160, 160, 3], [80, 80, 16])
    assert first["activation_bytes"] == 4 * (160 * 160 * 3 + 80 * 80 * 16)


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_summary_as_tables(run, model):
    code, output, _ = run("summary", "--model", model, "--resolution", 64, "--num-classes", 0)
    assert code == 0
    assert "…" not in output
    assert ("bottleneck" if model == "mobilenet_v2" else "depthwise separable") in output
    assert "block_12/depthwise" in output
    assert f"{(2_223_872 if model == 'mobilenet_v2' else 3_206_976):,}" in output


# --- convert ---------------------------------------------------------------------------------------------


def test_there_and_back(run, checkpoint, weights, tmp_path):
    code, output, _ = run(
        "convert", "--input", checkpoint, "--output", tmp_path / "x.safetensors", "--target", "torchvision"
    )
    assert code == 0
    code, output, _ = run(
        "convert", "--input", tmp_path / "x.safetensors", "--output", tmp_path / "y", "--source", "torchvision"
    )
    assert code == 0
    assert "MobileNetV2, width 0.1, 3 classes, of torchvision" in output
    assert "preprocessing torchvision: shorter side bilinear to 256, central 224 pixels, mean (0.485" in output
    restored = load_weights(tmp_path / "y")
    assert restored.model == weights.model
    assert restored.class_names is None
    jax.tree.map(np.testing.assert_array_equal, restored.variables, weights.variables)
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", "y"}

    before = (tmp_path / "x.safetensors").read_bytes()
    again = ["convert", "--input", checkpoint, "--output", tmp_path / "x.safetensors", "--target", "torchvision"]
    code, _, errors = run(*again)
    assert code == 2
    assert "exists; name another, or --overwrite it" in errors
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert run(*again, "--overwrite")[0] == 0
    code, _, errors = run("convert", "--input", checkpoint, "--output", tmp_path / "x.safetensors", "--overwrite")
    assert code == 2
    assert "is a file; name another" in errors


def test_names_preprocessing_and_resolution_can_be_given(run, checkpoint, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    code, *_ = run("convert", "--input", checkpoint, "--output", tmp_path / "y", "--class-names", tmp_path / "names.txt",
                   "--preprocessing", "timm", "--resolution", 64)  # fmt: skip
    assert code == 0
    restored = load_weights(tmp_path / "y")
    assert (restored.class_names, restored.preprocessing, restored.resolution) == (("a", "b", "c"), "timm", 64)
    (tmp_path / "names.txt").write_text("a\nb\n")
    code, _, errors = run(
        "convert", "--input", checkpoint, "--output", tmp_path / "z", "--class-names", tmp_path / "names.txt"
    )
    assert code == 2
    assert "has 2 lines, expected one for each of 3 classes" in errors
    assert not (tmp_path / "z").exists()


def test_overwrite_replaces_checkpoints_and_nothing_else(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.tex").write_text("x")
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "empty").mkdir()
    for name in (".", "..", "docs", "link"):
        code, _, errors = run("convert", "--input", checkpoint, "--output", name, "--overwrite")
        assert code == 2
        assert "is a folder that holds more than a checkpoint; name another" in errors
    assert (tmp_path / "docs" / "thesis.tex").read_text() == "x"
    for name in ("new", "new", "empty"):
        assert run("convert", "--input", checkpoint, "--output", name, "--overwrite")[0] == 0
        load_weights(tmp_path / name)
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert run("convert", "--input", checkpoint, "--output", "new", "--overwrite")[0] == 2
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"


def test_output_that_cannot_be_written(run, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = run("convert", "--input", checkpoint, "--output", tmp_path / "file" / "y")
    assert code == 2
    assert "cannot be written" in errors


# --- predict ---------------------------------------------------------------------------------------------


def test_predict_images_in_every_way(run, checkpoint, weights, images, tmp_path):
    code, output, errors = run("predict", "--weights", checkpoint, "--image", images, "--json")
    assert code == 0
    assert (
        errors
        == "preprocessing torchvision: shorter side bilinear to 36, central 32 pixels, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)\n"
    )
    predictions = json.loads(output)["predictions"]
    assert [entry["input"] for entry in predictions] == [str(images / name) for name in ("a.png", "b.jpg", "c.webp")]
    batch = np.stack(
        [preprocess(read_image(path), PREPROCESSING["torchvision"], 32) for path in sorted(images.iterdir())]
    )
    expected = np.asarray(jax.jit(weights.model.apply)(weights.variables, batch))
    np.testing.assert_allclose([entry["logits"] for entry in predictions], expected, rtol=1e-5)
    for entry, logits in zip(predictions, expected, strict=True):
        assert [guess["class"] for guess in entry["top"]] == list(np.argsort(-logits))
        assert entry["top"][0]["label"] == ("cat", "dog", "bird")[int(np.argmax(logits))]
        assert sum(guess["probability"] for guess in entry["top"]) == pytest.approx(1)

    np.save(tmp_path / "batch.npy", batch)
    code, output, errors = run("predict", "--weights", checkpoint, "--array", tmp_path / "batch.npy", "--json")
    assert code == 0
    assert "none: --array is taken as it is" in errors
    arrays = json.loads(output)["predictions"]
    assert [entry["logits"] for entry in arrays] == [entry["logits"] for entry in predictions]
    assert arrays[1]["input"].endswith("batch.npy[1]")

    code, output, errors = run(
        "predict", "--weights", checkpoint, "--image", images / "b.jpg", images / "a.png", "--top", 1
    )
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("preprocessing torchvision: ")
    assert [line for line in lines if line.endswith((".jpg", ".png"))] == [str(images / "b.jpg"), str(images / "a.png")]
    assert sum("%" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 8, 8), np.float32), r"holds (2, 8, 8), expected (images, height, width, 3) of float32"),
        (np.zeros((2, 3, 8, 8), np.float32), "holds (2, 3, 8, 8), expected"),
        (np.zeros((1, 8, 8, 3), np.uint8), "holds uint8, expected"),
        (np.full((1, 8, 8, 3), np.nan, np.float32), "holds values that are not finite numbers"),
        (np.array([{"a": 1}], object), "cannot be read as a NumPy file"),
    ],
)
def test_arrays_that_are_no_batch(run, checkpoint, array, says, tmp_path):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    code, output, errors = run("predict", "--weights", checkpoint, "--array", tmp_path / "x.npy")
    assert (code, output) == (2, "")
    assert says in errors


def test_no_classifier_no_prediction(run, weights, tmp_path, images):
    headless = weights.model.clone(num_classes=0)
    params = {name: value for name, value in weights.variables["params"].items() if name != "classifier"}
    save_weights(tmp_path / "x", weights._replace(model=headless, variables={**weights.variables, "params": params}))
    code, _, errors = run("predict", "--weights", tmp_path / "x", "--image", images)
    assert code == 2
    assert "has no classifier, so it predicts no classes" in errors
