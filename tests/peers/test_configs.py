"""Configurations beside or inside weights: networks and preprocessing agree with the packages' own."""

import argparse
import json
import pathlib

import jax
import keras
import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from mnv2_jax.commands.predict import prediction
from mnv2_jax.data.preprocessing import find_preprocessing, preprocess
from mnv2_jax.errors import UserError
from mnv2_jax.weights.load import load_weights

from .conftest import randomize_keras, randomize_torch

LAYERS = keras.layers


def apply(network, x):
    return np.asarray(jax.jit(network.model.apply)(network.variables, x))


def noise(size):
    """Return smooth random colours: coarser than any filter, but a shift by one pixel is visible."""
    generator = np.random.default_rng(sum(size))
    small = generator.integers(0, 255, (size[1] // 9, size[0] // 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


# --- transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (2, {}),
        (2, {"tf_padding": False, "hidden_act": "relu", "layer_norm_eps": 1e-2, "output_stride": 16}),
        (2, {"output_stride": 8, "hidden_act": "silu", "expand_ratio": 3.0}),
        (1, {"tf_padding": False, "layer_norm_eps": 1e-5}),
    ],
    ids=str,
)
def test_a_network_of_transformers_computes_what_its_configuration_says(version, changes, images, tmp_path):
    config = getattr(transformers, f"MobileNetV{version}Config")(depth_multiplier=0.35, num_labels=3, **changes)
    theirs = randomize_torch(getattr(transformers, f"MobileNetV{version}ForImageClassification")(config))
    theirs.save_pretrained(tmp_path)
    x = images(96)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).logits.numpy()
    np.testing.assert_allclose(apply(load_weights(tmp_path), x), expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("size", [(391, 256), (333, 501), (120, 97)])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("MobileNetV2", {"size": {"shortest_edge": 256}, "crop_size": 224}),
        ("MobileNetV2", {"size": {"shortest_edge": 128}, "crop_size": {"height": 96, "width": 96}}),
        ("MobileNetV1", {"size": {"shortest_edge": 120}, "crop_size": 96, "resample": 3, "do_rescale": False,
                         "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 61.0, 62.0]}),
        ("MobileNetV2", {"size": {"height": 112, "width": 112}, "crop_size": 96, "do_normalize": False}),
        ("ViT", {"size": {"height": 96, "width": 96}}),
    ],
    ids=str,
)  # fmt: skip
def test_images_are_prepared_as_the_image_processor_prepares_them(kind, settings, size, tmp_path):
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    processor.save_pretrained(tmp_path)
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=3)
    transformers.MobileNetV2ForImageClassification(config).save_pretrained(tmp_path)
    network, image = load_weights(tmp_path), noise(size)
    how = find_preprocessing(network.preprocessing)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    ours = preprocess(image, how, network.resolution)
    assert ours.shape == expected.shape
    levels = np.abs(ours - expected) * np.float32(how.std) * 255
    assert levels.max() <= 2.01  # the package rounds to bytes after each of two passes
    assert levels.mean() < 0.5


def test_a_folder_with_a_pickle_is_read(tmp_path):
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=3)
    theirs = transformers.MobileNetV2ForImageClassification(config)
    config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    network = load_weights(tmp_path)
    assert (network.source, network.model.num_classes) == ("transformers", 3)


# --- timm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": (3, 160, 160), "crop_pct": 0.9, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)},
        {"test_input_size": (3, 128, 128), "test_crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    ],
    ids=str,
)
def test_images_are_prepared_as_timm_validates(changes, tmp_path):
    theirs = randomize_torch(timm.create_model("mobilenetv2_035", num_classes=3))
    pretrained = {**theirs.pretrained_cfg, **changes}
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    content = {"architecture": "mobilenetv2_035", "num_classes": 3, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(content))
    network = load_weights(tmp_path)
    config = timm.data.resolve_data_config(pretrained_cfg=pretrained, use_test_size=True)
    image = noise((333, 250))
    expected = timm.data.create_transform(**config)(image).numpy().transpose(1, 2, 0)
    ours = preprocess(image, find_preprocessing(network.preprocessing), network.resolution)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_checkpoints_of_training_scripts_are_read(tmp_path):
    theirs = randomize_torch(timm.create_model("mobilenetv2_035", num_classes=3))
    beside = {"args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")), "metric": np.float64(0.5), "epoch": 3}
    torch.save({"state_dict": theirs.state_dict(), **beside}, tmp_path / "x.pth.tar")
    torch.save({"state_dict": theirs.state_dict(), **beside}, tmp_path / "y.pth", _use_new_zipfile_serialization=False)
    for name in ("x.pth.tar", "y.pth"):
        network = load_weights(tmp_path / name)
        assert "the checkpoint's entry 'state_dict' is used" in network.notes
        np.testing.assert_array_equal(
            network.variables["params"]["classifier"]["bias"], theirs.classifier.bias.detach().numpy()
        )


def test_another_linear_layer_is_the_classifier(images, tmp_path):
    theirs = randomize_torch(timm.create_model("mobilenetv2_035", num_classes=0))
    linear = torch.nn.Linear(1280, 5)
    state = {**{f"backbone.{name}": value for name, value in theirs.state_dict().items()}, "fc.weight": linear.weight}
    torch.save({**state, "fc.bias": linear.bias}, tmp_path / "x.pth")
    network = load_weights(tmp_path / "x.pth")
    assert "the classifier is the layer 'fc' with 5 outputs" in network.notes
    with torch.no_grad():
        expected = linear(theirs(torch.tensor(images(64).transpose(0, 3, 1, 2)))).numpy()
    np.testing.assert_allclose(apply(network, images(64)), expected, atol=1e-4 * expected.std())
    torch.save({**state, "fc.bias": linear.bias, "fc2.weight": torch.ones(3, 5)}, tmp_path / "y.pth")
    with pytest.raises(
        UserError, match=r"fc.bias, fc.weight, fc2.weight; supported after the network is one linear layer"
    ):
        load_weights(tmp_path / "y.pth")


# --- Keras -----------------------------------------------------------------------------------------------


def scaled_by_operations(x):
    return keras.applications.mobilenet_v2.preprocess_input(x)


def scaled_by_layers(x):
    x = LAYERS.RandomFlip()(LAYERS.Rescaling(1 / 255)(x))
    return LAYERS.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)


@pytest.mark.parametrize(
    ("scale", "head", "loss", "name"),
    [
        (scaled_by_operations, [LAYERS.Dense(1, activation="sigmoid")], None, "x.keras"),
        (scaled_by_layers, [LAYERS.Dense(4), LAYERS.Activation("sigmoid")], None, "x.h5"),
        (None, [LAYERS.Dense(4, activation="softmax", use_bias=False)], None, "x.keras"),
        (None, [LAYERS.Dense(1)], keras.losses.BinaryCrossentropy(from_logits=True), "x.h5"),
    ],
    ids=["one sigmoid", "sigmoids", "softmax", "one logit"],
)
def test_predictions_are_those_of_keras(scale, head, loss, name, tmp_path):
    inputs = keras.Input((64, 64, 3))
    base = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, include_top=False)
    x = LAYERS.Dropout(0.2)(LAYERS.GlobalAveragePooling2D()(base(scale(inputs) if scale else inputs)))
    for layer in [layer.__class__.from_config(layer.get_config()) for layer in head]:
        x = layer(x)
    theirs = randomize_keras(keras.Model(inputs, x))
    if loss:
        theirs.compile("adam", loss)
    theirs.save(tmp_path / name)
    network, image = load_weights(tmp_path / name), noise((64, 64))
    array = np.asarray(image, np.float32)
    (expected,) = theirs.predict((array if scale else array / 127.5 - 1)[None], verbose=0)
    if loss:
        expected = 1 / (1 + np.exp(-expected))
    if len(expected) == 1:
        expected = np.array([1 - expected[0], expected[0]])
    logits = apply(network, preprocess(image, find_preprocessing(network.preprocessing), 64)[None])[0]
    said = prediction("x", logits, network.task.probabilities(logits), None, len(expected))["top"]
    ours = {entry["class"]: entry["probability"] for entry in said}
    np.testing.assert_allclose([ours[index] for index in range(len(expected))], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (LAYERS.Resizing(64, 64, name="mine"), "Resizing 'mine' before the network is not supported"),
        (LAYERS.Conv2D(3, 1, name="mine"), "Conv2D 'mine' before the network is not supported"),
    ],
)
def test_layers_in_front_of_the_network_that_are_not_understood_are_refused(layer, says, tmp_path):
    inputs = keras.Input((64, 64, 3))
    base = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=3)
    keras.Model(inputs, base(layer(inputs))).save(tmp_path / "x.keras")
    with pytest.raises(UserError, match=says):
        load_weights(tmp_path / "x.keras")


def test_another_epsilon_and_activation_inside_are_done(images, tmp_path):
    made = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=3)

    def changed(layer):
        config = layer.get_config()
        if isinstance(layer, LAYERS.BatchNormalization):
            config["epsilon"] = 1e-2
        if isinstance(layer, LAYERS.ReLU):
            config["max_value"] = None
        return layer.__class__.from_config(config)

    theirs = randomize_keras(keras.models.clone_model(made, clone_function=changed))
    theirs.save(tmp_path / "x.keras")
    network = load_weights(tmp_path / "x.keras")
    assert (network.model.activation, network.model.batch_norm_epsilon) == ("relu", 1e-2)
    expected = theirs.predict(images(64), verbose=0)
    np.testing.assert_allclose(network.task.probabilities(apply(network, images(64))), expected, atol=1e-4)
