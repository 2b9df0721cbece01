"""Read the configuration files that come with weights.

These are Hugging Face's `config.json` and `preprocessor_config.json`, and timm's `config.json`. Each field is applied,
checked against the tensors, or rejected by name. Fields that the packages' own code does not use to compute the output
for an image are ignored.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from mnv2_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from mnv2_jax.errors import UserError
from mnv2_jax.models.layers import CONVENTIONS
from mnv2_jax.models.strides import OUTPUT_STRIDES
from mnv2_jax.tasks.classification import Outputs

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
"""Names of the files."""

BORDER = 32
"""Google's checkpoints of every resolution scale the shorter side to this many pixels more than the crop
(transformers/models/mobilenet_v1/convert_original_tf_checkpoint_to_pytorch.py)."""

ACTIVATIONS = {
    "relu6": "relu6",
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
    "hardswish": "hard_swish",
    "leaky_relu": "leaky_relu",
    "elu": "elu",
    "tanh": "tanh",
    "linear": "linear",
}
"""Our activations by their names in transformers (`ACT2FN`)."""

OUTPUTS: dict[str | None, Outputs | None] = {
    None: None,
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
"""The kind of a classifier's outputs, by transformers' `problem_type`."""

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by number, which is how transformers stores them."""


class Said(NamedTuple):
    """What the files of a network state besides its tensors. None or an empty value means not stated.

    Attributes:
        settings: of the model; those that cannot be inferred from the tensors.
        stated: values that the tensors have to agree with, by our name: (name of the field in the file, value).
        preprocessing: how images are prepared.
        resolution: side of the images in pixels.
        class_names: one per class.
        outputs: kind of the classifier's outputs.
        notes: decisions made while reading, one sentence each.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    stated: Mapping[str, tuple[str, Any]] = MappingProxyType({})
    preprocessing: Preprocessing | None = None
    resolution: int | None = None
    class_names: tuple[str, ...] | None = None
    outputs: Outputs | None = None
    notes: tuple[str, ...] = ()


def numeric_settings(symmetric_padding: bool, epsilon: float, activation: str) -> dict[str, Any]:
    """Return the model settings for this padding, epsilon and activation."""
    convention = "pytorch" if symmetric_padding else "tensorflow"
    own = None if epsilon == CONVENTIONS[convention].epsilon else epsilon
    return {"convention": convention, "batch_norm_epsilon": own, "activation": activation}


class Fields:
    """The fields of a JSON file. Each is checked for its type when it is read."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name, self.content = name, content

    @classmethod
    def of(cls, path: Path) -> "Fields":
        """Read a file; a missing file has no fields.

        Raises:
            UserError: if the file cannot be read or is not a JSON object.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} contains a {type(content).__name__}, expected an object")
        return cls(path.name, content)

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return the value of a field, or `default` if it is missing or null.

        Raises:
            UserError: if it has another type.
        """
        value = self.content.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise self.refused(name, f"expected {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    def only(self, name: str, expected: Any) -> None:
        """Raise unless a field is missing, null or equal to `expected`."""
        if self.content.get(name, expected) not in (None, expected):
            raise self.refused(name, f"only {json.dumps(expected)} is supported")

    def refused(self, name: str, why: str) -> UserError:
        """Return the error for a value that is not supported."""
        return UserError(f"{self.name} says {name} {json.dumps(self.content.get(name))}: {why}")

    def side(self, name: str) -> int | None:
        """Return a field of one number, or of two equal numbers, in pixels."""
        value = self.get(name, (int, list, dict))
        if isinstance(value, dict) and set(value) == {"height", "width"}:
            value = list(value.values())
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.refused(name, "only square images of one or more pixels are supported")
        return value


# --- transformers ----------------------------------------------------------------------------------------


def read_transformers(folder: Path, name: str) -> Said:
    """Read Hugging Face's files in the folder of the weights.

    Args:
        folder: folder of the weights.
        name: name of the model, inferred from the names of the tensors.

    Raises:
        UserError: for a field that is not supported.
    """
    preprocessing, resolution = _processor(Fields.of(folder / PREPROCESSOR))
    config = Fields.of(folder / CONFIG)
    if "model_type" not in config.content:
        return Said(preprocessing=preprocessing, resolution=resolution)
    if config.get("model_type", str) != name:
        raise config.refused("model_type", f"the tensors are those of a {name}")
    config.only("min_depth", 8)
    stated = {"width_multiplier": ("depth_multiplier", config.get("depth_multiplier", (int, float)))}
    settings = _settings(config)
    if name == "mobilenet_v2":
        config.only("depth_divisible_by", 8)
        config.only("first_layer_is_expansion", True)
        if config.get("depth_multiplier", (int, float), 1) < 1:
            config.only("finegrained_output", True)
        stride = config.get("output_stride", int, 32)
        if stride not in OUTPUT_STRIDES:
            raise config.refused("output_stride", f"supported are {', '.join(map(str, OUTPUT_STRIDES))}")
        settings["output_stride"] = None if stride == 32 else stride
        stated["expansion"] = ("expand_ratio", config.get("expand_ratio", (int, float)))
    stated["channels"] = ("num_channels", config.get("num_channels", int))
    labels = config.get("id2label", dict)
    stated["classes"] = ("id2label", len(labels) if labels else None)
    problem = config.get("problem_type", str)
    if problem not in OUTPUTS:
        raise config.refused("problem_type", f"supported are {', '.join(filter(None, OUTPUTS))}")
    return Said(
        settings,
        stated,
        preprocessing,
        resolution or config.side("image_size"),
        tuple(str(labels.get(str(index), index)) for index in range(len(labels))) if labels else None,
        OUTPUTS[problem],
        (f"{CONFIG} says {_in_words(settings)}",),
    )


def _settings(config: Fields) -> dict[str, Any]:
    activation, epsilon = config.get("hidden_act", str, "relu6"), config.get("layer_norm_eps", (int, float), 1e-3)
    if activation not in ACTIVATIONS:
        raise config.refused("hidden_act", f"supported are {', '.join(ACTIVATIONS)}")
    if not epsilon > 0:
        raise config.refused("layer_norm_eps", "expected a number greater than 0")
    return numeric_settings(not config.get("tf_padding", bool, True), epsilon, ACTIVATIONS[activation])


def _in_words(settings: Mapping[str, Any]) -> str:
    convention = settings["convention"]
    epsilon = settings["batch_norm_epsilon"] or CONVENTIONS[convention].epsilon
    stride = f", output stride {settings['output_stride']}" if settings.get("output_stride") else ""
    return f"{convention} padding, epsilon {epsilon:g}, {settings['activation']}{stride}"


def _processor(config: Fields) -> tuple[Preprocessing | None, int | None]:
    """Return the preprocessing of an image processor, and the side of its output in pixels."""
    if not config.content:
        return None, None
    kind = config.get("image_processor_type", str) or config.get("feature_extractor_type", str, "MobileNetV2")
    family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if family not in ("MobileNetV1", "MobileNetV2", "ViT"):
        raise UserError(f"{config.name} is for a {kind}: supported are those of MobileNetV1, MobileNetV2 and ViT")
    known = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels")
    for name in config.content:
        if name.startswith("do_") and name not in known:
            config.only(name, False)
    config.only("do_resize", True)
    size, crops = config.get("size", (int, list, dict)), family != "ViT"
    scaled: int | None
    if size is None:
        scaled, shorter = (256, True) if crops else (224, False)
    elif isinstance(size, dict) and set(size) == {"shortest_edge"}:
        scaled, shorter = Fields(config.name, size).side("shortest_edge"), True
    else:
        scaled, shorter = config.side("size"), crops and isinstance(size, int)
    resolution = scaled
    if config.get("do_center_crop", bool, crops):
        resolution = config.side("crop_size") or 224
    elif shorter:
        raise config.refused("do_center_crop", "only square images are supported")
    if scaled is None or resolution is None or resolution > scaled:
        raise config.refused("crop_size", f"more than the {scaled} pixels to which images are resized")
    filter_number = config.get("resample", int, 2)
    if not 0 <= filter_number < len(FILTERS):
        raise config.refused("resample", f"expected one of Pillow's filters, from 0 to {len(FILTERS) - 1}")
    mean, std = _scale(config)
    how = Preprocessing(
        "resize_then_crop" if shorter else "resize",
        resolution / scaled,
        FILTERS[filter_number],  # type: ignore[arg-type]
        mean,
        std,
        "down",
    )
    return how, resolution


def _scale(config: Fields) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for values in [0, 1], of a processor that rescales values in [0, 255] and then normalises."""
    factor = 255.0
    if config.get("do_rescale", bool, True):
        factor *= config.get("rescale_factor", (int, float), 1 / 255)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if config.get("do_normalize", bool, True):
        mean, std = _numbers(config, "image_mean", (0.5, 0.5, 0.5)), _numbers(config, "image_std", (0.5, 0.5, 0.5))
    if factor == 0 or 0 in std:
        raise config.refused("rescale_factor" if factor == 0 else "image_std", "all images would become the same")
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _numbers(config: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return a field of one number per channel, or of one for all channels."""
    value = config.get(name, (int, float, list), list(default))
    numbers = [value] * 3 if isinstance(value, int | float) else value
    if len(numbers) not in (1, 3) or not all(type(number) in (int, float) for number in numbers):
        raise config.refused(name, "expected a number for each of 1 or 3 channels")
    return tuple(map(float, numbers))


# --- timm ------------------------------------------------------------------------------------------------

HARMLESS = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained")
"""Arguments of timm's networks that do not change their output or can be inferred from the tensors."""


def read_timm(folder: Path, name: str) -> Said:
    """Read timm's file in the folder of the weights, the way timm's validation does (timm/data/config.py).

    Args:
        folder: folder of the weights.
        name: name of the model, inferred from the names of the tensors.

    Raises:
        UserError: for a field that is not supported.
    """
    config = Fields.of(folder / CONFIG)
    architecture = config.get("architecture", str)
    if architecture is None:
        return Said()
    found = re.fullmatch(r"mobilenetv([12])_(\d{3})(\..*)?", architecture)
    if found is None or name != f"mobilenet_v{found.group(1)}":
        raise config.refused(
            "architecture",
            f"the tensors are those of a {name}; expected a name such as mobilenetv1_100 or mobilenetv2_100",
        )
    config.only("global_pool", "avg")
    for argument in config.get("model_args", dict, {}):
        if argument not in HARMLESS:
            raise config.refused("model_args", f"{argument!r} is not supported")
    # Older files have the fields of "pretrained_cfg" at the top level.
    used = Fields(config.name, config.get("pretrained_cfg", dict, config.content))
    stated = {"width_multiplier": ("architecture", int(found.group(2)) / 100)}
    stated["classes"] = ("num_classes", config.get("num_classes", int) or used.get("num_classes", int))
    size = "test_input_size" if used.content.get("test_input_size") else "input_size"
    shape = used.get(size, list, [3, 224, 224])
    if len(shape) != 3 or shape[1] != shape[2] or not all(type(side) is int and side > 0 for side in shape):
        raise used.refused(size, "only square images, (channels, side, side), are supported")
    stated["channels"] = (size, shape[0])
    names = used.get("label_names", list) or config.get("label_names", list)
    return Said(
        stated=stated,
        preprocessing=_timm_preprocessing(used),
        resolution=shape[1],
        class_names=tuple(map(str, names)) if names else None,
        notes=(f"{CONFIG} says {architecture}",),
    )


def _timm_preprocessing(used: Fields) -> Preprocessing:
    crop = used.get("test_crop_pct", (int, float)) or used.get("crop_pct", (int, float)) or 0.875
    methods = {"center": "resize_then_crop", "squash": "resize"}
    mode = used.get("crop_mode", str) or "center"
    if mode not in methods:
        raise used.refused("crop_mode", f"supported are {', '.join(methods)}")
    if not 0 < crop <= 1:
        raise used.refused("crop_pct", "expected a fraction greater than 0 and at most 1")
    interpolation = used.get("interpolation", str) or "bicubic"
    if interpolation not in get_args(Interpolation):
        raise used.refused("interpolation", f"supported are {', '.join(FILTERS)}")
    mean, std = _numbers(used, "mean", IMAGENET_MEAN), _numbers(used, "std", IMAGENET_STD)
    if 0 in std:
        raise used.refused("std", "expected numbers other than 0")
    return Preprocessing(methods[mode], float(crop), interpolation, mean, std)  # type: ignore[arg-type]
