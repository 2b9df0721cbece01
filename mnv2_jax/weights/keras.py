"""Keras's MobileNetV1 and V2 (keras/src/applications), and Keras's file formats.

The files are HDF5. In the older format each variable is stored under the name of its layer. In the Keras 3 format the
group of a layer is named after its class with a counter, and variables are numbered. Newer versions also store the name
of the layer. For older ones it is inferred from the model's configuration or from the order of layers.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Backbone
from mnv2_jax.weights.files import check_size, readable
from mnv2_jax.weights.keras_config import Layer, list_layers
from mnv2_jax.weights.mapping import Layout, Source, Tensors, entries

KERAS = Source(
    name="keras",
    title="Keras",
    tables={
        "mobilenet_v1": {
            "stem": ("conv1", "conv1_bn"),
            "block/depthwise": ("conv_dw_{after}", "conv_dw_{after}_bn"),
            "block/pointwise": ("conv_pw_{after}", "conv_pw_{after}_bn"),
            "classifier": ("conv_preds",),
        },
        "mobilenet_v2": {
            "stem": ("Conv1", "bn_Conv1"),
            "plain/depthwise": ("expanded_conv_depthwise", "expanded_conv_depthwise_BN"),
            "plain/project": ("expanded_conv_project", "expanded_conv_project_BN"),
            "block/expand": ("block_{i}_expand", "block_{i}_expand_BN"),
            "block/depthwise": ("block_{i}_depthwise", "block_{i}_depthwise_BN"),
            "block/project": ("block_{i}_project", "block_{i}_project_BN"),
            "head": ("Conv_1", "Conv_1_bn"),
            "classifier": ("predictions",),
        },
    },
    convention="tensorflow",
    preprocessing={"mobilenet_v1": "keras", "mobilenet_v2": "keras"},
    kernel=("/kernel", Layout((0, 1, 2, 3))),
    # (height, width, channels, 1) in Keras.
    depthwise=("/kernel", Layout((0, 1, 3, 2))),
    # A 1x1 convolution in MobileNet, a dense layer in MobileNetV2.
    classifier={"mobilenet_v1": ("/kernel", Layout((0, 1), squeeze=True)), "mobilenet_v2": ("/kernel", Layout((0, 1)))},
    norm=("/gamma", "/beta", "/moving_mean", "/moving_variance"),
    bias="/bias",
)

VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}
"""Variables of a layer in Keras's order, by the name of its group without the counter."""


class KerasFile(NamedTuple):
    """The content of a Keras file.

    Attributes:
        tensors: by "LAYER/VARIABLE", with nested models flattened.
        layers: all layers in the order of the model, with nested models flattened; empty if the file has only weights.
        loss: the training loss in Keras's notation; None if the file does not state it.
    """

    tensors: Tensors
    layers: tuple[Layer, ...] = ()
    loss: Any = None


# --- Reading ---------------------------------------------------------------------------------------------


def read_keras(path: Path, kind: str) -> KerasFile:
    """Read a `.keras` archive (`kind` "keras"), a `.weights.h5`, or an older `.h5` with or without the model.

    Raises:
        UserError: for a damaged file, one that is too large or refers to other files, and repeated layer names.
    """
    if kind == "keras":
        with readable(path, "a Keras archive"), zipfile.ZipFile(path) as archive:
            check_size(path, sum(member.file_size for member in archive.infolist()))
            config = json.loads(archive.read("config.json"))
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                return _keras_file(path, file, config["config"], config.get("compile_config"))
    with readable(path, "an HDF5 file"), h5py.File(path) as file:
        config, training = (json.loads(file.attrs.get(name, "null")) for name in ("model_config", "training_config"))
        return _keras_file(path, file.get("model_weights", file), config and config["config"], training)


def _keras_file(
    path: Path, group: h5py.Group, config: dict[str, Any] | None, training: dict[str, Any] | None
) -> KerasFile:
    datasets: dict[tuple[str, ...], h5py.Dataset] = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            raise UserError(f"{path} reads {name} from another file, which is not supported")
        parts = tuple(name.split("/"))
        if isinstance(item, h5py.Dataset) and not parts[0].startswith("optimizer"):
            datasets[parts] = item

    group.visititems(collect)
    # A dataset can declare any shape without storing the data.
    check_size(path, sum(dataset.nbytes for dataset in datasets.values()))
    numbered = {parts: dataset for parts, dataset in datasets.items() if parts[-2:-1] == ("vars",)}
    if numbered:
        datasets, names = numbered, _names_of_numbered(group, numbered, config)
    else:
        names = {parts: "/".join(parts[-2:]).removesuffix(":0") for parts in datasets}
        names = {parts: name.replace("depthwise_kernel", "kernel") for parts, name in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"{path} has several layers with the same name: {', '.join(twice[:5])}")
    tensors = {names[parts]: dataset[()] for parts, dataset in datasets.items()}
    return KerasFile(tensors, tuple(list_layers(config)) if config else (), (training or {}).get("loss"))


def _names_of_numbered(
    group: h5py.Group, datasets: Mapping[tuple[str, ...], h5py.Dataset], config: Mapping[str, Any] | None
) -> dict[tuple[str, ...], str]:
    # Older versions of Keras name the group of a model's layers "_layer_checkpoint_dependencies".
    containers = ("layers", "_layer_checkpoint_dependencies")
    from_config = {layer.groups: layer.name for layer in list_layers(config)} if config else {}
    result = {}
    for parts in datasets:
        groups = tuple(part for part in parts[:-2] if part not in containers)
        kind = re.sub(r"_\d+$", "", groups[-1]) if groups else ""
        name = group["/".join(parts[:-1])].attrs.get("name") or from_config.get(groups) or groups[-1]
        variables, index = VARIABLES.get(kind, ()), int(parts[-1])
        result[parts] = f"{name}/{variables[index] if index < len(variables) else index}"
    return result


def group_names(model: Backbone) -> dict[str, str]:
    """Return the layer name of each group, for Keras's own model in the Keras 3 format (layers with variables only)."""
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for entry in entries(KERAS, model):
        layer = entry.theirs.split("/")[0]
        if layer in names.values():
            continue
        if entry.ours[1] == "classifier":
            kind = "conv2d" if entry.layout.squeeze else "dense"
        elif entry.ours[-2] == "norm":
            kind = "batch_normalization"
        else:
            kind = "depthwise_conv2d" if entry.ours[2] == "depthwise" else "conv2d"
        names[f"{kind}_{counts[kind]}" if counts[kind] else kind] = layer
        counts[kind] += 1
    return names


def name_by_order(tensors: Tensors, model: Backbone) -> Tensors:
    """Rename layers known only by class and counter to the names in Keras's own model."""
    names = group_names(model)
    split = {name: name.split("/", 1) for name in tensors}
    return {f"{names.get(layer, layer)}/{variable}": tensors[name] for name, (layer, variable) in split.items()}


# --- Writing ---------------------------------------------------------------------------------------------


def keras_bytes(tensors: Tensors, model: Backbone, numbered: bool) -> bytes:
    """Return a file that Keras's own model can load: Keras 3 format (`numbered`, `.weights.h5`) or older (`.h5`)."""
    by_layer: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, tensor in tensors.items():
        layer, variable = name.split("/")
        by_layer.setdefault(layer, []).append((variable, tensor))
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        if numbered:
            for group, layer in group_names(model).items():
                variables = file.create_group(f"layers/{group}/vars")
                variables.attrs["name"] = layer
                for index, (_, tensor) in enumerate(by_layer[layer]):
                    variables[str(index)] = tensor
        else:
            file.attrs["layer_names"] = list(by_layer)
            for layer, variables in by_layer.items():
                group = file.create_group(layer)
                group.attrs["weight_names"] = [f"{layer}/{variable}:0" for variable, _ in variables]
                for variable, tensor in variables:
                    group[f"{layer}/{variable}:0"] = tensor
    return content.getvalue()
