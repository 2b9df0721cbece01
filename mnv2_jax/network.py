"""A trained network as one record: model, task, variables and preprocessing. This module saves and opens it.

On disk it is a folder written by Orbax, with "variables" (the arrays) and "description" (the rest and a digest of the
arrays, as JSON).
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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
from mnv2_jax.results import misfit
from mnv2_jax.tasks.task import TASKS, Task, task_settings
from mnv2_jax.wording import counted

OWN = "mnv2_jax"
"""The `source` of networks trained with this package."""

DIGEST = "variables_sha256"
"""The description's key for the digest of the arrays."""

ODD = re.compile(r"[*?\[\\\ud800-\udfff]")
"""Characters that Orbax or TensorStore cannot handle in a path."""

DESCRIPTION = {
    "model": dict,
    "image_channels": int,
    "source": str,
    "preprocessing": (str, dict),
    "resolution": int,
    "class_names": ([str], type(None)),
}
"""Keys that every description has, with their types; `from_description` checks the rest."""

FILES = {"variables", "description", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Names in a network's folder. Orbax writes the last only where it cannot rename a finished folder into place."""


class Network(NamedTuple):
    """A trained network and what is needed to use it.

    Attributes:
        model: the Flax module.
        variables: its "params" and "batch_stats".
        task: what its outputs mean.
        source: where it comes from: a name in `mnv2_jax.weights.load.SOURCES`, "mnv2_jax" for our own runs, or an
            experiment's name.
        preprocessing: a name in `mnv2_jax.data.preprocessing.PREPROCESSING`, or a `Preprocessing`.
        resolution: side of its images in pixels.
        class_names: one per output; None if they are not known.
        notes: sentences that say what was decided when it was read.
        image_channels: 3 for RGB images, 1 for greyscale.
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
        """Return a copy with these attributes changed."""
        return self._replace(**changes)


@functools.cache
def variable_shapes(model: nn.Module, channels: int = 3) -> dict[str, Any]:
    """Return a model's variables as `jax.ShapeDtypeStruct`s."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return dict(jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images))


# --- The description -------------------------------------------------------------------------------------


def describe(network: Network) -> dict[str, Any]:
    """Return everything but the variables, as JSON values."""
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
    """Make a network, without its variables, from the output of `describe`.

    Args:
        description: from this version, or from 0.1.0.
        blocks: the user's own block classes that the network may use.

    Raises:
        UserError: if it describes no network that is known here.
    """
    try:
        settings = upgrade_settings(dict(description["model"]))
        own = {f"{block.__module__}.{block.__qualname__}": block for block in blocks}
        if settings.get("block") in own:
            settings["block"] = own[settings["block"]]
        model = create_model(**settings)
        # Version 0.1.0 had classification only.
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
    except Exception as error:  # an edited description can fail in any way
        why = " ".join(str(error).split())
        raise UserError(f"its description is not of a supported network ({why})") from error


# --- On disk ---------------------------------------------------------------------------------------------


def tree_digest(tree: PyTree) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bits of all arrays in a tree."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # Attributes, keys and indices are treated alike and sorted by name: a restored tree may have dictionaries.
        name = "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
        leaves[name] = leaf
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        array = np.asarray(leaf if whole else leaf.addressable_data(0))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def orbax_path(folder: Path) -> Iterator[Path]:
    """Yield a path to a folder that Orbax can write and read: the folder itself, or a temporary link to it.

    Orbax treats the whole path as a glob pattern when it looks for its own files, so it finds none in `c[1]`, and
    another folder's in `a*b`. TensorStore treats a backslash as a slash, and rejects paths that are not UTF-8.
    """
    folder = folder.absolute()
    if not ODD.search(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mnv2_jax-") as place:
        link = Path(place) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def said_by(error: Exception) -> str:
    """Return the reason of an error from Orbax, or a library below it, in one line."""
    text = " ".join(str(error).split())
    if "No space left" in text:
        return "no space left on device"
    return getattr(error, "strerror", None) or text[:200] or type(error).__name__


def check_room(folder: Path, tree: PyTree) -> None:
    """Refuse to write arrays for which the disk lacks space; on a full disk dozens of Orbax's writers would fail.

    Raises:
        OSError: says how much space is needed and how much is free.
    """
    needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + (1 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free")


def save_network(path: Path, network: Network, notes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write a network to `path`, replacing what was there. `open_network` reads it without further arguments.

    `notes` are stored in its description, which `read_description` reads.

    The network is written to a temporary folder next to `path`, read back, and then moved into place, so that a failure
    leaves the old one intact. Only one of several processes calls this; it does not wait for the others.

    Raises:
        UserError: if it cannot be written, for example for lack of space.
    """
    # Copied to the host, so that the arrays belong to this process only.
    variables = jax.tree.map(np.asarray, dict(network.variables))
    parts = ocp.args.Composite(
        variables=ocp.args.StandardSave(variables),
        description=ocp.args.JsonSave({**notes, **describe(network), DIGEST: tree_digest(variables)}),
    )
    path = path.absolute()
    beside = path.with_name(f".{path.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        check_room(beside, variables)
        with orbax_path(beside) as folder, _checkpointer() as checkpointer:
            checkpointer.save(folder / "new", parts)
        _open_variables(beside / "new", variables, tree_digest(variables))
        _replace_folder(path, beside)
    except Exception as error:  # a full disk raises OSError, or another error that a library makes of it
        raise UserError(
            f"the network {path} cannot be written ({said_by(error)}); free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace_folder(path: Path, beside: Path) -> None:
    """Move `beside`/new to `path`; what was there goes to `beside`/old, and back if the move fails."""
    there = os.path.lexists(path)
    if there:
        path.rename(beside / "old")
    try:
        (beside / "new").rename(path)
    except OSError:
        if there:
            (beside / "old").rename(path)
        raise


def read_description(path: Path) -> dict[str, Any]:
    """Read the description of a saved network: the output of `describe`, and the notes.

    Raises:
        UserError: if there is no such network, or it is damaged.
    """
    description = _restore(path, description=ocp.args.JsonRestore())["description"]
    if problem := misfit(description, DESCRIPTION):
        raise UserError(f"the network {path} is damaged: its description is invalid ({problem})")
    return description


def open_network(path: Path, blocks: Sequence[type[Block]] = ()) -> Network:
    """Read a network that `save_network` wrote; its arrays are on the default device.

    Args:
        path: the network's folder.
        blocks: the user's own block classes that the network may use.

    Raises:
        UserError: if there is no such network, if it is damaged, or if its arrays do not fit its model.
    """
    description = read_description(path)
    network = from_description(description, blocks)
    try:
        shapes = variable_shapes(network.model, network.image_channels)
        check_agrees(network)
    except Exception as error:  # settings of wrong types can fail in any way
        raise UserError(
            f"the network {path} is damaged: no network can be built from its description ({said_by(error)})"
        ) from error
    # Version 0.1.0 stored no digest.
    return network.replace(variables=_open_variables(path, shapes, description.get(DIGEST)))


def check_agrees(network: Network) -> None:
    """Check that the number of outputs fits the task and the class names, and that the resolution is valid.

    Raises:
        ValueError: says what does not fit.
    """
    outputs = network.model.num_classes  # type: ignore[attr-defined]
    counts = {"num_classes": getattr(network.task, "num_classes", outputs)}
    if network.class_names is not None:
        counts["class_names"] = len(network.class_names)
    for name, count in counts.items():
        if outputs and count != outputs:
            raise ValueError(
                f"{name} specifies {counted(count, 'class')}, but the network has {counted(outputs, 'output')}"
            )
    if not 0 < network.resolution < 1 << 15:
        raise ValueError(f"its resolution must be from 1 to {(1 << 15) - 1}, got {network.resolution}")


def _open_variables(path: Path, shapes: PyTree, digest: str | None) -> dict[str, PyTree]:
    """Read the arrays to the default device. Missing pieces of an array read as zeros; only the digest reveals them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    variables = _restore(path, variables=ocp.args.StandardRestore(target))["variables"]
    if digest is not None and tree_digest(variables) != digest:
        raise UserError(f"the network {path} is damaged: its arrays differ from those that were saved")
    return variables


def is_network(path: Path) -> bool:
    """Return whether a folder looks like one that `save_network` wrote."""
    return (path / "description").is_dir()


def is_replaceable(path: Path) -> bool:
    """Return whether a folder holds only a network, or is empty; False for a link to a folder."""
    names = {entry.name for entry in path.iterdir()}
    return not path.is_symlink() and names <= FILES and (not names or {"variables", "description"} <= names)


def _checkpointer() -> ocp.Checkpointer:
    """Return a checkpointer for this process alone; by default Orbax waits for all processes."""
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
        with orbax_path(path) as folder, _checkpointer() as checkpointer:
            return checkpointer.restore(folder, ocp.args.Composite(**parts))
    except Exception as error:  # Orbax passes on errors of every library below it
        raise UserError(f"the network {path} cannot be read; it may be damaged ({said_by(error)})") from error
