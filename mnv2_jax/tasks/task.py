"""What training asks of a task: it knows nothing else about targets, losses and metrics. And which tasks there are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mnv2_jax.data.batch import Batch, Targets
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.tasks.metric import Evaluator, Metric, Sums


@runtime_checkable
class Task(Protocol):
    """A kind of target, with its loss and its metrics.

    Attributes:
        name: in `TASKS`, for the tasks that are there.
        targets: from what is known of an image to the targets in a batch.
        normalizer: name of the sum that the loss is divided by.
        metric: the one that decides.
        others: further ones that it measures, for figures and tables.
        evaluator: for metrics that are no function of sums; None where there are none.
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
        """The sums over no examples: names, shapes and types of all that `sums` returns."""

    def sums(self, outputs: Any, batch: Batch, train: bool) -> Sums:
        """The sums over a batch, from the outputs of a network."""

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """What people read, from sums over any number of batches; "loss" is divided by the normalizer.

        Raises:
            UserError: if no example counts.
        """


TASKS: dict[str, type[Any]] = {"classification": Classification}


def task_settings(task: Task) -> dict[str, Any]:
    """The task as JSON can hold it: its "name", with which `TASKS` makes it of the rest.

    Raises:
        ValueError: for a task that is not in `TASKS`.
    """
    if type(task) is not TASKS.get(task.name):
        raise ValueError(
            f"the task {task.name!r} is none of {', '.join(TASKS)}: a network saved with it could not be opened"
        )
    return {"name": task.name, **dataclasses.asdict(task)}  # type: ignore[call-overload]
