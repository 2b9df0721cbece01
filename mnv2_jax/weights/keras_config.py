"""Interpret the configuration of a Keras model that contains a MobileNet.

Layers before the network become the scaling of its images. A single dense layer after it becomes its classifier; any
other head is left out and named in a note. All other layers are rejected by name.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.data.preprocessing import PREPROCESSING, Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.models.backbone import Backbone
from mnv2_jax.models.layers import CONVENTIONS
from mnv2_jax.models.strides import strides_and_dilations
from mnv2_jax.network import variable_shapes
from mnv2_jax.tasks.classification import Outputs
from mnv2_jax.weights.configs import ACTIVATIONS, Said, numeric_settings
from mnv2_jax.weights.mapping import Layout, Source, Tensors, count_outputs, entries, flatten

IDLE = ("InputLayer", "Dropout", "AlphaDropout", "SpatialDropout2D", "Identity", "ActivityRegularization", "Cast")
"""Layers that do nothing at inference, besides those of random augmentation and noise."""

SHAPES = ("Flatten", "Reshape")
"""Layers that do not change pooled features or logits."""

POOLING = "GlobalAveragePooling2D"
KNOWN_HEAD = "average pooling, then one dense layer or 1x1 convolution, with softmax, sigmoid or no activation"


ASSUMED = "the file contains only weights: images in -1 to 1 and softmax outputs are assumed"


class Layer(NamedTuple):
    """A layer in the configuration.

    Attributes:
        groups: path of the groups of its variables in the Keras 3 format, models first.
        kind: name of its class.
        name: its name.
        config: its arguments.
        inputs: the arguments it is called with.
    """

    groups: tuple[str, ...]
    kind: str
    name: str
    config: Mapping[str, Any] = MappingProxyType({})
    inputs: Any = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    @property
    def idle(self) -> bool:
        """Whether the layer does nothing at inference."""
        # `RandomCrop` crops the centre at inference.
        return self.kind in IDLE or (self.kind.startswith(("Random", "Gaussian")) and self.kind != "RandomCrop")

    @property
    def activation(self) -> str:
        """The name of its activation; "linear" if it has none."""
        if self.kind == "Softmax":
            return "softmax"
        if self.kind == "ReLU":
            return _relu_name(self.config)
        value = self.config.get("activation") or "linear"
        value = value.get("config") if isinstance(value, Mapping) else value
        return str(value.get("name") if isinstance(value, Mapping) else value)


def list_layers(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Layer]:
    """Yield every layer of a model, with nested models flattened."""
    counts: Counter[str] = Counter()
    for layer in config.get("layers", ()):
        kind, inner = layer["class_name"], layer["config"]
        # "DepthwiseConv2D" becomes "depthwise_conv2d".
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", kind).lower()
        groups = (*above, f"{snake}_{counts[snake]}" if counts[snake] else snake)
        counts[snake] += 1
        if "layers" in inner:
            yield from list_layers(inner, groups)
        else:
            yield Layer(groups, kind, inner.get("name", layer.get("name", "")), inner, layer.get("inbound_nodes", ()))


def adapt(
    source: Source, tensors: Tensors, layers: Sequence[Layer], loss: Any, model: Backbone
) -> tuple[Tensors, Said]:
    """Extract the MobileNet from a larger model, and what the configuration states about it.

    Args:
        source: Keras's table.
        tensors: of the file, by "LAYER/VARIABLE".
        layers: of the model, in order; empty if the file has only weights.
        loss: the training loss in Keras's notation.
        model: any network of the right class. Its layer names, strides and structure are used, its widths are not.

    Returns:
        The tensors by the names of Keras's own model, and what the configuration states.

    Raises:
        UserError: for an unknown layer before or inside the network (named in the message), and settings or images
            that are not supported.
    """
    listed = entries(source, model)
    body = dict.fromkeys(entry.theirs.split("/")[0] for entry in listed if entry.ours[1] != "classifier")
    (classifier,) = {entry.theirs.split("/")[0] for entry in listed if entry.ours[1] == "classifier"}
    layout = next(entry.layout for entry in listed if entry.theirs == f"{classifier}/kernel")
    inside = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] in body}
    others = dict.fromkeys(name.split("/")[0] for name in tensors if name.split("/")[0] not in body)
    if not layers:  # weights only
        head = Layer((), "Dense", next(iter(others))) if len(others) == 1 else None
        left_out = [Layer((), "layer", name) for name in others] if head is None else []
        assumed = () if (head is not None and head.name == classifier) or not others else (ASSUMED,)
        said = Said(notes=(*assumed, *_left_out(left_out)))
        return _with_head(inside, tensors, head, classifier, layout, said)

    places = [index for index, layer in enumerate(layers) if layer.name in body]
    first, last = (places[0], places[-1]) if places else (0, -1)
    front, behind = list(layers[:first]), [layer for layer in layers[last + 1 :] if not layer.idle]
    own = list(layers[first : last + 1])
    if front and front[-1].kind == "ZeroPadding2D":
        own.insert(0, front.pop())  # older versions of Keras pad in a layer
    if behind and behind[0].kind in ("ReLU", "Activation") and behind[0].activation not in ("softmax", "sigmoid"):
        own.append(behind.pop(0))  # the activation after the network's last norm
    preprocessing, scaled = _input_scale(front, tensors)
    settings = _settings_of(own, body, model)
    side = _image_size(layers)
    _check_windows(own, body, model, side)
    behind = [layer for layer in behind if layer.kind not in SHAPES]
    head, outputs = _head(behind, loss)
    notes = _left_out(behind if head is None and [layer.kind for layer in behind] != [POOLING] else [])
    if scaled:
        notes = (
            f"the model scales images itself, by {', '.join(map(str, scaled))}: this becomes part of the preprocessing",
            *notes,
        )
    said = Said(settings, {}, preprocessing, side, None, outputs, notes)
    return _with_head(inside, tensors, head, classifier, layout, said)


def _left_out(layers: Sequence[Layer]) -> tuple[str, ...]:
    if not layers:
        return ()
    return (f"layers after the network that are not read: {', '.join(map(str, layers))}; supported is {KNOWN_HEAD}",)


def _with_head(
    inside: Tensors, tensors: Tensors, head: Layer | None, classifier: str, layout: Layout, said: Said
) -> tuple[Tensors, Said]:
    """Return the network's tensors, and those of its head under their usual names."""
    kernel = tensors.get(f"{head.name}/kernel") if head else None
    if head is None or kernel is None:
        return inside, said
    if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
        kernel = kernel[0, 0]
    if kernel.ndim != 2:
        return inside, said._replace(notes=(*said.notes, *_left_out([head])))
    bias = tensors.get(f"{head.name}/bias", np.zeros(kernel.shape[1], np.float32))
    inside = {**inside, f"{classifier}/kernel": kernel[None, None] if layout.squeeze else kernel}
    inside[f"{classifier}/bias"] = bias
    if head.name != classifier:
        note = f"the classifier is the dense layer {head.name!r} with {count_outputs(kernel.shape[1])}"
        said = said._replace(notes=(*said.notes, note))
    return inside, said


def _image_size(layers: Sequence[Layer]) -> int | None:
    """Return the side of the input in pixels, or None if the model does not state it.

    Raises:
        UserError: for inputs whose first two axes differ: only square, channels-last images are supported.
    """
    for layer in layers:
        shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
        if shape and len(shape) == 4:
            if shape[1] != shape[2]:
                raise UserError(f"its images have shape {tuple(shape[1:])}, expected (side, side, channels)")
            return shape[1]
    return None


# --- Before the network ----------------------------------------------------------------------------------


def _input_scale(layers: Sequence[Layer], tensors: Tensors) -> tuple[Preprocessing | None, list[Layer]]:
    """Return the preprocessing of a model that takes bytes and scales them itself, and the layers that do it."""
    slope, offset = np.ones(1), np.zeros(1)  # applied to bytes
    scaled = [layer for layer in layers if not layer.idle]
    for layer in scaled:
        times, plus = _linear(layer, tensors)
        slope, offset = slope * times, offset * times + plus
    if not scaled:
        return None, []
    slope, offset = (np.broadcast_to(value, np.broadcast_shapes((3,), value.shape)) for value in (slope, offset))
    if slope.shape != (3,) or not np.isfinite([slope, offset]).all() or (slope == 0).any():
        raise UserError(
            f"{', '.join(map(str, scaled))} before the network scale images by {slope} and shift them by {offset}; "
            "expected finite numbers for 1 or 3 channels, and no scale of 0"
        )
    # Rounded to float32 precision, so that 1/127.5 and -1 come out as intended.
    mean, std = (
        tuple(float(f"{value:.7g}") for value in values) for values in (-offset / slope / 255, 1 / slope / 255)
    )
    usual = PREPROCESSING["keras"]
    return Preprocessing(usual.method, usual.crop, usual.interpolation, mean, std), scaled


def _linear(layer: Layer, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Return the factor of a layer, and the term that it adds after it."""
    config = layer.config
    if layer.kind == "Rescaling":
        return np.asarray(config["scale"], float), np.asarray(config.get("offset", 0), float)
    if layer.kind == "Normalization" and not config.get("invert"):
        mean, variance = (
            np.asarray(tensors.get(f"{layer.name}/{name}") if config.get(name) is None else config[name], float).ravel()
            for name in ("mean", "variance")
        )
        deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras's lower bound
        return 1 / deviation, -mean / deviation
    constant = _constant(layer)
    if constant is not None:
        operation = str(config.get("function", layer.kind)).rpartition(".")[2].lower()
        zero, one = np.zeros(1), np.ones(1)
        if operation in ("truedivide", "divide", "truediv"):
            return 1 / constant, zero
        if operation in ("multiply", "mul"):
            return constant, zero
        if operation in ("subtract", "sub", "add"):
            return one, constant if operation == "add" else -constant
    raise UserError(
        f"{layer} before the network is not supported; supported are Rescaling, Normalization, arithmetic with "
        "constants, and training-only layers: build the model without it and preprocess the images yourself"
    )


def _constant(layer: Layer) -> np.ndarray | None:
    """Return the constant second operand of an operation such as `x / 127.5`, or None."""
    try:
        (call,) = layer.inputs
        if isinstance(call, Mapping):  # Keras 3
            value = [*call["args"], *call["kwargs"].values()][1]
        else:  # Keras 2: name of the input, two numbers, further arguments
            value = call[3]["y"] if isinstance(call[3], Mapping) else call[3]
        value = value["config"]["value"] if isinstance(value, Mapping) else value
        return np.asarray(value, float).reshape(-1)
    except (LookupError, TypeError, ValueError):
        return None


# --- The network itself ----------------------------------------------------------------------------------


def _settings_of(own: Sequence[Layer], body: Mapping[str, Any], model: Backbone) -> dict[str, Any]:
    """Return epsilon and activation of the network, which all of its layers must share."""
    if not own:
        return {}
    added = [layer for layer in own if not (layer.name in body or layer.idle or layer.kind in ("ZeroPadding2D", "Add"))]
    for layer in added:
        if layer.kind not in ("ReLU", "Activation"):
            raise UserError(f"{layer} inside the network is not supported")
    epsilons = {layer.config.get("epsilon", 1e-3) for layer in own if layer.kind == "BatchNormalization"}
    if len(epsilons) > 1:
        raise UserError(f"its batch norms have different epsilons, {sorted(epsilons)}; expected the same for all")
    activations = {layer.activation for layer in added}
    activations |= {layer.activation for layer in own if layer.name in body} - {"linear"}
    expected = sum(unit[2:] != ("project",) for unit in _units(model))
    if len(activations) != 1 or not activations <= set(ACTIVATIONS) or len(added) != expected:
        found = ", ".join(sorted(activations)) or "none"
        raise UserError(
            f"it has {len(added)} activations ({found}), expected {expected} of one kind: {', '.join(ACTIVATIONS)}"
        )
    epsilon = epsilons.pop() if epsilons else CONVENTIONS["tensorflow"].epsilon
    return numeric_settings(False, epsilon, ACTIVATIONS[activations.pop()])


def _units(model: Backbone) -> list[tuple[str, ...]]:
    """Return the path of every convolution-and-norm layer."""
    return [path[:-2] for path in flatten(variable_shapes(model)) if path[-2:] == ("conv", "kernel")]


def _relu_name(config: Mapping[str, Any]) -> str:
    """Return the name of a ReLU layer in `ACTIVATIONS`, or a description if it has none."""
    slope = config.get("negative_slope", config.get("alpha")) or 0
    limit = config.get("max_value")
    if not slope and not config.get("threshold") and limit in (None, 6):
        return "relu" if limit is None else "relu6"
    return f"ReLU with max_value {limit}, negative_slope {slope} and threshold {config.get('threshold')}"


def _check_windows(own: Sequence[Layer], body: Mapping[str, Any], model: Backbone, side: int | None) -> None:
    """Check that strides, dilations and padding of the layers are those of the published network."""
    strides = [2, *(row.stride if repeat == 0 else 1 for row in model.stages for repeat in range(row.repeats))]
    moves, padded = iter(strides_and_dilations(strides)), None
    for layer in own:
        if layer.kind == "ZeroPadding2D":
            padded = layer.config["padding"]
        if layer.name not in body or layer.config.get("kernel_size") not in ([3, 3], (3, 3), 3):
            continue
        stride, dilation = next(moves, (1, 1))
        for name, expected in (("strides", stride), ("dilation_rate", dilation)):
            found = layer.config.get(name, expected)
            if list(np.broadcast_to(found, (2,))) != [expected, expected]:
                raise UserError(f"{layer} has {name} {found}, expected {expected}")
        if layer.config.get("data_format", "channels_last") != "channels_last":
            raise UserError(f"{layer} expects channels first; only channels last is supported")
        if layer.config.get("padding", "same") == "valid" and side is not None:
            same = CONVENTIONS["tensorflow"].padding(side, 3, stride)
            if padded is None or not np.array_equal(padded, [same, same]):
                raise UserError(
                    f"{layer} is padded by {padded or 0} on a feature map of {side} by {side} pixels, but in the "
                    f"published network by {[*same]}: save only the weights (.weights.h5) to use them at another size"
                )
        padded, side = None, side and -(-side // stride)


# --- After the network -----------------------------------------------------------------------------------


def _head(behind: Sequence[Layer], loss: Any) -> tuple[Layer | None, Outputs | None]:
    """Return the classifier layer and the kind of its outputs; None for either if unknown."""
    kinds = [layer.kind for layer in behind]
    if kinds[:1] != [POOLING] or kinds[1:2] not in (["Dense"], ["Conv2D"]):
        return None, None
    head, *after = behind[1:]
    if any(layer.kind not in ("Activation", "Softmax") for layer in after):
        return None, None
    active = [layer.activation for layer in (head, *after) if layer.activation != "linear"]
    if active in (["softmax"], ["sigmoid"]):
        return head, active[0]  # type: ignore[return-value]
    return (head, _of_loss(loss)) if not active else (None, None)


def _of_loss(loss: Any) -> Outputs | None:
    """Return the kind of outputs of a network trained with this loss and without a last activation."""
    config = loss.get("config") if isinstance(loss, Mapping) else None
    if not isinstance(config, Mapping) or not config.get("from_logits"):
        return None
    return "sigmoid" if loss.get("class_name") == "BinaryCrossentropy" else "softmax"
