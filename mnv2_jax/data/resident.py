"""Small data sets, kept on the device as uint8; shuffled, augmented and normalised inside the compiled step.

The images of a step, and how they are shifted and mirrored, depend only on the run's seed and the step. So two
networks with the same seed see the same batches.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8, UInt32
from PIL import Image

from mnv2_jax.data.batch import (
    CLASSES,
    Batch,
    ClassTargets,
    Examples,
    Normalization,
    Targets,
    View,
    data_key,
    pad_batch,
    stack_targets,
)
from mnv2_jax.data.prepare import check_images, find_entry, image_key, label_key, label_names, prepared_builder
from mnv2_jax.data.preprocessing import Preprocessing, find_preprocessing, name_preprocessing
from mnv2_jax.data.transforms import Augmentation, augment
from mnv2_jax.errors import UserError

PREPROCESSED = "keras"
"""Preprocessing of resident sets, in both conventions: the whole image is scaled, with values in -1 to 1."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A small data set in memory, as uint8 images of one size.

    Attributes:
        name: name of the set.
        class_names: by class index.
        train, validation, test: the splits; their targets are encoded by `targets`.
        augmentation: augmentation of the training images.
        preprocessing: a name in `PREPROCESSING` or a `Preprocessing`. Training and evaluation use only its
            normalisation; images are always scaled whole, without its crop.
        targets: how targets are encoded, and moved with their image.
        said: see `batch.Dataset`.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    augmentation: Augmentation
    preprocessing: str | Preprocessing = PREPROCESSED
    targets: Targets = CLASSES
    said: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def train_images(self) -> int:
        """Number of training images."""
        return len(self.train.images)

    def count(self, split: str) -> int:
        """Return the number of images in a split."""
        return len(getattr(self, split).images)

    @property
    def normalization(self) -> Normalization:
        """The normalisation from uint8 to the network's input."""
        return find_preprocessing(self.preprocessing).normalization

    def at(self, resolution: int) -> "Dataset":
        """Return the data set at another resolution; the largest training shift scales with it.

        Raises:
            ValueError: for targets other than classes, since their annotations are no longer available.
        """
        if resolution == self.image_shape[0]:
            return self
        if not isinstance(self.targets, ClassTargets):
            raise ValueError(
                f"targets of {type(self.targets).__name__} cannot be scaled to {resolution} pixels; "
                "load the set at that resolution"
            )
        shift = round(self.augmentation.shift * resolution / self.image_shape[0])
        scaled = self._with_images(lambda images: scale(images, resolution))
        return dataclasses.replace(scaled, augmentation=dataclasses.replace(self.augmentation, shift=shift))

    def with_channels(self, channels: int) -> "Dataset":
        """Return the data set in RGB (3) or greyscale (1); see `convert_channels`."""
        if channels == self.image_shape[2]:
            return self
        return self._with_images(lambda images: convert_channels(images, channels))

    def prepared_as(self, preprocessing: str | Preprocessing, channels: int) -> "Dataset":
        """Return the data set for another network: normalised by its preprocessing, greyscale (1) or RGB (3).

        Images are scaled whole in training and evaluation, even if the network's preprocessing crops.
        """
        how, whole = find_preprocessing(preprocessing), find_preprocessing(PREPROCESSED)
        own = name_preprocessing(dataclasses.replace(whole, mean=how.mean, std=how.std))
        return dataclasses.replace(self.with_channels(channels), preprocessing=own)

    def _with_images(self, change: Callable[[Any], np.ndarray]) -> "Dataset":
        train, validation, test = (
            Examples(change(split.images), split.targets) for split in (self.train, self.validation, self.test)
        )
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    def fingerprint(self) -> str:
        """Return a hash of the class names, images and targets."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(split.images.tobytes())
            for leaf in jax.tree.leaves(split.targets):
                digest.update(leaf.tobytes())
        return digest.hexdigest()

    def train_data(self, batch_size: int, accumulation: int = 1) -> "ResidentData":
        """Return training batches of `batch_size` examples; the number of microbatches does not matter here."""
        return ResidentData(self, batch_size)

    def evaluation(self, split: str, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield every example exactly once, in order, in batches of one shape; the last is padded with weight 0.

        Args:
            split: "train", "validation" or "test".
            batch_size: size of the global batch.
            process, processes: index of the process whose part of every batch is yielded, and number of processes.
        """
        examples, share = getattr(self, split), batch_size // processes
        empty = self.targets.empty()
        for start in range(process * share, process * share + len(examples.images), batch_size):
            images, targets = jax.tree.map(lambda leaf, start=start: leaf[start : start + share], examples)
            yield pad_batch(self.normalization(images), targets, share, empty)


def load(
    name: str,
    data_files: Path | None = None,
    data_dir: Path | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    resolution: int | None = None,
    targets: Targets = CLASSES,
) -> Dataset:
    """Read a data set; prepare it first if necessary.

    Args:
        name, data_files, data_dir: see `prepared_builder`.
        train_images, validation_images: number of images to take from these splits, the first ones; None for all.
        resolution: side in pixels to which images are scaled, and training shifts with them; None for the catalog's.
        targets: how targets are encoded from the examples' classes.

    Raises:
        UserError: as in `prepared_builder`, or if a split has fewer images than asked for.
    """
    builder = prepared_builder(name, data_files, data_dir)
    entry = find_entry(name, data_dir)
    side = resolution or entry.image_size
    image, label = image_key(builder), label_key(builder)

    def read(split: str) -> Examples:
        images, encoded = [], []
        for example in builder.as_data_source(split):
            height, width = example[image].shape[:2]
            images.append(scale(example[image][None], side)[0])
            encoded.append(targets.encode(int(example[label]), View(height, width, 0, 0, height, width, False, side)))
        if not images:
            raise UserError(f"the split {split} of {name} has no images")
        return Examples(np.stack(images), stack_targets(encoded))

    def first(wanted: int | None, split: Examples, flag: str) -> Examples:
        if wanted is None:
            return split
        check_images(flag, wanted, len(split.images), name)
        return jax.tree.map(lambda leaf: leaf[:wanted], split)

    return Dataset(
        name=name,
        class_names=label_names(builder),
        train=first(train_images, read(entry.train), "--train-images"),
        validation=first(validation_images, read(entry.validation), "--validation-images"),
        test=read(entry.test),
        augmentation=Augmentation(round((entry.shift or 0) * side / entry.image_size), entry.flip),
        targets=targets,
    )


def scale(images: UInt8[np.ndarray, "n _ _ c"], side: int) -> UInt8[np.ndarray, "n _ _ c"]:
    """Scale images to squares of `side` pixels, bilinear, with antialiasing when downscaling."""
    if images.shape[1:3] == (side, side):
        return images
    grey = images.shape[-1] == 1
    scaled = (
        Image.fromarray(image[..., 0] if grey else image).resize((side, side), Image.Resampling.BILINEAR)
        for image in images
    )
    return np.stack([np.asarray(image).reshape(side, side, -1) for image in scaled])


def convert_channels(images: UInt8[np.ndarray, "n h w _"], channels: int) -> UInt8[np.ndarray, "n h w {channels}"]:
    """Convert greyscale to RGB by repeating the channel, or RGB to greyscale by luminance (Pillow's ITU-R 601-2).

    Raises:
        ValueError: if a number of channels is not 1 or 3.
    """
    there = images.shape[-1]
    if there == channels:
        return images
    if (there, channels) == (1, 3):
        return np.repeat(images, 3, axis=-1)
    if (there, channels) == (3, 1):
        grey = (np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images)
        return np.stack(list(grey))
    raise ValueError(f"images must have 1 or 3 channels; cannot convert {there} to {channels}")


def batch_indices(key: Key[Array, ""], step: Int[Array, ""], count: int, batch_size: int) -> Int[Array, " n"]:
    """Return the indices of the examples, out of `count`, in the batch of a step.

    Every epoch has a new order, cut into whole batches, so no example comes twice in an epoch. The examples left over
    (fewer than `batch_size`) differ from epoch to epoch.
    """
    steps_per_epoch = count // batch_size
    epoch, position = step // steps_per_epoch, step % steps_per_epoch
    positions = position * batch_size + jnp.arange(batch_size)
    return shuffled(jax.random.fold_in(key, epoch), positions, count)


ROUNDS = 8
"""Rounds of the Feistel network below. Four are enough for it to look random (Luby and Rackoff, 1988)."""


def shuffled(key: Key[Array, ""], positions: Int[Array, " n"], count: int) -> Int[Array, " n"]:
    """Return the entries at these positions of a random permutation of 0 to count - 1, without computing the rest.

    `jax.random.permutation` would sort all `count` numbers at every step, which for 54,000 takes as long as training a
    small network on a batch. As in Grain's index shuffle, the permutation is a cipher: a Feistel network permutes the
    numbers of an even bit width, and is applied again to results of `count` or more.
    """
    half = max(1, -(-(count - 1).bit_length() // 2))
    mask = jnp.uint32(2**half - 1)
    keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def encipher(numbers):
        high, low = numbers >> half, numbers & mask
        for round_key in keys:
            high, low = low, high ^ (_mix(low ^ round_key) & mask)
        return high << half | low

    def again(numbers):
        return jnp.where(numbers < count, numbers, encipher(numbers))

    # Terminates: every number lies on a cycle of the permutation, which leads back below `count`.
    start = encipher(positions.astype(jnp.uint32))
    return jax.lax.while_loop(lambda numbers: jnp.any(numbers >= count), again, start).astype(jnp.int32)


def _mix(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Hash 32 bits with the finalizer of MurmurHash3 (Appleby)."""
    bits = (bits ^ bits >> 16) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ bits >> 13) * jnp.uint32(0xC2B2AE35)
    return bits ^ bits >> 16


@dataclasses.dataclass(frozen=True)
class ResidentData:
    """Training batches from a data set that is replicated on every device.

    Attributes:
        dataset: the data set.
        batch_size: size of the global batch.
    """

    dataset: Dataset
    batch_size: int
    shared = True

    def shapes(self) -> Examples:
        """Return the shapes of the training split."""
        return jax.eval_shape(lambda: self.dataset.train)

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Examples, None]]:
        """Yield the whole training split at every step; `batch` picks the step's examples."""
        return itertools.repeat((self.dataset.train, None))

    def batch(self, value: Examples, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]) -> Batch:
        """Return the examples with these indices in the step's batch, augmented and normalised."""
        order_key, augment_key = jax.random.split(data_key(seed))
        chosen = batch_indices(order_key, step, len(value.images), self.batch_size)
        chosen = chosen[index]
        images, targets = jax.tree.map(lambda leaf: leaf[chosen], value)
        key = jax.random.fold_in(augment_key, step)
        images, targets = augment(key, index, images, targets, self.dataset.augmentation, self.dataset.targets)
        return Batch(self.dataset.normalization(images), targets, jnp.ones(len(index)), index)
