"""What a step works on, whether it comes from the device's own copy of a small set or from a stream."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int


class Batch(NamedTuple):
    """A batch of examples, or a device's part of it. Weight 0 marks padding, which counts nowhere."""

    images: Float[Array | np.ndarray, "n h w c"]  # normalised
    labels: Int[Array | np.ndarray, " n"]
    weights: Float[Array | np.ndarray, " n"]
    places: Int[Array | np.ndarray, " n"]  # in the whole batch: what an example's chances depend on


class Normalization(NamedTuple):
    """What is subtracted from values in 0 to 1, and what they are divided by then, a channel."""

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
        shared: whether every device gets the whole of what `values` yields, or each its part of the first axis.
    """

    shared: bool

    def shapes(self) -> Any:
        """The shapes of what `values` yields, of all processes together."""

    def values(self, seed: int, step: int, position: Any = None) -> Iterator[tuple[Any, Any]]:
        """For each step from `step` on: what the compiled step is given, and the position behind it, for JSON.

        `position` is the one that a checkpoint of this run kept at `step`.
        """

    def batch(self, value: Any, seed: Int[Array, ""], step: Int[Array, ""], places: Int[Array, " n"]) -> Batch:
        """Inside the compiled step: the examples at these places of the whole batch."""
