"""What a task measures: sums over examples, metrics, and metrics that cannot be computed from sums."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, PyTree

Sums = dict[str, Array]
"""Sums over examples, of any shape, so that they add up exactly over devices and batches of different weight.

"loss", which training minimises after dividing it by the task's normalizer, and "examples", the number of images that
count, are always present; the others depend on the task.
"""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that networks are compared by.

    Attributes:
        name: its key in the result of `Task.metrics` or of an evaluator.
        title: name in figures and reports.
        higher_is_better: whether higher values are better; otherwise lower ones are.
        percent: whether it is a fraction, printed in percent.
        chance: function from the number of classes to the value at chance level. None if that is unknown; studies then
            cannot tell which runs failed.
    """

    name: str
    title: str
    higher_is_better: bool = True
    percent: bool = True
    chance: Callable[[int], float] | None = None

    @property
    def scale(self) -> int:
        """Factor for display: 100 for percentages, otherwise 1."""
        return 100 if self.percent else 1

    @property
    def difference_unit(self) -> str:
        """Unit of differences between two values."""
        return "percentage points" if self.percent else self.title

    def is_better(self, value: float, than: float | None) -> bool:
        """Return whether a value is better than another; if there is no other, whether it is not NaN."""
        if than is None:
            return value == value
        return value > than if self.higher_is_better else value < than

    def format(self, value: float) -> str:
        """Format a value for display: "91.63 %" or "0.412"."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.3f}"


LOSS = Metric("loss", "loss", higher_is_better=False, percent=False)
"""The loss, a metric of every task."""


@runtime_checkable
class Evaluator(Protocol):
    """Metrics that are not a function of sums, such as average precision: computed on the host from all predictions."""

    def predictions(self, outputs: Any) -> PyTree:
        """Return what the host needs of the network's outputs, inside the compiled step; every leaf has the axis n."""

    def metrics(self, batches: Iterable[tuple[PyTree, PyTree, Float[np.ndarray, " n"]]]) -> dict[str, float]:
        """Compute metrics of a split from (predictions, targets, weights) of its batches; weight 0 does not count."""
