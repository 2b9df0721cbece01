"""Create networks by name, and convert their settings to and from JSON."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mnv2_jax.models import names
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import Block, block_name, find_block
from mnv2_jax.models.layers import activation_name

IN_FILES = ("num_classes", "width_multiplier", "expansion", "convention")
"""Settings that are inferred from a weights file: from tensor shapes, and from the code base that wrote it."""
NOT_IN_INFERENCE = (
    "dropout_rate",
    "batch_norm_momentum",
    "batch_norm_axis",
    "frozen_batch_norm",
    "dtype",
    "kernels",
)
"""Settings that do not change what inference computes, up to rounding."""


def list_models() -> list[str]:
    """Return the names that `create_model` accepts."""
    return sorted(names.MODELS)


def find_model(name: str) -> type[nn.Module]:
    """Return the class of a network.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    names.check_name("model", name, list_models())
    return names.resolve(names.MODELS[name])


def create_model(name: str, **settings: Any) -> Any:
    """Create a network: `create_model("mobilenet_v2", width_multiplier=0.5, num_classes=10)`.

    Args:
        name: one of `list_models()`.
        settings: attributes of its class. `stages` may be a list of rows, `block` the name of a class in
            `mnv2_jax.models.blocks`, and a nested network a mapping with "name" and its settings.

    Raises:
        ValueError: for an unknown name or setting (lists the known ones), and for an invalid value.
    """
    model = find_model(name)
    known = setting_names(model)
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; choose from {', '.join(known)}")
    return model(**{setting: _from_json(setting, value) for setting, value in settings.items()})


def setting_names(model: type[nn.Module]) -> list[str]:
    """Return the names of the attributes that define a network of this class."""
    return [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")]


def model_name(model: nn.Module) -> str:
    """Return the name by which `create_model` creates networks of this class.

    Raises:
        ValueError: for a class that is not in `names.MODELS`.
    """
    for name in list_models():
        if find_model(name) is type(model):
            return name
    raise ValueError(
        f"{type(model).__name__} is not registered in mnv2_jax.models.names.MODELS, so it cannot be described"
    )


def model_settings(model: nn.Module) -> dict[str, Any]:
    """Return JSON-serialisable settings, including "name", from which `create_model(**settings)` recreates the network.

    A custom block or activation is described by its module and name; pass the object itself to recreate the network.

    Raises:
        ValueError: for a network whose class is not in `names.MODELS`.
    """
    settings = {setting: _to_json(setting, getattr(model, setting)) for setting in setting_names(type(model))}
    return {"name": model_name(model), **settings}


def _from_json(setting: str, value: Any) -> Any:
    if isinstance(value, Mapping) and "name" in value:
        return create_model(**value)
    if setting == "stages":
        try:
            return tuple(Stage(*stage) for stage in value)
        except TypeError:
            raise ValueError(f"stages must be rows of {', '.join(Stage._fields)}, got {value!r}") from None
    if setting == "block":
        return find_block(value)
    try:
        return jnp.dtype(value) if setting == "dtype" else value
    except TypeError:
        raise ValueError(f"unknown dtype {value!r}") from None


def _to_json(setting: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return model_settings(value)
    if isinstance(value, type) and issubclass(value, Block):
        return block_name(value)
    if setting == "dtype":
        return jnp.dtype(value).name
    return activation_name(value) if callable(value) else value


# --- Published networks ----------------------------------------------------------------------------------


def unpublished_settings(model: nn.Module) -> list[str]:
    """Return the settings in which a network differs from every published one of its class.

    Other code bases infer a network from the tensor shapes of a weights file. If any setting differs that neither shows
    in the shapes nor leaves inference unchanged, they would compute a different function. A setting of a nested network
    is named like "backbone.block".

    Raises:
        ValueError: for a network whose class is not in `names.MODELS`.
    """
    return list(_differences(model, create_model(model_name(model))))


def _differences(model: nn.Module, published: nn.Module) -> Iterator[str]:
    known = setting_names(type(model))
    allowed = {name: getattr(model, name) for name in itertools.chain(IN_FILES, NOT_IN_INFERENCE) if name in known}
    if getattr(model, "output_stride", None) == 32:
        allowed["output_stride"] = 32  # the same as None
    published = published.clone(**allowed)
    for name in known:
        ours, theirs = getattr(model, name), getattr(published, name)
        if isinstance(ours, nn.Module) and type(ours) is type(theirs):
            yield from (f"{name}.{inner}" for inner in _differences(ours, theirs))
        elif ours != theirs:
            yield name


# --- Settings saved by version 0.1.0 ---------------------------------------------------------------------

_KERNELS = {"fitted": "tuned", "plain": "xla"}
_BLOCKS = {
    ("bottleneck", "depthwise"): "InvertedResidual",
    ("none", "depthwise"): "NoShortcut",
    ("expansion", "depthwise"): "ExpansionShortcut",
    ("bottleneck", "linear"): "LinearInside",
    ("bottleneck", "two_depthwise"): "TwoDepthwise",
}
"""Block names by the former settings (`shortcut`, `transformation`)."""


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings saved by version 0.1.0 to those of `create_model`; current settings are returned unchanged.

    Raises:
        ValueError: for a combination of `shortcut` and `transformation` that no block implements any more.
    """
    settings = dict(settings)
    if "layers" in settings:
        form = settings.pop("layers")
        settings["kernels"] = _KERNELS.get(form, form)
    if "shortcut" in settings or "transformation" in settings:
        kind = settings.pop("shortcut", "bottleneck"), settings.pop("transformation", "depthwise")
        if kind not in _BLOCKS:
            raise ValueError(f"no block implements shortcut={kind[0]!r} with transformation={kind[1]!r} any more")
        settings["block"] = _BLOCKS[kind]
    if "depthwise" in settings:
        settings["block"] = "ClassicResidual" if settings.pop("depthwise") else "FullClassicResidual"
    if "blocks" in settings:
        settings["stages"] = _stages(settings.pop("blocks"))
    return settings


def _stages(blocks: list[Any]) -> list[Stage]:
    """Group MobileNetV1's former table of (channels, stride) per block into stages."""
    stages: list[Stage] = []
    for channels, stride in blocks:
        if stages and stride == 1 and stages[-1].channels == channels:
            stages[-1] = stages[-1]._replace(repeats=stages[-1].repeats + 1)
        else:
            stages.append(Stage(1, channels, 1, stride))
    return stages
