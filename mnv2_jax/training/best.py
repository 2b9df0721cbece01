"""Keep the network of a run that scores best on the validation split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from mnv2_jax.errors import UserError
from mnv2_jax.network import Network, read_description, save_network
from mnv2_jax.results import misfit
from mnv2_jax.training.step import TrainState

NOTE = "best"
"""Key in the network's description that holds its step and its validation metrics."""


def variables_of(state: TrainState) -> PyTree:
    """Return the variables to save of a group of one run: the moving average of the parameters if there is one."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], state.variables(averaged=True))


class Best:
    """Keeps the best network of one run in a folder, with its metrics, so that a resumed run knows them.

    A run that resumes from before its best step reaches the same network again and leaves the saved one in place.

    Args:
        folder: where the network is saved.
        network: the run's network, without variables.

    Attributes:
        found: {"step": the best step, "validation": its metrics}; None before the first evaluation.

    Raises:
        UserError: if the folder holds something else or is damaged.
    """

    def __init__(self, folder: Path, network: Network):
        self.found: dict[str, Any] | None = None
        self._folder, self._network, self._metric = folder, network, network.task.metric
        if folder.exists():
            shape = {NOTE: {"step": int, "validation": {self._metric.name: float, str: object}}, str: object}
            try:
                description = read_description(folder)
                if problem := misfit(description, shape):
                    raise UserError(f"{folder} is not the best network of a run ({problem})")
            except UserError as error:
                raise UserError(
                    f"{error}; move it away and run the same command to keep the best network from there on"
                ) from error
            self.found = description[NOTE]

    def __call__(self, state: TrainState, step: int, found: Sequence[dict[str, float]]) -> None:
        """Save the network of this step if it is the best so far; `found` holds the metrics of a group of one run.

        Raises:
            UserError: if it cannot be written.
        """
        (metrics,) = found
        before = None if self.found is None else self.found["validation"][self._metric.name]
        if not self._metric.is_better(metrics[self._metric.name], before):
            return
        self.found = {"step": step, "validation": dict(metrics)}
        if jax.process_index() == 0:
            save_network(self._folder, self._network.replace(variables=variables_of(state)), {NOTE: self.found})
