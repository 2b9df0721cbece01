"""The interface of a task, through which training sees targets, losses and metrics; and the available tasks."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mnv2_jax.data.batch import Batch, Targets
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.tasks.metric import Evaluator, Metric, Sums


@runtime_checkable
class Task(Protocol):
    """A kind of target, with its loss and metrics.

    Attributes:
        name: its key in `TASKS`, if it is there.
        targets: encodes an image's annotation as targets.
        normalizer: name of the sum that the loss is divided by.
        metric: the main metric, by which networks are compared.
        others: further metrics, for figures and tables.
        evaluator: for metrics that are not a function of sums; None if there are none.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Targets: ...  # noqa: D102

    @property
    def normalizer(self) -> str: ...  # noqa: D102

    @property
    def metric(self) -> Metric: ...  # noqa: D102

    @property
    def others(self) -> tuple[Metric, ...]: ...  # noqa: D102

    @property
    def evaluator(self) -> Evaluator | None: ...  # noqa: D102

    def zeros(self) -> dict[str, np.ndarray]:
        """Return the sums over no examples, with the names, shapes and dtypes of what `sums` returns."""

    def sums(self, outputs: Any, batch: Batch, train: bool) -> Sums:
        """Return the sums over a batch, from the outputs of a network."""

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Compute metrics from sums over any number of batches; "loss" is divided by the normalizer.

        Raises:
            UserError: if no example counts.
        """


TASKS: dict[str, type[Any]] = {"classification": Classification}


def task_settings(task: Task) -> dict[str, Any]:
    """Return the task for JSON: its "name" in `TASKS` and the arguments to create it.

    Raises:
        ValueError: for a task that is not in `TASKS`.
    """
    if type(task) is not TASKS.get(task.name):
        raise ValueError(
            f"the task {task.name!r} is not one of {', '.join(TASKS)}: a network saved with it could not be opened"
        )
    return {"name": task.name, **dataclasses.asdict(task)}  # type: ignore[call-overload]
