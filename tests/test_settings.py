"""Flags of the network and the data: what they mean, and which values are refused."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from mnv2_jax import MobileNetV2, create_model
from mnv2_jax.errors import UserError
from mnv2_jax.models.create import setting_names
from mnv2_jax.settings import (
    DataSettings,
    NetworkSettings,
    SharedSettings,
    check_num_classes,
    check_resolution,
    check_size,
    check_types,
)


@pytest.mark.parametrize("resolution", [1, 224, 4096, None])
def test_resolutions_that_networks_take(resolution):
    check_resolution(resolution)
    assert DataSettings(resolution=resolution).settings()["resolution"] == resolution


@pytest.mark.parametrize("resolution", [0, -1, 4097])
def test_resolutions_that_they_do_not(resolution):
    with pytest.raises(UserError, match=f"^--resolution must be from 1 to 4096 pixels, got {resolution}$"):
        check_resolution(resolution)
    with pytest.raises(UserError, match="--resolution must be"):
        DataSettings(resolution=resolution)


@pytest.mark.parametrize("value", [0, -0.5, 100, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["width_multiplier", "expansion"])
def test_sizes_that_no_network_has(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=f"^--{flag} must be greater than 0 and below 100, got {value:g}$"):
        check_size(name, value)
    for settings in (SharedSettings, NetworkSettings):
        with pytest.raises(UserError, match=f"--{flag} must be"):
            settings(**{name: value})


@dataclasses.dataclass(frozen=True)
class Typed:
    """Flags with a field of each kind."""

    count: int = 1
    share: float | None = None
    how: Literal["a", "b"] = "a"
    given: bool = False


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 1.5}, "--count must be a whole number, got 1.5"),
        ({"count": True}, "--count must be a whole number, got True"),
        ({"share": "0.1"}, "--share must be a number or None, got '0.1'"),
        ({"how": "c"}, "--how must be a or b, got 'c'"),
        ({"given": 1}, "--given must be True or False, got 1"),
    ],
)
def test_values_of_other_types_are_refused_where_python_hands_them_in(changes, says):
    check_types(Typed(count=np.int64(3), share=1, how="b", given=True))
    with pytest.raises(UserError, match=f"^{says}$"):
        check_types(Typed(**changes))


def test_widths_that_are_all_the_same_network_and_classifiers_that_no_memory_holds():
    with pytest.raises(
        UserError, match="^--width-multiplier must be 0.01 or more, got 0.001: smaller values make no network narrower$"
    ):
        SharedSettings(width_multiplier=0.001)
    with pytest.raises(UserError, match="^--num-classes must be from 0 to 10000000, got 1000000000000$"):
        check_num_classes(10**12)


@pytest.mark.parametrize("unit_strides", [-1, 6])
def test_unit_strides_are_at_most_the_strided_layers(unit_strides):
    with pytest.raises(UserError, match=f"^--unit-strides must be from 0 to 5, got {unit_strides}$"):
        SharedSettings(unit_strides=unit_strides)
    assert SharedSettings(unit_strides=5).unit_strides == 5


@pytest.mark.parametrize(("name", "value"), [("expansion", 3.0), ("bottleneck_activation", "relu6")])
def test_what_only_mobilenet_v2_has_is_refused_for_others(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=f"^mobilenet_v1 has no --{flag}; only mobilenet_v2 has one$"):
        NetworkSettings(model="mobilenet_v1", **{name: value})
    for model in (None, "mobilenet_v2"):
        assert NetworkSettings(model=model, **{name: value}).settings()[name] == value


def created(settings):
    """Flags of the network; those of the data keep their defaults."""
    return create_model(**{name: value for name, value in settings.items() if value is not None})


def test_no_flag_is_the_published_network():
    assert created(NetworkSettings().settings()) == MobileNetV2()


def test_every_flag_reaches_the_network():
    settings = NetworkSettings(
        model="mobilenet_v2",
        width_multiplier=0.5,
        expansion=3.0,
        unit_strides=2,
        kernel_size=5,
        kernels="xla",
        bottleneck_activation="relu",
        convention="pytorch",
        output_stride=16,
        dtype="bfloat16",
    ).settings()
    assert settings.keys() - {"name"} <= set(setting_names(MobileNetV2))
    model = created(settings)
    for name, value in settings.items():
        assert name == "name" or getattr(model, name) == value
    assert (model.output_stride, model.unit_strides, model.width_multiplier) == (16, 2, 0.5)


def test_what_no_flag_says_is_left_to_weights():
    found = NetworkSettings().settings(from_weights=True)
    # How it is computed is up to the run, whatever the weights say.
    assert {name: value for name, value in found.items() if value is not None} == {
        "kernels": "tuned",
        "dtype": "float32",
    }
    given = NetworkSettings(model="mobilenet_v1", width_multiplier=0.5, convention="pytorch").settings(
        from_weights=True
    )
    assert (given["name"], given["width_multiplier"], given["convention"]) == ("mobilenet_v1", 0.5, "pytorch")


@pytest.mark.parametrize(("flag", "streamed"), [("auto", None), ("resident", False), ("stream", True)])
def test_how_data_are_read(flag, streamed):
    settings = DataSettings(dataset="folder", data_files=Path("pets"), input=flag, train_images=10).settings()
    assert settings == {
        "dataset": "folder",
        "data_files": Path("pets"),
        "streamed": streamed,
        "train_images": 10,
        "resolution": None,
        "exif_orientation": "apply",
    }
