"""What the training engine asks of a task; it knows nothing else about targets, losses and metrics."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from mnv2_jax.data.batch import Batch

Sums = dict[str, Float[Array, "*runs"]]
"""Metrics as sums over examples, so that batches of different weight, and devices, add up exactly.

"loss" is what training minimises, "examples" how many it is summed over; the others are the task's own.
"""


@runtime_checkable
class Task(Protocol):
    """A kind of target, with its loss and its metrics."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sums."""

    def sums(self, outputs: Any, batch: Batch, train: bool) -> Sums:
        """The sums over a batch of what a network put out."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What people read, from sums over any number of batches; "loss" is a mean an example."""
