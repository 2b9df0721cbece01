"""Batches, targets that follow their images, and the interface that the trainer expects of a data set."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt8

if TYPE_CHECKING:
    from mnv2_jax.data.preprocessing import Preprocessing


class Batch(NamedTuple):
    """A batch of examples, or one device's part of it. Examples of weight 0 are padding and count nowhere."""

    images: Float[Array | np.ndarray, "n h w c"]  # normalised
    targets: PyTree  # only the task knows its structure; every leaf has the axis n
    weights: Float[Array | np.ndarray, " n"]
    # Index in the global batch; seeds augmentation and dropout. Shadows the method tuple.index.
    index: Int[Array | np.ndarray, " n"]  # type: ignore[assignment]


class Examples(NamedTuple):
    """uint8 images and their targets: a split in memory, or a streamed batch."""

    images: UInt8[Array | np.ndarray, "*n h w c"]
    targets: PyTree


class View(NamedTuple):
    """The crop of a decoded image that becomes the input: scaled to a square, then mirrored if `flip`.

    Points are (row, column) in pixels from the upper left corner; pixel i covers i to i + 1.

    Attributes:
        height, width: size of the decoded image in pixels.
        top, left, rows, columns: the crop, in pixels of the decoded image; zeros where it lies outside the image.
        flip: whether the crop is mirrored left to right.
        resolution: side of the input in pixels.
    """

    height: int
    width: int
    top: float
    left: float
    rows: float
    columns: float
    flip: bool
    resolution: int

    def move_points(self, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Map points of the decoded image to points of the input; they may fall outside the input."""
        scale = self.resolution / np.array([self.rows, self.columns])
        moved = (points - np.array([self.top, self.left])) * scale
        if self.flip:
            moved[..., 1] = self.resolution - moved[..., 1]
        return moved

    def move_mask(
        self, mask: Shaped[np.ndarray, "h w"], outside: int = 0
    ) -> Shaped[np.ndarray, "{self.resolution} {self.resolution}"]:
        """Map a mask of the decoded image to a mask of the input, by nearest neighbour; `outside` fills the rest."""
        steps = (np.arange(self.resolution) + 0.5) / self.resolution
        row = np.floor(self.top + steps * self.rows).astype(int)
        column = np.floor(self.left + steps * self.columns).astype(int)
        inside = ((row >= 0) & (row < self.height))[:, None] & ((column >= 0) & (column < self.width))
        values = mask[np.clip(row, 0, self.height - 1)][:, np.clip(column, 0, self.width - 1)]
        moved = np.where(inside, values, mask.dtype.type(outside))
        return moved[:, ::-1] if self.flip else moved


class Move(NamedTuple):
    """Augmentation in the compiled step: a shift by whole pixels, padded with zeros, then mirrored if `flip`."""

    down: Int[Array, ""]
    right: Int[Array, ""]
    flip: Bool[Array, ""]

    def move_points(self, points: Float[Array, "*n 2"], resolution: int) -> Float[Array, "*n 2"]:
        """Map points (row, column) of the image before the move to points after it."""
        row, column = points[..., 0] + self.down, points[..., 1] + self.right
        return jnp.stack([row, jnp.where(self.flip, resolution - column, column)], axis=-1)

    def move_mask(self, mask: Shaped[Array, "h w"], outside: int = 0) -> Shaped[Array, "h w"]:
        """Move a mask as the image is moved; `outside` fills the rest."""
        row, column = (jnp.arange(size) - by for size, by in zip(mask.shape, (self.down, self.right), strict=True))
        inside = ((row >= 0) & (row < len(row)))[:, None] & ((column >= 0) & (column < len(column)))
        values = mask[jnp.clip(row, 0, len(row) - 1)][:, jnp.clip(column, 0, len(column) - 1)]
        moved = jnp.where(inside, values, mask.dtype.type(outside))
        return jnp.where(self.flip, moved[:, ::-1], moved)


@runtime_checkable
class Targets(Protocol):
    """Encodes an image's annotation as the targets of a task, and moves them with the image."""

    def encode(self, annotation: Any, view: View) -> PyTree:
        """Return the targets of one example in the input's coordinates, as NumPy leaves of fixed shapes."""

    def move(self, targets: PyTree, move: Move, resolution: int) -> PyTree:
        """Return one example's targets after `move` of its image of `resolution` pixels; runs in the compiled step."""

    def empty(self) -> PyTree:
        """Return the targets of a padding example, with the shapes and dtypes that `encode` returns."""


@dataclasses.dataclass(frozen=True)
class ClassTargets:
    """The class index, which does not change when the image is moved.

    Attributes:
        numbers: the network's class index for each class of the data set; None if they are the same.
    """

    numbers: tuple[int, ...] | None = None

    def encode(self, annotation: Any, view: View) -> Int[np.integer, ""]:
        """Return the class index; the annotation is the data set's class index."""
        return np.int32(annotation if self.numbers is None else self.numbers[annotation])

    def move(self, targets: Int[Array, ""], move: Move, resolution: int) -> Int[Array, ""]:
        """Return the targets unchanged."""
        return targets

    def empty(self) -> Int[np.integer, ""]:
        """Return class 0."""
        return np.int32(0)


CLASSES = ClassTargets()
"""The default targets of a data set."""


class Normalization(NamedTuple):
    """Mean and standard deviation per channel, for values in 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_fractions(self, values):
        """Normalise values in 0 to 1 (JAX or NumPy) to the network's input range."""
        mean, std = (np.array(part[: values.shape[-1]], np.float32) for part in (self.mean, self.std))
        return (values - mean) / std

    def __call__(self, images):
        """Normalise values in 0 to 255."""
        return self.of_fractions(images.astype(np.float32) / 255)


@runtime_checkable
class TrainData(Protocol):
    """A source of training batches.

    Attributes:
        shared: whether what `values` yields is replicated on every device, or sharded along its first axis.
    """

    shared: bool

    def shapes(self) -> Any:
        """Return the global shapes of what `values` yields, over all processes."""

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Any, Any]]:
        """Yield, for each step from `step` on, the input of the compiled step and the position after it (JSON).

        `position` is the position stored in this run's checkpoint at `step`.
        """

    def batch(self, value: Any, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]) -> Batch:
        """Return the examples with these indices in the global batch; runs in the compiled step."""


@runtime_checkable
class Dataset(Protocol):
    """The interface of a data set, resident or streamed, for training and evaluation."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""

    @property
    def train_images(self) -> int:
        """Number of training images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, by class index."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def preprocessing(self) -> "str | Preprocessing":
        """Evaluation preprocessing, a name in `PREPROCESSING` or a `Preprocessing`; training normalises the same."""

    @property
    def targets(self) -> Targets:
        """Encoder of the targets in its batches."""

    @property
    def said(self) -> tuple[str, ...]:
        """Lines for the user: what was found and how it is read."""

    def count(self, split: str) -> int:
        """Return the number of images in "train", "validation" or "test"."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the data change."""

    def at(self, resolution: int) -> "Dataset":
        """Return the data set at another resolution; training shifts scale with it."""

    def prepared_as(self, preprocessing: "str | Preprocessing", channels: int) -> "Dataset":
        """Return the data set for another network: normalised by its preprocessing, greyscale (1) or RGB (3)."""

    def train_data(self, batch_size: int, accumulation: int = 1) -> TrainData:
        """Return training batches of `batch_size` examples, `accumulation` microbatches per device."""

    def evaluation(self, split: str, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield one process's part of every batch of `batch_size`; each example of the split comes exactly once."""


def data_key(seed: Int[Array, ""]) -> Key[Array, ""]:
    """Return the key for data order and augmentation; the seed's other half initialises the weights."""
    return jax.random.split(jax.random.key(seed))[1]


def stack_targets(targets: Sequence[PyTree]) -> PyTree:
    """Stack the targets of one or more examples along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *targets)


def pad_batch(images: Float[np.ndarray, "n h w c"], targets: PyTree, size: int, empty: PyTree) -> Batch:
    """Pad a batch to `size` examples with zero images of weight 0 and `empty` targets."""
    count = len(images)
    missing = size - count
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    targets = jax.tree.map(
        lambda leaf, blank: np.concatenate([leaf, np.repeat(np.asarray(blank)[None], missing, 0)]), targets, empty
    )
    weights = np.pad(np.ones(count, np.float32), (0, missing))
    return Batch(images, targets, weights, np.arange(size, dtype=np.int32))
