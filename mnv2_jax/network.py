"""A trained network as one record: model, task, variables, and what its images need. Saved and opened here, in one place.

On disk it is a folder that Orbax wrote: "variables" (the arrays) and "description" (the rest, as JSON).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from jaxtyping import PyTree

from mnv2_jax.data.preprocessing import Preprocessing, preprocessing_from_json
from mnv2_jax.errors import UserError
from mnv2_jax.models.blocks import Block
from mnv2_jax.models.create import create_model, model_settings, upgrade_settings
from mnv2_jax.tasks.task import TASKS, Task, task_settings

OWN = "mnv2_jax"
"""The source of networks that were trained here."""

FILES = {"variables", "description", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""What Orbax keeps in a network's folder; the last only where it cannot rename a finished folder into place."""


class Network(NamedTuple):
    """A trained network and what one needs to use it.

    Attributes:
        model: the flax module.
        variables: its "params" and "batch_stats".
        task: what its outputs mean.
        source: where it comes from: a name in `mnv2_jax.weights.load.SOURCES`, "mnv2_jax" for our own runs, or an
            experiment's name.
        preprocessing: what its images need, a name in `mnv2_jax.data.preprocessing.PREPROCESSING`, or its own.
        resolution: side of its images in pixels.
        class_names: one an output; None if they are not known.
        notes: what was decided in reading it, a sentence each.
        image_channels: of its images: 3, or 1 for grey ones.
    """

    model: nn.Module
    variables: Mapping[str, PyTree]
    task: Task
    source: str
    preprocessing: str | Preprocessing
    resolution: int
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    image_channels: int = 3

    def replace(self, **changes: Any) -> "Network":
        """The same network with other attributes."""
        return self._replace(**changes)


@functools.cache
def variable_shapes(model: nn.Module, channels: int = 3) -> dict[str, Any]:
    """A model's variables as `jax.ShapeDtypeStruct`s."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return dict(jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images))


# --- The description -------------------------------------------------------------------------------------


def describe(network: Network) -> dict[str, Any]:
    """All but the variables, as JSON can hold it."""
    how = network.preprocessing
    return {
        "model": model_settings(network.model),
        "task": task_settings(network.task),
        "image_channels": network.image_channels,
        "source": network.source,
        "preprocessing": how if isinstance(how, str) else dataclasses.asdict(how),
        "resolution": network.resolution,
        "class_names": network.class_names,
    }


def from_description(description: Mapping[str, Any], blocks: Sequence[type[Block]] = ()) -> Network:
    """The network that `describe` described, without its variables.

    Args:
        description: of this version, or of 0.1.0.
        blocks: block classes of one's own that the network may be made of.

    Raises:
        UserError: if it describes no network that is known here.
    """
    try:
        settings = upgrade_settings(dict(description["model"]))
        own = {f"{block.__module__}.{block.__qualname__}": block for block in blocks}
        if settings.get("block") in own:
            settings["block"] = own[settings["block"]]
        model = create_model(**settings)
        # Version 0.1.0 knew classification only.
        task = dict(description.get("task") or {"name": "classification", "num_classes": model.num_classes})
        names = description["class_names"]
        return Network(
            model=model,
            variables={},
            task=TASKS[task.pop("name")](**task),
            source=description["source"],
            preprocessing=preprocessing_from_json(description["preprocessing"]),
            resolution=description["resolution"],
            class_names=tuple(names) if names else None,
            image_channels=description["image_channels"],
        )
    except Exception as error:  # what a hand-made description breaks cannot be listed
        raise UserError(f"its description is not of a network known here ({error})") from error


# --- On disk ---------------------------------------------------------------------------------------------


def save_network(path: Path, network: Network) -> None:
    """Write a network that `open_network` reads without further arguments; what was at `path` is replaced.

    Of several processes one calls this, and the others need not.
    """
    # On the host, so that the arrays are nobody's but this process's.
    variables = jax.tree.map(np.asarray, dict(network.variables))
    parts = ocp.args.Composite(
        variables=ocp.args.StandardSave(variables), description=ocp.args.JsonSave(describe(network))
    )
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), parts, force=True)


def open_network(path: Path, blocks: Sequence[type[Block]] = ()) -> Network:
    """Read what `save_network` wrote; arrays are on the default device.

    Args:
        path: the network's folder.
        blocks: block classes of one's own that it may be made of.

    Raises:
        UserError: if there is no such network, it is damaged, or its arrays are not its model's.
    """
    network = from_description(_restore(path, description=ocp.args.JsonRestore())["description"], blocks)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        variable_shapes(network.model, network.image_channels),
    )
    return network.replace(variables=_restore(path, variables=ocp.args.StandardRestore(target))["variables"])


def is_network(path: Path) -> bool:
    """Whether a folder looks like one that `save_network` wrote."""
    return (path / "description").is_dir()


def is_replaceable(path: Path) -> bool:
    """Whether a folder, and no link to one, holds a network and nothing else, or nothing at all."""
    names = {entry.name for entry in path.iterdir()}
    return not path.is_symlink() and names <= FILES and (not names or {"variables", "description"} <= names)


def _checkpointer() -> ocp.Checkpointer:
    """Reads and writes for this process alone: by itself Orbax waits for all of them."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"network{this}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        variables=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        description=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _restore(path: Path, **parts: Any) -> Any:
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path.absolute(), ocp.args.Composite(**parts))
    except Exception as error:  # Orbax lets errors of every library below it through
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the network {path} cannot be read; it may be damaged ({reason})") from error
