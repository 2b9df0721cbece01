"""What a task measures: sums over examples, the metric that decides, and metrics that are no sums."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, PyTree

Sums = dict[str, Array]
"""Sums over examples, of any shape, so that batches of different weight, and devices, add up exactly.

Always "loss", which training minimises after division by the task's normalizer, and "examples", how many images
count; the others are the task's own.
"""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that networks are compared by.

    Attributes:
        name: its key in what `Task.metrics`, or an evaluator, returns.
        title: in figures and reports.
        higher_is_better: else lower is.
        percent: whether it is a share, printed as percents.
        chance: from the number of classes to the value of a network that has learnt nothing. None where that is not known:
            studies then cannot tell which runs failed.
    """

    name: str
    title: str
    higher_is_better: bool = True
    percent: bool = True
    chance: Callable[[int], float] | None = None

    @property
    def scale(self) -> int:
        """By what values are multiplied for people: 100 for percents."""
        return 100 if self.percent else 1

    @property
    def difference_unit(self) -> str:
        """What differences are counted in."""
        return "percentage points" if self.percent else self.title

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another; where there is no other, whether it is a number."""
        if than is None:
            return value == value
        return value > than if self.higher_is_better else value < than

    def format(self, value: float) -> str:
        """For people: "91.63 %" or "0.412"."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.3f}"


LOSS = Metric("loss", "loss", higher_is_better=False, percent=False)
"""Every task has it."""


@runtime_checkable
class Evaluator(Protocol):
    """Metrics that are no function of sums, such as average precision: made on the host of every prediction."""

    def predictions(self, outputs: Any) -> PyTree:
        """Inside the compiled step: of what the network returns, what the host needs; every leaf has the axis n."""

    def metrics(self, batches: Iterable[tuple[PyTree, PyTree, Float[np.ndarray, " n"]]]) -> dict[str, float]:
        """Metrics of a split from (predictions, targets, weights) of its batches; weight 0 counts nowhere."""
