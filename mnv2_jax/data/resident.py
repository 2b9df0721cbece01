"""Small data sets: whole on the device as uint8; shuffled, augmented and normalised inside the compiled step.

Which images a step sees, and how they are moved and mirrored, is a function of the run's key and the step's
number alone. So two networks with the same seed see the same batches.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from PIL import Image

from mnv2_jax.data.catalog import CATALOG, prepared_builder
from mnv2_jax.errors import UserError


class Examples(NamedTuple):
    """One split."""

    images: UInt8[Array | np.ndarray, "n h w c"]
    labels: Int[Array | np.ndarray, " n"]


class Batch(NamedTuple):
    """What a step works on. Weight 0 marks padding, which counts nowhere."""

    images: Float[Array | np.ndarray, "n h w c"]  # in [-1, 1]
    labels: Int[Array | np.ndarray, " n"]
    weights: Float[Array | np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are varied: moved by up to `shift` pixels, mirrored with probability 1/2 if `flip`."""

    shift: int
    flip: bool


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A small data set in memory, uint8, its images scaled to the catalog's size."""

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    augmentation: Augmentation

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load(
    name: str,
    data_files: Path | None = None,
    data_dir: Path | None = None,
    train_images: int | None = None,
) -> Dataset:
    """Prepare a data set if necessary and read it.

    Args:
        name, data_files, data_dir: see `prepared_builder`.
        train_images: how many of the training split to take, the first ones; None for all.

    Raises:
        UserError: see `prepared_builder`; or if there are fewer training images.
    """
    builder = prepared_builder(name, data_files, data_dir)
    entry = CATALOG[name]

    def read(split: str) -> Examples:
        source = builder.as_data_source(split)
        size = (entry.image_size, entry.image_size)
        images, labels = [], []
        for example in source:
            image = example["image"]
            if image.shape[:2] != size:
                image = np.asarray(Image.fromarray(image[..., 0]).resize(size, Image.Resampling.BILINEAR))[..., None]
            images.append(image)
            labels.append(example["label"])
        return Examples(np.stack(images), np.asarray(labels, np.int32))

    train = read(entry.train)
    if train_images is not None:
        if not 0 < train_images <= len(train.labels):
            raise UserError(
                f"--train-images must be between 1 and the {len(train.labels)} of {name}, got {train_images}"
            )
        train = Examples(train.images[:train_images], train.labels[:train_images])
    return Dataset(
        name=name,
        class_names=tuple(builder.info.features["label"].names),
        train=train,
        validation=read(entry.validation),
        test=read(entry.test),
        augmentation=Augmentation(entry.shift, entry.flip),
    )


def normalize(images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """From 0..255 to [-1, 1], the input range of the paper's code (slim/preprocessing/inception_preprocessing.py)."""
    return images.astype(jnp.float32) / 127.5 - 1


def batch_indices(key: Key[Array, ""], step: Int[Array, ""], count: int, batch_size: int) -> Int[Array, " n"]:
    """Which of `count` examples make up the batch of a step.

    Every epoch is a new permutation, cut into whole batches: within an epoch no example comes twice. What is
    left over (fewer than `batch_size`) is another handful in every epoch.
    """
    steps_per_epoch = count // batch_size
    epoch, position = step // steps_per_epoch, step % steps_per_epoch
    order = jax.random.permutation(jax.random.fold_in(key, epoch), count)
    return jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)


def augment(
    key: Key[Array, ""], images: UInt8[Array, "n h w c"], augmentation: Augmentation
) -> UInt8[Array, "n h w c"]:
    """Move and mirror each image by chances of its own, which depend on its place in the batch alone."""
    n, height, width, channels = images.shape
    shift = augmentation.shift
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))

    def vary(place, image):
        shift_key, flip_key = jax.random.split(jax.random.fold_in(key, place))
        corner = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))
        flip = augmentation.flip & jax.random.bernoulli(flip_key)
        return jnp.where(flip, image[:, ::-1], image)

    return jax.vmap(vary)(jnp.arange(n), padded)


def training_batch(
    key: Key[Array, ""], step: Int[Array, ""], examples: Examples, batch_size: int, augmentation: Augmentation
) -> Batch:
    """The batch of a step, for use inside the compiled program."""
    order_key, augment_key = jax.random.split(key)
    chosen = batch_indices(order_key, step, len(examples.labels), batch_size)
    images = augment(jax.random.fold_in(augment_key, step), examples.images[chosen], augmentation)
    return Batch(normalize(images), examples.labels[chosen], jnp.ones(batch_size))


def evaluation_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """Every example exactly once, in order, in batches of one shape: the last is filled up with weight 0."""
    for start in range(0, len(examples.labels), batch_size):
        images = examples.images[start : start + batch_size]
        labels = examples.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        weights = np.pad(np.ones(len(labels), np.float32), (0, missing))
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        yield Batch(np.asarray(images, np.float32) / np.float32(127.5) - 1, np.pad(labels, (0, missing)), weights)
