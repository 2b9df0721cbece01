"""Trained networks on disk. The one place that knows Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from mnv2_jax.errors import UserError

FILES = {"variables", "description", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""What Orbax keeps in a checkpoint's folder; the last only where it cannot rename a finished folder into place."""


def is_replaceable(path: Path) -> bool:
    """Whether a folder, and no link to one, holds a checkpoint and nothing else, or nothing at all."""
    names = {entry.name for entry in path.iterdir()}
    return not path.is_symlink() and names <= FILES and (not names or {"variables", "description"} <= names)


def save_checkpoint(path: Path, variables: PyTree, description: Mapping[str, Any]) -> None:
    """Write a network's variables ("params" and "batch_stats") and what JSON can hold about it, both or neither.

    What was at `path` is replaced. Of several processes one calls this, and the others need not.
    """
    # On the host, so that it is nobody's but this process's.
    variables = jax.tree.map(np.asarray, variables)
    parts = ocp.args.Composite(
        variables=ocp.args.StandardSave(variables), description=ocp.args.JsonSave(dict(description))
    )
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix="network"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        variables=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        description=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path.absolute(), parts, force=True)


def load_description(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was told about the network.

    Raises:
        UserError: if there is no such checkpoint, or it is damaged.
    """
    return _restore(path, description=ocp.args.JsonRestore())["description"]


def load_variables(path: Path, shapes: PyTree) -> PyTree:
    """Read the variables that `save_checkpoint` wrote, as arrays on the default device.

    Args:
        path: the checkpoint's folder.
        shapes: `jax.ShapeDtypeStruct`s of the same structure; what is on disk has to fit them.

    Raises:
        UserError: if it does not fit, or is damaged.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    return _restore(path, variables=ocp.args.StandardRestore(target))["variables"]


def _restore(path: Path, **parts: Any) -> Any:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path.absolute(), ocp.args.Composite(**parts))
    except Exception as error:  # Orbax lets errors of every library below it through
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the checkpoint {path} cannot be read; it may be damaged ({reason})") from error
