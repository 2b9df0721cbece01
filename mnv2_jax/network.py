"""A trained network as one record: model, task, variables, and what its images need. Saved and opened here, in one place.

On disk it is a folder that Orbax wrote: "variables" (the arrays) and "description" (the rest and a digest of the arrays,
as JSON).
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
"""The source of networks that were trained here."""

DIGEST = "variables_sha256"
"""What the description calls the digest of the arrays."""

ODD = re.compile(r"[*?\[\\\ud800-\udfff]")
"""What Orbax or TensorStore cannot have in a path."""

DESCRIPTION = {
    "model": dict,
    "image_channels": int,
    "source": str,
    "preprocessing": (str, dict),
    "resolution": int,
    "class_names": ([str], type(None)),
}
"""What a description has to hold; `from_description` knows more of it."""

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
        why = " ".join(str(error).split())
        raise UserError(f"its description is not of a network known here ({why})") from error


# --- On disk ---------------------------------------------------------------------------------------------


def tree_digest(tree: PyTree) -> str:
    """SHA-256 over the names, types, shapes and bits of all arrays of a tree."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # Attributes, keys and indices alike, in the order of their names: the tree may come back as dictionaries.
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
    """A folder under a name that Orbax can write and read: its own, or that of a link to it.

    Orbax takes a whole path for a pattern where it looks for its own files, so it finds none in `c[1]`, and another
    folder's in `a*b`; TensorStore takes a backslash for a slash, and nothing that is not UTF-8.
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
    """What Orbax, or a library below it, says went wrong, without its pages of where."""
    text = " ".join(str(error).split())
    if "No space left" in text:
        return "no space is left"
    return getattr(error, "strerror", None) or text[:200] or type(error).__name__


def check_room(folder: Path, tree: PyTree) -> None:
    """Refuse to write arrays where the disk is too full for them: writers that find it full fail by the dozen.

    Raises:
        OSError: says how much there is.
    """
    needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + (1 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")


def save_network(path: Path, network: Network, notes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write a network that `open_network` reads without further arguments; what was at `path` is replaced by it.

    `notes` are kept in its description, which `read_description` reads.

    It is written beside its place and read again before it takes it, so that what was there stays where this fails. Of
    several processes one calls this, and the others need not.

    Raises:
        UserError: where it cannot be written, for want of space for instance.
    """
    # On the host, so that the arrays are nobody's but this process's.
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
    except Exception as error:  # a full disk comes as OSError, or wrapped by what found it full
        raise UserError(
            f"the network {path} cannot be written ({said_by(error)}); make room, or name another place"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace_folder(path: Path, beside: Path) -> None:
    """Put `beside`/new in the place of what is at `path`, if anything."""
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
    """What `describe` said of a network that was saved, and what was noted with it.

    Raises:
        UserError: if there is no such network, or it is damaged.
    """
    description = _restore(path, description=ocp.args.JsonRestore())["description"]
    if problem := misfit(description, DESCRIPTION):
        raise UserError(f"the network {path} is damaged: its description is not of a network ({problem})")
    return description


def open_network(path: Path, blocks: Sequence[type[Block]] = ()) -> Network:
    """Read what `save_network` wrote; arrays are on the default device.

    Args:
        path: the network's folder.
        blocks: block classes of one's own that it may be made of.

    Raises:
        UserError: if there is no such network, it is damaged, or its arrays are not its model's.
    """
    description = read_description(path)
    network = from_description(description, blocks)
    try:
        shapes = variable_shapes(network.model, network.image_channels)
        check_agrees(network)
    except Exception as error:  # what settings of other types break cannot be listed
        raise UserError(
            f"the network {path} is damaged: its description makes no network ({said_by(error)})"
        ) from error
    # Version 0.1.0 kept no digest.
    return network.replace(variables=_open_variables(path, shapes, description.get(DIGEST)))


def check_agrees(network: Network) -> None:
    """Refuse a network whose parts are not of one another.

    Raises:
        ValueError: says which.
    """
    outputs = network.model.num_classes  # type: ignore[attr-defined]
    counts = {"num_classes": getattr(network.task, "num_classes", outputs)}
    if network.class_names is not None:
        counts["class_names"] = len(network.class_names)
    for name, count in counts.items():
        if outputs and count != outputs:
            raise ValueError(f"{name} has {count}, and there are {counted(outputs, 'output')}")
    if not 0 < network.resolution < 1 << 15:
        raise ValueError(f"its resolution is {network.resolution}")


def _open_variables(path: Path, shapes: PyTree, digest: str | None) -> dict[str, PyTree]:
    """The arrays on the default device; what is missing of one is read as zeros, which a digest tells."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    variables = _restore(path, variables=ocp.args.StandardRestore(target))["variables"]
    if digest is not None and tree_digest(variables) != digest:
        raise UserError(f"the network {path} is damaged: its arrays are not those that were saved")
    return variables


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
        with orbax_path(path) as folder, _checkpointer() as checkpointer:
            return checkpointer.restore(folder, ocp.args.Composite(**parts))
    except Exception as error:  # Orbax lets errors of every library below it through
        raise UserError(f"the network {path} cannot be read; it may be damaged ({said_by(error)})") from error
