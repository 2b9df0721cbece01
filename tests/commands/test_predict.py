"""`python -m mnv2_jax predict`."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import MobileNetV2
from mnv2_jax.data.preprocessing import PREPROCESSING, preprocess, read_image
from mnv2_jax.network import save_network
from mnv2_jax.tasks.classification import Classification

from .conftest import STAGES, random_network


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for name, mode in [("a.png", "RGB"), ("b.jpg", "L"), ("c.webp", "RGBA")]:
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).convert(mode).save(folder / name)
    return folder


def test_images_in_every_way(run, saved, network, images, tmp_path):
    code, output, errors = run("predict", "--weights", saved, "--image", images, "--json")
    assert code == 0
    assert (
        errors
        == "preprocessing torchvision: shorter side bilinear to 36, central 32 pixels, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225), rotated upright by EXIF\n"
    )
    predictions = json.loads(output)["predictions"]
    assert [entry["input"] for entry in predictions] == [str(images / name) for name in ("a.png", "b.jpg", "c.webp")]
    batch = np.stack(
        [preprocess(read_image(path), PREPROCESSING["torchvision"], 32) for path in sorted(images.iterdir())]
    )
    expected = np.asarray(jax.jit(network.model.apply)(network.variables, batch))
    np.testing.assert_allclose([entry["logits"] for entry in predictions], expected, rtol=1e-5)
    for entry, logits in zip(predictions, expected, strict=True):
        assert [guess["class"] for guess in entry["top"]] == list(np.argsort(-logits))
        assert entry["top"][0]["label"] == ("cat", "dog", "bird")[int(np.argmax(logits))]
        assert sum(guess["probability"] for guess in entry["top"]) == pytest.approx(1)

    np.save(tmp_path / "batch.npy", batch)
    code, output, errors = run("predict", "--weights", saved, "--array", tmp_path / "batch.npy", "--json")
    assert code == 0
    assert "none: --array is used as is" in errors
    arrays = json.loads(output)["predictions"]
    assert [entry["logits"] for entry in arrays] == [entry["logits"] for entry in predictions]
    assert arrays[1]["input"].endswith("batch.npy[1]")

    code, output, errors = run("predict", "--weights", saved, "--image", images / "b.jpg", images / "a.png", "--top", 1)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("preprocessing torchvision: ")
    assert [line for line in lines if line.endswith((".jpg", ".png"))] == [str(images / "b.jpg"), str(images / "a.png")]
    assert sum("%" in line for line in lines) == 2


def test_damaged_images_are_named_and_the_others_predicted(run, saved, images):
    (images / "b.jpg").write_bytes(b"no image")
    (images / "notes.txt").write_text("x")
    code, output, errors = run("predict", "--weights", saved, "--image", images, "--top", 1)
    assert code == 2
    assert [line for line in output.splitlines() if str(images) in line] == [
        str(images / "a.png"),
        str(images / "c.webp"),
    ]
    assert f"left out of {images}: 1 .txt" in errors
    assert "skipped: " + str(images / "b.jpg") in errors
    assert errors.endswith("\nerror: 1 of 3 images could not be read; see the messages above\n")
    code, output, _ = run("predict", "--weights", saved, "--image", images, "--json")
    found = json.loads(output)
    assert (code, len(found["predictions"]), found["damaged"]) == (2, 2, [str(images / "b.jpg")])


def test_a_folder_of_folders_is_walked_in_the_order_of_names(run, saved, images, monkeypatch):
    """Hidden folders and system folders are skipped, as in a data set."""
    for name in ("cat/1.png", "cat/big/2.png", "__MACOSX/3.png", ".thumbnails/4.png", "empty/notes.txt"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / "a.png", images / name)
    monkeypatch.chdir(images.parent)
    code, output, errors = run("predict", "--weights", saved, "--image", "images", "--json")
    assert code == 0
    assert [entry["input"] for entry in json.loads(output)["predictions"]] == [
        f"images/{name}" for name in ("a.png", "b.jpg", "c.webp", "cat/1.png", "cat/big/2.png")
    ]
    assert errors.startswith("left out of images: 1 .txt, 2 hidden or system\n")
    code, output, errors = run("predict", "--weights", saved, "--image", "images/empty")
    assert (code, output) == (2, "")
    assert errors == "error: --image images/empty contains no images, directly or in subfolders; left out: 1 .txt\n"


def test_an_image_is_turned_as_its_exif_says_unless_told_otherwise(run, saved, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images / "a.png") as image:
        image.save(images / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(images / "upright.png")

    def logits(*arguments):
        return json.loads(run("predict", "--weights", saved, "--json", *arguments)[1])["predictions"][0]["logits"]

    assert logits("--image", images / "turned.png") == logits("--image", images / "upright.png")
    flags = ["--exif-orientation", "ignore"]
    assert logits("--image", images / "turned.png", *flags) == logits("--image", images / "a.png")


def test_names_that_are_not_utf_8_are_printed(run, saved, images):
    odd = os.fsdecode(bytes(images) + b"/caf\xe9.png")
    shutil.copy(images / "a.png", odd)
    code, output, _ = run("predict", "--weights", saved, "--image", odd)
    assert code == 0
    assert f"{images}/caf\\xe9.png" in output


def test_pipes_are_not_waited_for(refused, saved, images):
    os.mkfifo(images / "pipe.png")
    assert "is a pipe or a device" in refused("predict", "--weights", saved, "--image", images / "pipe.png")
    assert "pipe.png is not a file" in refused("predict", "--weights", saved, "--array", images / "pipe.png")


def test_published_weights_by_reference(run, hub_network, images):
    reference, network = hub_network
    code, output, errors = run("predict", "--weights", reference, "--image", images / "a.png", "--json")
    assert code == 0
    assert errors.startswith("preprocessing custom: shorter side bilinear to 64, central 32 pixels")
    (entry,) = json.loads(output)["predictions"]
    batch = preprocess(read_image(images / "a.png"), network.preprocessing, 32)[None]
    expected = np.asarray(jax.jit(network.model.apply)(network.variables, batch))
    np.testing.assert_allclose(entry["logits"], expected[0], rtol=1e-5)
    assert entry["top"][0]["label"] in network.class_names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "specify either images (--image) or a preprocessed batch (--array)"),
        (["--image", "a.png", "--array", "a.npy"], "specify either images (--image) or a preprocessed batch (--array)"),
        (["--image", "nowhere.png"], "--image nowhere.png does not exist"),
        (["--image", "."], "--image . contains no images, directly or in subfolders"),
        (["--array", "a.npy", "--top", "0"], "--top must be 1 or more, got 0"),
        (["--image", ".", "--resolution", "99999"], "--resolution must be from 1 to 4096 pixels"),
    ],
)
def test_images_that_are_not_named_or_not_there(refused, arguments, says):
    assert says in refused("predict", "--weights", "x", *arguments)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("nowhere", "nowhere does not exist"),
        ("gs://bucket/x", "gs://bucket/x is not a supported reference to weights; expected hf://OWNER/NAME"),
        ("hf://mobilenet", "hf://mobilenet is not a repository"),
    ],
)
def test_weights_that_are_not_there(refused, weights, says, images):
    assert says in refused("predict", "--weights", weights, "--image", images)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 8, 8), np.float32), r"contains (2, 8, 8), expected (images, height, width, 3) of float32"),
        (np.zeros((2, 3, 8, 8), np.float32), "contains (2, 3, 8, 8), expected"),
        (np.zeros((1, 8, 8, 3), np.uint8), "contains uint8, expected"),
        (np.full((1, 8, 8, 3), np.nan, np.float32), "contains values that are not finite"),
        (np.array([{"a": 1}], object), "cannot be read as a NumPy file"),
    ],
)
def test_arrays_that_are_no_batch(refused, saved, array, says, tmp_path):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    assert says in refused("predict", "--weights", saved, "--array", tmp_path / "x.npy")


def test_no_classifier_no_prediction(refused, network, tmp_path, images):
    headless = network.model.clone(num_classes=0)
    params = {name: value for name, value in network.variables["params"].items() if name != "classifier"}
    variables = {**network.variables, "params": params}
    changes = {"model": headless, "variables": variables, "task": Classification(0), "class_names": None}
    save_network(tmp_path / "x", network.replace(**changes))
    assert "has no classifier, so it cannot predict classes" in refused(
        "predict", "--weights", tmp_path / "x", "--image", images
    )


def test_sigmoids_are_each_a_probability_of_its_own(run, network, images, tmp_path):
    save_network(tmp_path / "x", network.replace(task=Classification(3, outputs="sigmoid")))
    code, output, errors = run("predict", "--weights", tmp_path / "x", "--image", images / "a.png", "--json")
    assert code == 0
    assert errors.endswith(
        "the network has sigmoid outputs: each class has its own probability, and they need not add up to 1\n"
    )
    (entry,) = json.loads(output)["predictions"]
    expected = sorted(1 / (1 + np.exp(-np.float64(entry["logits"]))), reverse=True)
    np.testing.assert_allclose([guess["probability"] for guess in entry["top"]], expected)


def test_one_output_needs_a_meaning(run, images, tmp_path):
    save_network(tmp_path / "x", random_network(MobileNetV2(1, 0.1, stages=STAGES), class_names=None))
    arguments = ["--image", images / "a.png"]
    code, output, errors = run("predict", "--weights", tmp_path / "x", *arguments)
    assert (code, output) == (2, "")
    assert "has a single output of unknown meaning; if its sigmoid" in errors
    converted = ["--output", tmp_path / "y", "--outputs", "sigmoid"]
    code, output, _ = run("convert", "--input", tmp_path / "x", *converted)
    assert code == 0
    assert "2 classes" in output
    assert "the single sigmoid output is converted to two classes: it is the probability of class 1" in output
    code, output, _ = run("predict", "--weights", tmp_path / "y", *arguments)
    assert code == 0
    assert output.count("%") == 2
