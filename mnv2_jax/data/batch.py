"""What a step works on, how targets follow their images, and what the trainer asks of a data set."""

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
    """A batch of examples, or a device's share of it. Weight 0 marks padding, which counts nowhere."""

    images: Float[Array | np.ndarray, "n h w c"]  # normalised
    targets: PyTree  # known to the task alone; every leaf has the axis n
    weights: Float[Array | np.ndarray, " n"]
    # In the global batch: what augmentation and dropout are drawn from. It hides the tuple's method.
    index: Int[Array | np.ndarray, " n"]  # type: ignore[assignment]


class Examples(NamedTuple):
    """Images as bytes with their targets: a split in memory, or what a stream gives to a step."""

    images: UInt8[Array | np.ndarray, "*n h w c"]
    targets: PyTree


class View(NamedTuple):
    """Which part of a decoded image an input shows: scaled to a square, then mirrored if `flip`.

    Points are (row, column) in pixels, 0 at the upper left corner: pixel i reaches from i to i + 1.

    Attributes:
        height, width: of the decoded image, in pixels.
        top, left, rows, columns: the part, in pixels of the decoded image; what of it lies outside is zeros.
        flip: whether it is mirrored left to right.
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
        """Points of the decoded image as points of the input; they may lie outside of it."""
        scale = self.resolution / np.array([self.rows, self.columns])
        moved = (points - np.array([self.top, self.left])) * scale
        if self.flip:
            moved[..., 1] = self.resolution - moved[..., 1]
        return moved

    def move_mask(
        self, mask: Shaped[np.ndarray, "h w"], outside: int = 0
    ) -> Shaped[np.ndarray, "{self.resolution} {self.resolution}"]:
        """A value for every pixel of the decoded image as one for every pixel of the input: the nearest pixel's."""
        steps = (np.arange(self.resolution) + 0.5) / self.resolution
        row = np.floor(self.top + steps * self.rows).astype(int)
        column = np.floor(self.left + steps * self.columns).astype(int)
        inside = ((row >= 0) & (row < self.height))[:, None] & ((column >= 0) & (column < self.width))
        values = mask[np.clip(row, 0, self.height - 1)][:, np.clip(column, 0, self.width - 1)]
        moved = np.where(inside, values, mask.dtype.type(outside))
        return moved[:, ::-1] if self.flip else moved


class Move(NamedTuple):
    """What the compiled step does to an image: moved by whole pixels, zeros moving in, then mirrored if `flip`."""

    down: Int[Array, ""]
    right: Int[Array, ""]
    flip: Bool[Array, ""]

    def move_points(self, points: Float[Array, "*n 2"], resolution: int) -> Float[Array, "*n 2"]:
        """Points (row, column) of the image as it was, 0 at the upper left corner, in the image as it is."""
        row, column = points[..., 0] + self.down, points[..., 1] + self.right
        return jnp.stack([row, jnp.where(self.flip, resolution - column, column)], axis=-1)

    def move_mask(self, mask: Shaped[Array, "h w"], outside: int = 0) -> Shaped[Array, "h w"]:
        """A value for every pixel, moved with the pixels."""
        row, column = (jnp.arange(size) - by for size, by in zip(mask.shape, (self.down, self.right), strict=True))
        inside = ((row >= 0) & (row < len(row)))[:, None] & ((column >= 0) & (column < len(column)))
        values = mask[jnp.clip(row, 0, len(row) - 1)][:, jnp.clip(column, 0, len(column) - 1)]
        moved = jnp.where(inside, values, mask.dtype.type(outside))
        return jnp.where(self.flip, moved[:, ::-1], moved)


@runtime_checkable
class Targets(Protocol):
    """From what is known of an image to the targets of a task, and how they move with the image."""

    def encode(self, annotation: Any, view: View) -> PyTree:
        """The targets of one example as the input shows it: NumPy leaves of fixed shapes."""

    def move(self, targets: PyTree, move: Move, resolution: int) -> PyTree:
        """Inside the compiled step: the targets of one example after its image of `resolution` pixels is moved."""

    def empty(self) -> PyTree:
        """The targets of an example that does not count: leaves of the shapes and types that `encode` returns."""


@dataclasses.dataclass(frozen=True)
class ClassTargets:
    """A class's number, the same however the image is moved.

    Attributes:
        numbers: of the data set's classes in the network, where it numbers them otherwise.
    """

    numbers: tuple[int, ...] | None = None

    def encode(self, annotation: Any, view: View) -> Int[np.integer, ""]:
        """The annotation of a classification set is the class's number."""
        return np.int32(annotation if self.numbers is None else self.numbers[annotation])

    def move(self, targets: Int[Array, ""], move: Move, resolution: int) -> Int[Array, ""]:
        """Unchanged."""
        return targets

    def empty(self) -> Int[np.integer, ""]:
        """The first class."""
        return np.int32(0)


CLASSES = ClassTargets()
"""What data sets encode unless they are told otherwise."""


class Normalization(NamedTuple):
    """What is subtracted from values in 0 to 1, and what they are then divided by, a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_fractions(self, values):
        """From values in 0 to 1, of JAX or of NumPy, to the input range of a network."""
        mean, std = (np.array(part[: values.shape[-1]], np.float32) for part in (self.mean, self.std))
        return (values - mean) / std

    def __call__(self, images):
        """From bytes, 0 to 255."""
        return self.of_fractions(images.astype(np.float32) / 255)


@runtime_checkable
class TrainData(Protocol):
    """Where training batches come from.

    Attributes:
        shared: whether every device gets the whole of what `values` yields, or each its share of the first axis.
    """

    shared: bool

    def shapes(self) -> Any:
        """The shapes of what `values` yields, of all processes together."""

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Any, Any]]:
        """For each step from `step` on: what the compiled step is given, and the position after it, for JSON.

        `position` is the one that a checkpoint of this run stored at `step`.
        """

    def batch(self, value: Any, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]) -> Batch:
        """Inside the compiled step: the examples with these indices in the global batch."""


@runtime_checkable
class Dataset(Protocol):
    """What training and evaluation ask of a data set, resident or streamed."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""

    @property
    def train_images(self) -> int:
        """How many images there are to train on."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their numbers."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    @property
    def preprocessing(self) -> "str | Preprocessing":
        """How images become inputs, a name in `PREPROCESSING` or its own; training is normalised alike."""

    @property
    def targets(self) -> Targets:
        """How the targets in its batches are encoded."""

    @property
    def said(self) -> tuple[str, ...]:
        """What was found and how it is read, a line each, for those who use it."""

    def count(self, split: str) -> int:
        """How many images "train", "validation" or "test" has."""

    def fingerprint(self) -> str:
        """Changes when the data do."""

    def at(self, resolution: int) -> "Dataset":
        """The same images scaled to another size, and moved in training by as much of it."""

    def prepared_as(self, preprocessing: "str | Preprocessing", channels: int) -> "Dataset":
        """The same images as another network takes them: normalised by its preprocessing, grey (1) or RGB (3)."""

    def train_data(self, batch_size: int, accumulation: int = 1) -> TrainData:
        """Training batches of `batch_size` examples, of which a device takes `accumulation` microbatches."""

    def evaluation(self, split: str, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Every example of a split exactly once: of each batch of `batch_size`, the share of one of `processes`."""


def data_key(seed: Int[Array, ""]) -> Key[Array, ""]:
    """The key of a run's data order and augmentation; its initial weights come from the seed's other half."""
    return jax.random.split(jax.random.key(seed))[1]


def stack_targets(targets: Sequence[PyTree]) -> PyTree:
    """The targets of one or more examples along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *targets)


def pad_batch(images: Float[np.ndarray, "n h w c"], targets: PyTree, size: int, empty: PyTree) -> Batch:
    """A batch of `size` examples, the last of them zeros of weight 0 with `empty` targets where there are fewer."""
    count = len(images)
    missing = size - count
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    targets = jax.tree.map(
        lambda leaf, blank: np.concatenate([leaf, np.repeat(np.asarray(blank)[None], missing, 0)]), targets, empty
    )
    weights = np.pad(np.ones(count, np.float32), (0, missing))
    return Batch(images, targets, weights, np.arange(size, dtype=np.int32))
