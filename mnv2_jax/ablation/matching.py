"""Match networks of different kinds in cost, by their width multiplier."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from mnv2_jax.ablation.arms import with_shared
from mnv2_jax.ablation.design import image_size
from mnv2_jax.data.catalog import FOLDER
from mnv2_jax.data.folder import read_folder
from mnv2_jax.data.prepare import image_key, label_key, make_builder
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import count_multiply_adds, count_parameters
from mnv2_jax.models.create import create_model
from mnv2_jax.models.names import LEAST_SCALE
from mnv2_jax.settings import DataSettings

Cost = Literal["multiply_adds", "parameters"]
COUNTS = {"multiply_adds": count_multiply_adds, "parameters": count_parameters}

TOLERANCE = 0.02
"""Largest relative error in cost of a matched network."""


class Matching:
    """Finds widths for the images and classes of one data set.

    Args:
        data: its flags.
        shared: arguments of `create_model` that all networks share; a network ignores those that it does not have.
    """

    def __init__(self, data: DataSettings, shared: Mapping[str, Any]):
        side = image_size(data)
        if data.dataset == FOLDER and data.data_files is not None:
            channels, self._classes = 3, len(read_folder(data.data_files).class_names)
        else:
            builder = make_builder(data.dataset)
            features = builder.info.features
            channels, self._classes = features[image_key(builder)].shape[-1], features[label_key(builder)].num_classes
        self._image_shape = (side, side, channels)
        self._shared = shared

    def cost(self, cost: Cost, settings: Mapping[str, Any]) -> int:
        """Return the cost of the network with these `settings` and the shared ones."""
        network = create_model(**with_shared(self._shared, settings), num_classes=self._classes)
        return COUNTS[cost](network, self._image_shape)

    def match(self, cost: Cost, target: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return `settings` with the width multiplier at which the cost is `target`, and unrounded channels.

        Cost grows roughly with the square of the width, except in the last layers, whose outputs do not depend on it.

        Raises:
            UserError: if no width is within `TOLERANCE`.
        """
        width = float(self._shared["width_multiplier"])
        # MobileNetV1's channels are not rounded to a divisor anyway.
        fine = {"channel_divisor": 1} if settings.get("name") != "mobilenet_v1" else {}
        best, error = {}, math.inf
        for _ in range(10):
            tried = {**settings, "width_multiplier": round(width, 4), **fine}
            found = self.cost(cost, tried)
            if abs(found / target - 1) < error:
                best, error = tried, abs(found / target - 1)
            if error < TOLERANCE / 4:
                break
            width = max(width * math.sqrt(target / found), LEAST_SCALE)
        if error > TOLERANCE:
            what = cost.replace("_", "-")
            raise UserError(
                f"no width of {settings} has {target:,} {what} within {TOLERANCE:.0%}; "
                f"the nearest is off by {error:.1%}; use a larger --width-multiplier"
            )
        return best
