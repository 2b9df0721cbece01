"""Synthetic images for tests: in files, and as a TFDS data set in the form of ImageNet."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mnv2_jax.data.resident import Examples


def encoded(seed, width=48, height=40, kind="JPEG", label=None):
    """Return the bytes of an image file: noise and, for a label, one channel that encodes it."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if label is not None:
        pixels[:, :, label % 3] = 255 * (label % 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return buffer.getvalue()


def write_folder(path: Path, classes=("cat", "dog"), images=20, **options) -> Path:
    """Write a folder of images with one subfolder per class."""
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for index in range(images):
            content = encoded(100 * label + index, label=label, **options)
            (path / name / f"{index:03}.jpg").write_bytes(content)
    return path


class ImageNetLike(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1000 classes and a few JPEGs of two sizes, with ImageNet's name, version, splits and features."""

    name = "imagenet2012"
    VERSION = tfds.image_classification.Imagenet2012.VERSION

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=[f"n{index:08}" for index in range(1000)]),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, description="synthetic", features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 200), "validation": self._generate_examples(1000, 30)}

    def _generate_examples(self, first, count):
        for index in range(count):
            size = (160, 120) if index % 3 else (90, 200)
            content = io.BytesIO(encoded(first + index, *size, label=index % 1000))
            yield index, {"image": content, "label": index % 1000, "file_name": f"train_{first + index}.JPEG"}


def prepare_imagenet_like(data_dir: Path) -> None:
    """Prepare `ImageNetLike` where `load_stream("imagenet2012")` finds it."""
    ImageNetLike(data_dir=data_dir, file_format="array_record").download_and_prepare()


def tiny_of(digits):
    """Return the middle 12 pixels of a few digits: enough to run a network, not to train it well."""

    def reduced(examples, count):
        return Examples(np.ascontiguousarray(examples.images[:count, 4:16, 4:16]), examples.targets[:count])

    return dataclasses.replace(
        digits,
        train=reduced(digits.train, 70),
        validation=reduced(digits.validation, 30),
        test=reduced(digits.test, 50),
    )
