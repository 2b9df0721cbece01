"""Networks by name, and a network's settings as something to keep in a file."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.models.classifier import ImageClassifier
from mnv2_jax.models.mobilenet_v1 import MobileNetV1
from mnv2_jax.models.mobilenet_v2 import MobileNetV2, Stage

MODELS: dict[str, type[ImageClassifier]] = {
    "classic_residual": ClassicResidualNet,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
}


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return sorted(MODELS)


def create_model(name: str, **settings: Any) -> ImageClassifier:
    """Make a network: `create_model("mobilenet_v2", width_multiplier=0.5, num_classes=10)`.

    Args:
        name: one of `list_models()`.
        settings: attributes of its class.

    Raises:
        ValueError: for an unknown name or setting; says which are known.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; known are {', '.join(list_models())}")
    known = setting_names(MODELS[name])
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    if "stages" in settings:
        settings["stages"] = tuple(Stage(*stage) for stage in settings["stages"])
    if "blocks" in settings:
        settings["blocks"] = tuple((channels, stride) for channels, stride in settings["blocks"])
    if "dtype" in settings:
        settings["dtype"] = jnp.dtype(settings["dtype"])
    return MODELS[name](**settings)


def setting_names(model: type[ImageClassifier]) -> list[str]:
    """The attributes that make a network of this class what it is."""
    return [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name", "choice")]


def model_settings(model: ImageClassifier) -> dict[str, Any]:
    """What `create_model(**settings)` makes the same network of, as JSON can hold it; "name" included."""
    name = next(name for name, kind in MODELS.items() if type(model) is kind)
    settings = {setting: getattr(model, setting) for setting in setting_names(type(model))}
    return {"name": name, **settings, "dtype": jnp.dtype(model.dtype).name}
