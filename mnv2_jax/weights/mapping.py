"""Convert other code bases' tensors to our parameter tree and back, with one table per source for both directions.

A table has one row per kind of layer, with the source's names for it as `str.format` patterns over the position of the
block. Our layers are those of the network's parameter tree. "Ours" is this package, "theirs" the source.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Backbone
from mnv2_jax.models.create import create_model, model_name
from mnv2_jax.models.mobilenet_v1 import MobileNetV1
from mnv2_jax.models.names import ConventionName
from mnv2_jax.network import variable_shapes

Tensors = dict[str, np.ndarray]

Row = tuple[str, ...]
"""Their names for a layer: (convolution, batch norm), or (classifier,)."""

Table = Mapping[str, Row]
"""Rows by our name for the layer: "stem", "head", "classifier", "block/expand", ... "plain/..." is for blocks without
an expansion layer, if their names differ."""


class Layout(NamedTuple):
    """Conversion of one of their arrays to ours.

    Attributes:
        axes: order of their axes in ours, after squeezing.
        squeeze: first drop their leading axes of size 1, keeping the last two axes.
    """

    axes: tuple[int, ...]
    squeeze: bool = False

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Convert their array to our layout."""
        if self.squeeze:
            array = array.reshape(array.shape[-2:])
        return np.ascontiguousarray(array.transpose(self.axes))

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Convert our array to their layout."""
        array = array.transpose(np.argsort(self.axes))
        if self.squeeze:
            array = array[None, None]
        return np.ascontiguousarray(array)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return their shape of an array that has `shape` in our layout."""
        theirs = tuple(shape[axis] for axis in np.argsort(self.axes))
        return (1, 1, *theirs) if self.squeeze else theirs


VECTOR = Layout((0,))


@dataclasses.dataclass(frozen=True)
class Source:
    """A code base whose weights we can read.

    Attributes:
        name: value of `--source`.
        title: name in messages.
        tables: one table per model, by our name for the model.
        convention: the numeric convention of its networks.
        preprocessing: name of the preprocessing that its networks expect, by our name for the model (see
            `mnv2_jax.data.preprocessing`).
        kernel, depthwise: (suffix of the tensor's name, layout) of the kernels of full and depthwise convolutions.
        classifier: the same for the classifier's kernel, by our name for the model.
        norm: their suffixes for our scale, bias, mean and var.
        bias: their suffix for the bias of the classifier.
        ignored: suffixes of names that are not part of the network.
    """

    name: str
    title: str
    tables: Mapping[str, Table]
    convention: ConventionName
    preprocessing: Mapping[str, str]
    kernel: tuple[str, Layout]
    depthwise: tuple[str, Layout]
    classifier: Mapping[str, tuple[str, Layout]]
    norm: tuple[str, str, str, str]
    bias: str
    ignored: tuple[str, ...] = ()


class Entry(NamedTuple):
    """One tensor: our path in the variables, their name, and the layout that converts between them."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout
    shape: tuple[int, ...]  # of ours


def flatten(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the leaves of a tree by path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the tree of leaves by path; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _positions(model: Backbone) -> list[dict[str, int]]:
    """Return the fields for the patterns of a table, per block: index, stage, index in the stage, derived numbers."""
    blocks = [(stage, repeat) for stage, row in enumerate(model.stages) for repeat in range(row.repeats)]
    return [
        {
            "i": index,
            "before": index - 1,
            "after": index + 1,
            "even": 2 * index,
            "odd": 2 * index + 1,
            "stage": stage,
            "repeat": repeat,
            "last": len(blocks) + 1,
        }
        for index, (stage, repeat) in enumerate(blocks)
    ]


def _order(path: tuple[str, ...]) -> tuple[int, int, int, int]:
    """Sort key of paths: execution order; scale, bias, mean, var within a norm."""
    unit = path[1]
    block = int(unit.removeprefix("block_")) if unit.startswith("block_") else -1
    units, layers = ("stem", "block", "head", "classifier"), ("expand", "depthwise", "project", "pointwise")
    leaves = ("kernel", "scale", "bias", "mean", "var")
    layer = layers.index(path[2]) if block >= 0 else 0
    return units.index(unit.split("_")[0]), block, layer, leaves.index(path[-1])


def entries(source: Source, model: Backbone, channels: int = 3) -> list[Entry]:
    """Expand the source's table for one network: one entry per leaf of its variables, in execution order."""
    name = model_name(model)
    table, positions = source.tables[name], _positions(model)
    shapes = {path: leaf.shape for path, leaf in flatten(variable_shapes(model, channels)).items()}
    result = []
    for path in sorted(shapes, key=_order):
        layer, leaf, shape = path[1:-1], path[-1], shapes[path]
        if layer == ("classifier",):
            (their,) = table["classifier"]
            suffix, layout = source.classifier[name] if leaf == "kernel" else (source.bias, VECTOR)
        else:
            unit, kind = layer[:-1], layer[-1]
            position = positions[-1]
            key = "/".join(unit)
            if unit[0].startswith("block_"):
                position = positions[int(unit[0].removeprefix("block_"))]
                plain = ("params", unit[0], "expand", "conv", "kernel") not in shapes
                key = f"plain/{unit[1]}" if plain and f"plain/{unit[1]}" in table else f"block/{unit[1]}"
            conv, norm = table[key]
            their = (conv if kind == "conv" else norm).format(**position)
            if kind == "norm":
                suffix, layout = source.norm[("scale", "bias", "mean", "var").index(leaf)], VECTOR
            else:
                suffix, layout = source.depthwise if unit[-1] == "depthwise" else source.kernel
        result.append(Entry(path, their + suffix, layout, shape))
    return result


# --- Theirs to ours --------------------------------------------------------------------------------------


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def strip_prefix(source: Source, tensors: Tensors) -> Tensors:
    """Remove the prefix that wrappers add to names ("module.", "model.", "mobilenet_v2.", ...).

    The prefix is taken from the name of the stem. A classifier outside the backbone has only the first parts of it.
    """
    best: tuple[int, str] = (0, "")
    for table in source.tables.values():
        stem = table["stem"][0] + source.kernel[0]
        for name in tensors:
            if name.endswith(stem):
                prefix = name.removesuffix(stem)
                best = max(best, (sum(other.startswith(prefix) for other in tensors), prefix))
    for part in best[1].split(".")[:-1]:
        tensors = {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items()}
    return tensors


def _behind(listed: Sequence[Entry], names: Iterable[str]) -> list[str]:
    """Return the PyTorch names whose first part is not in the network; the classifier does not count as part of it."""
    parts = {entry.theirs.partition(".")[0] for entry in listed if entry.ours[1] != "classifier"}
    return [name for name in names if name.partition(".")[0] not in parts]


def count_outputs(number: int) -> str:
    """Return "1 output", "2 outputs", and so on."""
    return f"{number} output{'' if number == 1 else 's'}"


def find_classifier(source: Source, name: str, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Rename the classifier of a PyTorch network to its usual name, if a single linear layer follows the backbone.

    Returns:
        The tensors, and notes on the renaming.
    """
    behind = _behind(entries(source, create_model(name, num_classes=0)), tensors)
    layers = {other.rpartition(".")[0] for other in behind}
    if len(layers) != 1 or not {other.rpartition(".")[2] for other in behind} <= {"weight", "bias"}:
        return tensors, []
    (layer,), (usual,) = layers, source.tables[name]["classifier"]
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.shape[2:] not in ((), (1, 1)) or weight.ndim < 2:
        return tensors, []
    bias = tensors.get(f"{layer}.bias", np.zeros(len(weight), np.float32))
    rest = {other: tensor for other, tensor in tensors.items() if other not in behind}
    rest |= {f"{usual}.weight": weight.reshape(weight.shape[:2]), f"{usual}.bias": bias}
    return rest, [] if layer == usual else [f"the classifier is the layer {layer!r} with {count_outputs(len(weight))}"]


def guess(source: Source, tensors: Tensors) -> tuple[str, float]:
    """Return the model that best matches the names, and the fraction of its tensor names present, classifier aside."""
    found = []
    for name in source.tables:
        names = {entry.theirs for entry in entries(source, create_model(name, num_classes=0))}
        found.append((len(names & tensors.keys()) / len(names), name))
    share, name = max(found)
    return name, share


COMMON_WIDTHS = (1.0, 1.4, 1.3, 0.75, 0.5, 0.35, 0.25)
# Because of rounding, several multipliers give the same network. Published ones come first, then rounder ones.
WIDTHS = tuple(
    dict.fromkeys(
        (*COMMON_WIDTHS, *np.arange(0.05, 3, 0.05).round(2).tolist(), *np.arange(0.01, 3, 0.01).round(2).tolist())
    )
)


def infer_model(source: Source, name: str, tensors: Tensors) -> tuple[Backbone, int]:
    """Return the network that these tensors belong to, and the number of channels of its images.

    The width multiplier is the one that matches the most layers. A single tensor with a wrong shape does not change it,
    and is reported by name later.

    Raises:
        UserError: if no width multiplier gives these channels.
    """
    (classifier,) = source.tables[name]["classifier"]
    suffix, layout = source.classifier[name]
    head = tensors.get(classifier + suffix)
    plausible = head is not None and head.ndim == (4 if layout.squeeze else 2)
    settings: dict[str, Any] = {"convention": source.convention}
    settings["num_classes"] = layout.to_ours(head).shape[-1] if plausible and head is not None else 0
    standard = entries(source, create_model(name, **settings))
    by_path = {entry.ours: entry for entry in standard}

    stem = by_path["params", "stem", "conv", "kernel"]
    channels = 3
    if stem.theirs in tensors and tensors[stem.theirs].ndim == 4:
        channels = stem.layout.to_ours(tensors[stem.theirs]).shape[2]
    expand = [entry for entry in standard if entry.ours[2:] == ("expand", "conv", "kernel")]
    shapes = [
        entry.layout.to_ours(tensors[entry.theirs]).shape
        for entry in expand
        if entry.theirs in tensors and tensors[entry.theirs].ndim == 4
    ]
    expansion = infer_expansion([shape[2:] for shape in shapes if shape[:2] == (1, 1)])
    if expansion != infer_expansion([entry.shape[2:] for entry in expand]):  # otherwise keep the t of each stage
        settings["expansion"] = expansion

    # The vectors of batch norm give the widths of all blocks.
    found = {
        entry.ours[1:-2]: tensors[entry.theirs].shape[0]
        for entry in standard
        if entry.ours[-1] == "scale" and entry.theirs in tensors and tensors[entry.theirs].ndim == 1
    }
    models = (create_model(name, width_multiplier=width, **settings) for width in WIDTHS)
    scored = ((sum(found.get(unit) == size for unit, size in output_widths(model).items()), model) for model in models)
    units = len(output_widths(create_model(name)))
    best, model = 0, None
    for score, candidate in scored:
        if score > best:
            best, model = score, candidate
        if score == units:
            break
    if model is None or best < 0.8 * units:
        sizes = ", ".join(f"{'/'.join(unit)} {size}" for unit, size in list(found.items())[:4])
        raise UserError(f"no width multiplier gives the channels of this {name} ({sizes}, ...)")
    return model, channels


def infer_expansion(widths: Sequence[tuple[int, ...]]) -> float | None:
    """Return the roundest t that gives these (input channels, expanded channels) of blocks; None if there are none."""
    widths = [(inputs, inner) for inputs, inner in widths if inputs and inner]
    if not widths:
        return None
    lowest = max((inner - 0.5) / inputs for inputs, inner in widths)
    highest = min((inner + 0.5) / inputs for inputs, inner in widths)
    for digits in range(6):
        expansion = round((lowest + highest) / 2, digits)
        if all(round(expansion * inputs) == inner for inputs, inner in widths):
            return expansion
    # No t fits all, so some tensor has a wrong shape and is reported later. The median goes with the majority.
    return statistics.median(inner / inputs for inputs, inner in widths)


def output_widths(model: Backbone) -> dict[tuple[str, ...], int]:
    """Return the output channels of the stem, of each block and of the head, by the path of their last layer."""
    last = "pointwise" if isinstance(model, MobileNetV1) else "project"
    channels = [row.channels for row in model.stages for _ in range(row.repeats)]
    widths: dict[tuple[str, ...], int] = {("stem",): model.scaled(32)}
    widths |= {(f"block_{index}", last): model.scaled(width) for index, width in enumerate(channels)}
    head = model.head_channels()
    if head is not None:
        widths["head",] = head
    return widths


def fill(source: Source, model: Backbone, channels: int, tensors: Tensors) -> dict[str, Any]:
    """Convert their tensors to our variables. Every tensor is used once and every variable filled once.

    Raises:
        UserError: names the tensors that are missing, unexpected, of the wrong shape or dtype, or not finite, and
            negative variances.
    """
    wanted = entries(source, model, channels)
    names = [entry.theirs for entry in wanted]
    missing = set(names) - tensors.keys()
    if missing:
        raise UserError(f"tensors are missing: {_listed(missing)}")
    extra = tensors.keys() - set(names)
    if extra:
        known = ""
        if _behind(wanted, extra):
            *_, features = output_widths(model).values()
            known = (
                f"; supported after the network is one linear layer with a weight of shape (classes, {features}) and a "
                "bias, or no layer: then the output is the pooled features"
            )
        raise UserError(f"unexpected tensors that belong to no layer: {_listed(extra)}{known}")
    leaves = {}
    for entry in wanted:
        tensor = tensors[entry.theirs]
        expected = entry.layout.their_shape(entry.shape)
        if tensor.shape != expected:
            raise UserError(f"{entry.theirs} has shape {tensor.shape}, expected {expected}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{entry.theirs} has dtype {tensor.dtype}, expected floating-point numbers")
        leaf = entry.layout.to_ours(tensor).astype(np.float32)
        if not np.isfinite(leaf).all():
            raise UserError(f"{entry.theirs} contains values that are not finite")
        if entry.ours[-1] == "var" and (leaf < 0).any():
            raise UserError(f"{entry.theirs} contains negative variances")
        leaves[entry.ours] = leaf
    return unflatten(leaves)


# --- Ours to theirs --------------------------------------------------------------------------------------


def export(source: Source, model: Backbone, variables: Mapping[str, Any]) -> Tensors:
    """Convert our variables to their tensors, in execution order.

    Raises:
        UserError: for a network with several blocks without an expansion, if they have names for only one.
    """
    leaves = flatten(variables)
    channels = leaves["params", "stem", "conv", "kernel"].shape[2]
    tensors: Tensors = {}
    for entry in entries(source, model, channels):
        if entry.theirs in tensors:
            block = entry.ours[1]
            raise UserError(
                f"{source.title} has no name for {block}: there, all blocks but the first have an expansion"
            )
        tensors[entry.theirs] = entry.layout.to_theirs(np.asarray(leaves[entry.ours], np.float32))
    return tensors
