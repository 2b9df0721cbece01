"""Small data sets: whole on the device as uint8; shuffled, augmented and normalised inside the compiled step.

Which images a step sees, and how they are moved and mirrored, is a function of the run's key and the step's
number alone. So two networks with the same seed see the same batches.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32
from PIL import Image

from mnv2_jax.data.batch import Batch, Normalization
from mnv2_jax.data.catalog import find_entry, label_names, prepared_builder
from mnv2_jax.data.preprocessing import PREPROCESSING
from mnv2_jax.errors import UserError


class Examples(NamedTuple):
    """One split."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are varied: moved by up to `shift` pixels, mirrored with probability 1/2 if `flip`."""

    shift: int
    flip: bool


PREPROCESSED = "keras"
"""How images of a resident set are prepared, in both conventions: scaled whole, to -1 to 1 (`PREPROCESSING`)."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A small data set in memory, uint8, its images scaled to one size."""

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    augmentation: Augmentation
    preprocessing: str = PREPROCESSED

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def train_images(self) -> int:
        """How many images there are to train on."""
        return len(self.train.labels)

    @property
    def normalization(self) -> Normalization:
        """From uint8 to the network's input."""
        return PREPROCESSING[self.preprocessing].normalization

    def at(self, resolution: int) -> "Dataset":
        """The same images scaled to another size, and moved in training by as much of it."""
        if resolution == self.image_shape[0]:
            return self

        def scaled(split: Examples) -> Examples:
            return Examples(scale(split.images, resolution), split.labels)

        shift = round(self.augmentation.shift * resolution / self.image_shape[0])
        return dataclasses.replace(
            self,
            train=scaled(self.train),
            validation=scaled(self.validation),
            test=scaled(self.test),
            augmentation=dataclasses.replace(self.augmentation, shift=shift),
        )

    def fingerprint(self) -> str:
        """Changes when the images or their classes do."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(split.images.tobytes() + split.labels.tobytes())
        return digest.hexdigest()

    def train_data(self, batch_size: int, accumulation: int = 1) -> "ResidentData":
        """Training batches of `batch_size` examples; in how many parts a device takes them does not matter here."""
        return ResidentData(self, batch_size)

    def evaluation(self, split: str, batch_size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """See `evaluation_batches`; `split` is "train", "validation" or "test"."""
        return evaluation_batches(getattr(self, split), batch_size, self.normalization, part, parts)


def load(
    name: str,
    data_files: Path | None = None,
    data_dir: Path | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    resolution: int | None = None,
) -> Dataset:
    """Prepare a data set if necessary and read it.

    Args:
        name, data_files, data_dir: see `prepared_builder`.
        train_images, validation_images: how many of the training and validation splits to take, the first ones; None
            for all.
        resolution: side in pixels to which images are scaled; None for the catalog's.

    Raises:
        UserError: see `prepared_builder`; or if there are fewer images.
    """
    builder = prepared_builder(name, data_files, data_dir)
    entry = find_entry(name, data_dir)
    side = resolution or entry.image_size

    def read(split: str) -> Examples:
        images, labels = [], []
        for example in builder.as_data_source(split):
            images.append(scale(example["image"][None], side)[0])
            labels.append(example["label"])
        if not images:
            raise UserError(f"the split {split} of {name} has no images")
        return Examples(np.stack(images), np.asarray(labels, np.int32))

    def first(wanted: int | None, split: Examples, flag: str) -> Examples:
        if wanted is None:
            return split
        check_images(flag, wanted, len(split.labels), name)
        return Examples(split.images[:wanted], split.labels[:wanted])

    return Dataset(
        name=name,
        class_names=label_names(builder),
        train=first(train_images, read(entry.train), "--train-images"),
        validation=first(validation_images, read(entry.validation), "--validation-images"),
        test=read(entry.test),
        augmentation=Augmentation(entry.shift or 0, entry.flip),
    )


def scale(images: UInt8[np.ndarray, "n _ _ c"], side: int) -> UInt8[np.ndarray, "n _ _ c"]:
    """Scale images to squares of `side` pixels, each pixel the mean of what it covers where they get smaller."""
    if images.shape[1:3] == (side, side):
        return images
    grey = images.shape[-1] == 1
    scaled = (
        Image.fromarray(image[..., 0] if grey else image).resize((side, side), Image.Resampling.BILINEAR)
        for image in images
    )
    return np.stack([np.asarray(image).reshape(side, side, -1) for image in scaled])


def check_images(flag: str, wanted: int, there: int, name: str) -> None:
    """Refuse to take more images of a split than there are.

    Raises:
        UserError: says how many there are.
    """
    if not 0 < wanted <= there:
        raise UserError(f"{flag} must be between 1 and the {there} of {name}, got {wanted}")


def batch_indices(key: Key[Array, ""], step: Int[Array, ""], count: int, batch_size: int) -> Int[Array, " n"]:
    """Which of `count` examples make up the batch of a step.

    Every epoch is a new order, cut into whole batches: within an epoch no example comes twice. What is
    left over (fewer than `batch_size`) is another handful in every epoch.
    """
    steps_per_epoch = count // batch_size
    epoch, position = step // steps_per_epoch, step % steps_per_epoch
    places = position * batch_size + jnp.arange(batch_size)
    return shuffled(jax.random.fold_in(key, epoch), places, count)


ROUNDS = 8
"""Of the network below. Four are enough for it to look random (Luby and Rackoff, 1988)."""


def shuffled(key: Key[Array, ""], places: Int[Array, " n"], count: int) -> Int[Array, " n"]:
    """What is at these places of a random order of 0, 1, ..., count - 1, of which only these places are computed.

    `jax.random.permutation` sorts all of them at every step, which for 54,000 takes as long as training a small
    network on a batch. As in Grain's index shuffle, a cipher of the places serves as the order: a Feistel network permutes the
    numbers of an even number of bits, and is applied again to what lands at `count` or beyond.
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

    # The order of the numbers below `count` is a cycle's, with those beyond left out: so it ends.
    start = encipher(places.astype(jnp.uint32))
    return jax.lax.while_loop(lambda numbers: jnp.any(numbers >= count), again, start).astype(jnp.int32)


def _mix(bits: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A hash of 32 bits: the last step of MurmurHash3 (Appleby)."""
    bits = (bits ^ bits >> 16) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ bits >> 13) * jnp.uint32(0xC2B2AE35)
    return bits ^ bits >> 16


def augment(
    key: Key[Array, ""], places: Int[Array, " n"], images: UInt8[Array, "n h w c"], augmentation: Augmentation
) -> UInt8[Array, "n h w c"]:
    """Move and mirror each image by chances of its own, which depend on its place in the batch alone."""
    _, height, width, channels = images.shape
    shift = augmentation.shift
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))

    def vary(place, image):
        shift_key, flip_key = jax.random.split(jax.random.fold_in(key, place))
        corner = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))
        flip = augmentation.flip & jax.random.bernoulli(flip_key)
        return jnp.where(flip, image[:, ::-1], image)

    return jax.vmap(vary)(places, padded)


@dataclasses.dataclass(frozen=True)
class ResidentData:
    """Training batches out of a set that is whole on every device.

    Attributes:
        dataset: the set.
        batch_size: of the whole batch.
    """

    dataset: Dataset
    batch_size: int
    shared = True

    def shapes(self) -> Examples:
        """Of the training split."""
        return jax.eval_shape(lambda: self.dataset.train)

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Examples, None]]:
        """The training split at every step: which of it is meant follows from the step's number."""
        return itertools.repeat((self.dataset.train, None))

    def batch(self, value: Examples, seed: Int[Array, ""], step: Int[Array, ""], places: Int[Array, " n"]) -> Batch:
        """The examples at these places of the step's batch."""
        order_key, augment_key = jax.random.split(data_key(seed))
        chosen = batch_indices(order_key, step, len(value.labels), self.batch_size)
        chosen = chosen[places]
        images = augment(jax.random.fold_in(augment_key, step), places, value.images[chosen], self.dataset.augmentation)
        return Batch(self.dataset.normalization(images), value.labels[chosen], jnp.ones(len(places)), places)


def data_key(seed: Int[Array, ""]) -> Key[Array, ""]:
    """What a run's batches follow from, besides the step; its initial weights follow from another part of the seed."""
    return jax.random.split(jax.random.key(seed))[1]


def evaluation_batches(
    examples: Examples, batch_size: int, normalization: Normalization, part: int = 0, parts: int = 1
) -> Iterator[Batch]:
    """Every example exactly once, in order, in batches of one shape: the last is filled up with weight 0.

    Of `parts` processes, number `part` gets its share of every batch.
    """
    share = batch_size // parts
    for start in range(part * share, part * share + len(examples.labels), batch_size):
        images = examples.images[start : start + share]
        labels = examples.labels[start : start + share]
        yield pad_batch(normalization(images), labels, share)


def pad_batch(images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], size: int) -> Batch:
    """A batch of `size` examples, the last of them of weight 0 where there are fewer."""
    missing = size - len(labels)
    weights = np.pad(np.ones(len(labels), np.float32), (0, missing))
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return Batch(images, np.pad(labels, (0, missing)), weights, np.arange(size, dtype=np.int32))
