"""Trained networks on disk. The one place that knows Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree


def save_variables(path: Path, variables: PyTree) -> None:
    """Write a network's variables ("params" and "batch_stats"); what was at `path` is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), variables, force=True)


def load_variables(path: Path) -> PyTree:
    """Read what `save_variables` wrote, as arrays on the default device."""
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path.absolute()).item_metadata
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
        return checkpointer.restore(path.absolute(), target)
