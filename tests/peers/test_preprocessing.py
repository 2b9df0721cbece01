"""Preprocessing equals that of each package for its own weights."""

import numpy as np
import pytest
import tensorflow as tf
import timm
import torchvision
import transformers
from PIL import Image

from mnv2_jax.data.preprocessing import PREPROCESSING, preprocess

SIZES = [(300, 200), (201, 333), (224, 224)]


def image(size):
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "weights"), [("torchvision", "IMAGENET1K_V1"), ("torchvision_v2", "IMAGENET1K_V2")])
def test_torchvision(name, weights, size):
    transform = torchvision.models.MobileNet_V2_Weights[weights].transforms()
    theirs = transform(image(size)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(preprocess(image(size), PREPROCESSING[name], 224), theirs, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "model"), [("timm", "mobilenetv2_100"), ("timm_v1", "mobilenetv1_100")])
def test_timm(name, model, size):
    config = timm.data.resolve_data_config(model=timm.create_model(model))
    theirs = timm.data.create_transform(**config)(image(size)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(preprocess(image(size), PREPROCESSING[name], 224), theirs, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_transformers(size):
    # Google's checkpoints come with the processor's defaults.
    theirs = transformers.MobileNetV2ImageProcessor()(image(size), return_tensors="np")["pixel_values"][0]
    ours = preprocess(image(size), PREPROCESSING["transformers"], 224)
    # Theirs resizes tensors, not images, so rounding may differ by one of 255 levels.
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=2.01 / 127.5)
    assert np.abs(ours - theirs.transpose(1, 2, 0)).mean() < 0.1 / 127.5


@pytest.mark.parametrize("size", SIZES)
def test_slim(size):
    """slim's evaluation: central crop, bilinear resize as in TensorFlow 1, scaled to -1..1."""
    x = tf.image.convert_image_dtype(np.asarray(image(size)), tf.float32)
    x = tf.image.central_crop(x, central_fraction=0.875)
    x = tf.compat.v1.image.resize_bilinear(x[None], [224, 224], align_corners=False)[0]
    theirs = ((x - 0.5) * 2).numpy()
    np.testing.assert_allclose(preprocess(image(size), PREPROCESSING["tensorflow"], 224), theirs, atol=2e-5)
