import json

import jax.numpy as jnp
import pytest

from mnv2_jax import MobileNetV1, MobileNetV2, create_model, list_models
from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.models.create import model_settings
from mnv2_jax.models.mobilenet_v2 import Stage


def test_models_by_name():
    assert list_models() == ["classic_residual", "mobilenet_v1", "mobilenet_v2"]
    assert create_model("mobilenet_v2", width_multiplier=0.5, num_classes=10) == MobileNetV2(10, 0.5)
    assert create_model("mobilenet_v1", convention="pytorch") == MobileNetV1(convention="pytorch")


@pytest.mark.parametrize(
    "model",
    [
        MobileNetV2(7, 0.35, unit_strides=1, dtype=jnp.bfloat16, stages=(Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))),
        ClassicResidualNet(3, reduction=4.0, depthwise=False, channel_divisor=1),
        MobileNetV1(0, 0.25, output_stride=8, blocks=((64, 1), (128, 2))),
    ],
)
def test_settings_make_the_same_network_again(model):
    assert create_model(**json.loads(json.dumps(model_settings(model)))) == model


def test_what_is_unknown_is_named():
    with pytest.raises(
        ValueError, match="no model 'mobilenet_v3'; known are classic_residual, mobilenet_v1, mobilenet_v2"
    ):
        create_model("mobilenet_v3")
    with pytest.raises(ValueError, match="has no setting depth; it has num_classes, width_multiplier"):
        create_model("mobilenet_v2", depth=3)
