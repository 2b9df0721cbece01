"""Load trained networks from all supported sources, and export them."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnv2_jax.data.preprocessing import PREPROCESSING, Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Backbone
from mnv2_jax.models.blocks import Block
from mnv2_jax.models.create import create_model, model_settings, unpublished_settings
from mnv2_jax.network import Network, open_network
from mnv2_jax.tasks.classification import Classification, Outputs
from mnv2_jax.weights import configs, files, hub, keras, keras_config, mapping, tf_slim
from mnv2_jax.weights.configs import Said
from mnv2_jax.weights.keras import KERAS
from mnv2_jax.weights.mapping import Source, Tensors
from mnv2_jax.weights.tf_slim import TF_SLIM
from mnv2_jax.weights.timm import TIMM
from mnv2_jax.weights.torchvision import TORCHVISION
from mnv2_jax.weights.transformers import TRANSFORMERS
from mnv2_jax.wording import counted

SOURCES: dict[str, Source] = {source.name: source for source in (TORCHVISION, TIMM, TRANSFORMERS, KERAS, TF_SLIM)}

HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights file in a Hugging Face folder; the first that exists is used."""

ENOUGH_NAMES = 0.5
"""Fraction of a source's tensor names that a file must have to be recognised as coming from it."""


def imagenet_classes() -> tuple[str, ...]:
    """Return WordNet's names of the 1000 ImageNet classes (ILSVRC 2012), in the order of their WordNet IDs."""
    return tuple((Path(__file__).parent / "imagenet.txt").read_text().splitlines())


def load_weights(
    path: str | Path, source: str | None = None, drop_background: bool = False, blocks: Sequence[type[Block]] = ()
) -> Network:
    """Load a trained network. Its class and width are inferred from the file.

    The files that come with weights (Hugging Face's `config.json` and `preprocessor_config.json`, timm's `config.json`)
    and the configuration of a Keras model are read too. Their fields are applied, or rejected by name.

    Args:
        path: one of
            - the folder of a network or of a finished run of this package;
            - a `.safetensors` or `.pth` file of torchvision, timm or Hugging Face (`.pth` needs PyTorch);
            - a Hugging Face folder (also with `pytorch_model.bin`, which needs PyTorch);
            - a Keras file: `.keras`, `.weights.h5` or `.h5`;
            - a TF-slim checkpoint (needs TensorFlow);
            - a reference to published weights, see `mnv2_jax.weights.hub`: "hf://timm/mobilenetv2_100.ra_in1k",
              "torchvision://mobilenet_v2-b0353104.pth".
        source: a name in `SOURCES`; files of any other source are rejected.
        drop_background: drop class 0 of a network with 1001 classes, which the paper's code reserves for "background".
        blocks: your own block classes that a network of this package may use.

    Raises:
        UserError: with what is wrong, such as the tensor that is missing, unexpected, of the wrong shape or not finite.
    """
    if source is not None and source not in SOURCES:
        raise UserError(f"unknown source {source!r}; choose from {', '.join(SOURCES)}")
    path = hub.fetch(str(path)) if hub.is_reference(str(path)) else Path(path)
    if not path.exists() and not Path(f"{path}.index").exists():
        raise UserError(f"{path} does not exist; expected a weights file or a network's folder")
    for name in HUGGING_FACE if (path / configs.CONFIG).is_file() else ():
        if (path / name).is_file():
            path = path / name  # a Hugging Face folder
            break
    if (path / "network" / "description").is_dir():
        path = path / "network"  # the folder of a finished run
    kind = files.kind_of(path)
    try:
        network = _load_own(path, source, blocks) if kind == "checkpoint" else _load_foreign(path, kind, source)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    return _without_background(path, network) if drop_background else network


def _load_own(path: Path, source: str | None, blocks: Sequence[type[Block]]) -> Network:
    network = open_network(path, blocks)
    if source is not None:
        raise UserError(f"this is a network of this package, not weights of {SOURCES[source].title}; remove --source")
    return network


def _load_foreign(path: Path, kind: str, wanted: str | None) -> Network:
    source, name, tensors, said = _read(path, kind, wanted)
    model, channels = mapping.infer_model(source, name, tensors)
    _check_stated(said, model, channels)
    variables = mapping.fill(source, model, channels, tensors)
    classes, notes = model.num_classes, list(said.notes)
    if not classes:
        notes.append("there is no classifier: the output is the pooled features")
    elif classes not in (1000, 1001) and not any("classifier" in note for note in notes):
        notes.append(f"the classifier has {counted(classes, 'class')}")
    resolution = said.resolution or _named_resolution(path) or 224
    network = Network(
        model.clone(**said.settings),
        jax.tree.map(jnp.asarray, variables),
        Classification(classes),
        source.name,
        _preprocessing(path, source, name, said.preprocessing, resolution),
        resolution,
        (said.class_names or _imagenet_names(classes)) if classes else None,
        tuple(notes),
        channels,
    )
    return with_outputs(network, said.outputs) if classes and said.outputs else network


def _read(path: Path, kind: str, wanted: str | None) -> tuple[Source, str, Tensors, Said]:
    """Return (source, name of the model, tensors by the source's names, what else the files state)."""
    notes: list[str] = []
    if kind in ("keras", "hdf5"):
        file = keras.read_keras(path, kind)
        source, name, named = _recognise(file.tensors, [KERAS], wanted)
        tensors, said = keras_config.adapt(KERAS, named, file.layers, file.loss, create_model(name))
        return source, name, tensors, said
    if kind == "tf":
        tensors, averages = tf_slim.choose_averages(files.read_tensorflow(path))
        if averages:
            notes.append(f"moving averages are used for {counted(averages, 'tensor')}")
        return *_recognise(tensors, [TF_SLIM], wanted), Said(notes=tuple(notes))
    if kind == "torch":
        tensors, key = files.read_torch(path)
        if key:
            notes.append(f"the checkpoint's entry {key!r} is used")
    else:
        tensors = files.read_safetensors(path)
    source, name, named = _recognise(tensors, [TORCHVISION, TIMM, TRANSFORMERS], wanted)
    named, found = mapping.find_classifier(source, name, named)
    readers = {TRANSFORMERS.name: configs.read_transformers, TIMM.name: configs.read_timm}
    said = readers[source.name](path.parent, name) if source.name in readers else Said()
    return source, name, named, said._replace(notes=(*notes, *said.notes, *found))


def _check_stated(said: Said, model: Backbone, channels: int) -> None:
    """Check that the tensors agree with the configuration file beside them.

    Raises:
        UserError: if they do not; names the field.
    """
    widths = mapping.output_widths(model)
    inputs = [width for (unit, *_), width in widths.items() if unit.startswith("block_")]
    expansion = getattr(model, "expansion", None) or 6

    def agrees(setting: str, value: Any) -> bool:
        if setting == "width_multiplier":
            return value > 0 and mapping.output_widths(model.clone(width_multiplier=value)) == widths
        if setting == "expansion":
            return all(round(value * width) == round(expansion * width) for width in inputs[:-1])
        return value == {"channels": channels, "classes": model.num_classes}[setting]

    found = {"width_multiplier": model.width_multiplier, "expansion": expansion, "channels": channels}
    for setting, (field, value) in said.stated.items():
        if setting == "classes" and not model.num_classes:
            continue  # a backbone without classifier, whose file still states the number of classes
        if value is not None and not agrees(setting, value):
            has = found.get(setting, model.num_classes)
            raise UserError(
                f"{configs.CONFIG} says {setting.replace('_', ' ')} {value:g} ({field}), but the tensors have {has:g}"
            )


def _recognise(tensors: Tensors, candidates: Sequence[Source], wanted: str | None) -> tuple[Source, str, Tensors]:
    """Return (source, name of the model, tensors by the source's names)."""
    found = []
    for source in candidates:
        named = mapping.strip_prefix(source, tensors)
        named = {name: tensor for name, tensor in named.items() if not name.endswith(source.ignored)}
        if source is KERAS:
            named = _named_keras(named)
        name, share = mapping.guess(source, named)
        found.append((share, source, name, named))
    share, source, name, named = max(found, key=lambda entry: entry[0])
    if share < ENOUGH_NAMES:
        known = ", ".join(candidate.title for candidate in candidates)
        some = ", ".join(sorted(tensors)[:3])
        raise UserError(f"its tensors ({some}, ...) are not those of a MobileNet from {known}")
    if wanted is not None and source.name != wanted:
        raise UserError(
            f"these are weights of {source.title}, not of {SOURCES[wanted].title}; use --source {source.name}"
        )
    return source, name, named


def _named_keras(tensors: Tensors) -> Tensors:
    """Name the layers of a file that only numbers them."""
    if "depthwise_conv2d/kernel" not in tensors:
        return tensors
    count = sum(name.startswith("depthwise_conv2d") for name in tensors)
    return keras.name_by_order(tensors, create_model("mobilenet_v1" if count == 13 else "mobilenet_v2"))


def _preprocessing(
    path: Path, source: Source, name: str, said: Preprocessing | None, resolution: int
) -> str | Preprocessing:
    usual = source.preprocessing[name]
    # Only the file name distinguishes torchvision's second weights from its first.
    if source is TORCHVISION and "7ebf99e0" in path.name:
        usual = "torchvision_v2"
    how = said or PREPROCESSING[usual]
    if said is None and source is TRANSFORMERS:
        how = dataclasses.replace(how, crop=resolution / (resolution + configs.BORDER))
    return usual if how == PREPROCESSING[usual] else how


def _named_resolution(path: Path) -> int | None:
    """Return the resolution in a file name, as in the paper's checkpoints: mobilenet_v2_0.35_96.ckpt."""
    found = re.search(r"_(96|128|160|192|224)(?!\d)", path.name)
    return int(found.group(1)) if found else None


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    if classes == 1000:
        return imagenet_classes()
    if classes == 1001:
        return ("background", *imagenet_classes())
    return None


def with_outputs(network: Network, outputs: Outputs) -> Network:
    """Return the network with its outputs set to a softmax over the classes, or to one sigmoid per class.

    A single sigmoid is the probability of the second of two classes. It is converted to the equivalent softmax over two
    logits, the first of which is 0, so that such a network is evaluated and trained like any other.

    Raises:
        UserError: for a network without a classifier.
    """
    if not network.model.num_classes:  # type: ignore[attr-defined]
        raise UserError(f"there is no classifier whose outputs could be set to {outputs}")
    task: Any = network.task
    if outputs == "softmax" or task.num_classes > 1:
        return network.replace(task=dataclasses.replace(task, outputs=outputs))
    classifier = jax.tree.map(
        lambda leaf: jnp.concatenate([jnp.zeros_like(leaf), leaf], axis=-1), network.variables["params"]["classifier"]
    )
    params = {**network.variables["params"], "classifier": classifier}
    return network.replace(
        model=network.model.clone(num_classes=2),
        task=dataclasses.replace(task, num_classes=2, outputs="softmax"),
        variables={**network.variables, "params": params},
        class_names=None,
        notes=(
            *network.notes,
            "the single sigmoid output is converted to two classes: it is the probability of class 1",
        ),
    )


def _without_background(path: Path, network: Network) -> Network:
    classes = network.model.num_classes  # type: ignore[attr-defined]
    if classes != 1001:
        raise UserError(
            f"{path} has {counted(classes, 'class')}; only networks with 1001 classes have a background class to drop"
        )
    classifier = jax.tree.map(lambda leaf: leaf[..., 1:], network.variables["params"]["classifier"])
    params = {**network.variables["params"], "classifier": classifier}
    return network.replace(
        model=network.model.clone(num_classes=1000),
        task=dataclasses.replace(network.task, num_classes=1000),  # type: ignore[type-var]
        variables={**network.variables, "params": params},
        class_names=network.class_names[1:] if network.class_names else None,
        notes=(*network.notes, "class 0, the background, is dropped"),
    )


def export_weights(path: Path, network: Network, target: str) -> None:
    """Write a network in the format of torchvision or Keras.

    The suffix of `path` is `.safetensors` or `.pth` (needs PyTorch) for torchvision, `.weights.h5` or `.h5` for Keras.

    Raises:
        UserError: for another target or suffix, and for a network that the target has no names for or would compute
            differently, which is any but a published one (at any width and expansion).
        OSError: if the file cannot be written.
    """
    suffixes = {"torchvision": (".safetensors", ".pth"), "keras": (".weights.h5", ".h5")}
    if target not in suffixes:
        raise UserError(f"unknown target {target!r}; choose from {', '.join(suffixes)}")
    if not path.name.endswith(suffixes[target]):
        raise UserError(f"{path} must end in {' or '.join(suffixes[target])} for {SOURCES[target].title}")
    source, model = SOURCES[target], network.model
    if network.task.outputs != "softmax":  # type: ignore[attr-defined]
        raise UserError(f"the network has sigmoid outputs, which a file for {source.title} cannot record")
    assert isinstance(model, Backbone)
    name = model_settings(model)["name"]
    if name not in source.tables:
        raise UserError(f"{source.title} has no {name}; it has {', '.join(source.tables)}")
    if model.convention != source.convention:
        raise UserError(
            f"these weights use the {model.convention} convention, but {source.title} uses the {source.convention} "
            "one: the same weights would compute a different function"
        )
    changed = unpublished_settings(model)
    if changed:
        raise UserError(
            f"the network is not the published {name} but differs in {', '.join(changed)}: loaded by {source.title}, "
            "it would compute a different function"
        )
    tensors = mapping.export(source, model, network.variables)
    if target == "keras":
        path.write_bytes(keras.keras_bytes(tensors, model, path.name.endswith(".weights.h5")))
        return
    norms = [name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")]
    counters = {f"{norm}.num_batches_tracked": np.zeros((), np.int64) for norm in norms}
    content = files.safetensors_bytes if path.suffix == ".safetensors" else files.torch_bytes
    path.write_bytes(content({**tensors, **counters}))
