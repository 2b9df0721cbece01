import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV1, MobileNetV2, create_model, list_models
from mnv2_jax.models import names
from mnv2_jax.models.backbone import Backbone, Stage
from mnv2_jax.models.blocks import (
    ClassicResidual,
    ExpansionShortcut,
    FullClassicResidual,
    LinearInside,
    NoShortcut,
    TwoDepthwise,
)
from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.models.create import find_model, model_name, model_settings, unpublished_settings, upgrade_settings
from mnv2_jax.models.layers import relu6


def test_models_by_name():
    assert list_models() == ["classic_residual", "mobilenet_v1", "mobilenet_v2"]
    assert [find_model(name) for name in list_models()] == [ClassicResidualNet, MobileNetV1, MobileNetV2]
    assert create_model("mobilenet_v2", width_multiplier=0.5, num_classes=10) == MobileNetV2(10, 0.5)
    assert create_model("mobilenet_v1", convention="pytorch") == MobileNetV1(convention="pytorch")


def test_stages_may_be_lists_and_a_block_a_name_or_a_class():
    stages = (Stage(1, 16, 1, 1), Stage(4, 24, 2, 2))
    made = create_model("mobilenet_v2", stages=[[1, 16, 1, 1], [4, 24, 2, 2]], block="NoShortcut", dtype="bfloat16")
    assert made == MobileNetV2(stages=stages, block=NoShortcut, dtype=jnp.bfloat16)
    assert create_model("mobilenet_v2", block=NoShortcut).block is NoShortcut


class Mine(InvertedResidual):
    """A user-defined block."""


@pytest.mark.parametrize(
    "model",
    [
        MobileNetV2(
            7, 0.35, unit_strides=1, dtype=jnp.bfloat16, kernel_size=5, stages=(Stage(1, 16, 1, 1), Stage(2, 24, 1, 2))
        ),
        MobileNetV2(0, head=False, frozen_batch_norm=True, expansion=3.0, block=TwoDepthwise, kernels="xla"),
        ClassicResidualNet(3, reduction=4.0, block=FullClassicResidual, channel_divisor=1),
        MobileNetV1(0, 0.25, output_stride=8, stages=(Stage(1, 64, 1, 1), Stage(1, 128, 1, 2))),
    ],
)
def test_settings_make_the_same_network_again(model):
    assert create_model(**json.loads(json.dumps(model_settings(model)))) == model


def test_what_is_unknown_is_named():
    with pytest.raises(
        ValueError, match="unknown model 'mobilenet_v3'; choose from classic_residual, mobilenet_v1, mobilenet_v2"
    ):
        create_model("mobilenet_v3")
    with pytest.raises(ValueError, match="has no setting depth; choose from num_classes, width_multiplier"):
        create_model("mobilenet_v2", depth=3)
    with pytest.raises(ValueError, match="unknown block 'Bottleneck'; choose from InvertedResidual, .*"):
        create_model("mobilenet_v2", block="Bottleneck")
    with pytest.raises(
        ValueError, match=r"^stages must be rows of expansion, channels, repeats, stride, got \[\[1, 16\]\]$"
    ):
        create_model("mobilenet_v2", stages=[[1, 16]])
    with pytest.raises(ValueError, match="^unknown dtype 'float3'$"):
        create_model("mobilenet_v2", dtype="float3")


def test_a_kernel_size_that_no_network_has_is_refused(without_type_checks):
    with pytest.raises(ValueError, match="^unknown kernel size 4; choose from 3, 5, 7$"):
        create_model("mobilenet_v2", kernel_size=4)


def test_blocks_and_activations_of_one_s_own_are_described_and_have_to_be_handed_in(without_type_checks):
    model = MobileNetV2(block=Mine, activation=relu6, bottleneck_activation=jnp.abs)
    settings = json.loads(json.dumps(model_settings(model)))
    assert settings["block"] == f"{__name__}.Mine"
    assert settings["activation"] == "relu6"
    assert settings["bottleneck_activation"].endswith(".abs")
    with pytest.raises(ValueError, match="pass a custom block as a class"):
        create_model(**settings)
    with pytest.raises(ValueError, match="pass a custom activation as a function"):
        create_model(**{**settings, "block": Mine, "activation": "mine"})
    assert create_model(**{**settings, "block": Mine, "activation": relu6, "bottleneck_activation": jnp.abs}) == model


class Other(MobileNetV2):
    """A user-defined network with one more setting."""

    gain: float = 1.0


def test_a_network_of_one_s_own_is_described_once_it_has_a_name(monkeypatch):
    for describe in (model_name, model_settings, unpublished_settings):
        with pytest.raises(ValueError, match="^Other is not registered in mnv2_jax.models.names.MODELS.*described$"):
            describe(Other())
    monkeypatch.setitem(names.MODELS, "other", Other)
    assert list_models()[-1] == "other"
    assert create_model(**model_settings(Other(3, gain=2.0))) == Other(3, gain=2.0)
    monkeypatch.setitem(names.MODELS, "other", f"{__name__}.Other")
    assert model_name(Other()) == "other"


# --- Networks inside of networks -------------------------------------------------------------------------


class Pair(nn.Module):
    """A network on top of another one."""

    num_classes: int = 10
    body: Backbone = MobileNetV2(0, head=False)

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(self.body(images))


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setitem(names.MODELS, "pair", Pair)


def test_a_setting_that_is_a_network_is_described_and_made_like_one(pair):
    model = Pair(3, body=MobileNetV1(0, 0.25, stages=(Stage(1, 64, 1, 1),)))
    settings = json.loads(json.dumps(model_settings(model)))
    assert settings["body"]["name"] == "mobilenet_v1"
    made = create_model(**settings)
    assert made == model
    output, variables = jax.jit(made.init_with_output)(jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
    assert output.shape == (2, 3)
    assert set(variables["params"]["body"]) == {"stem", "block_0"}
    with pytest.raises(ValueError, match="mobilenet_v1 has no setting depth"):
        create_model("pair", body={"name": "mobilenet_v1", "depth": 3})


def test_of_a_network_inside_the_settings_that_differ_are_told(pair):
    assert unpublished_settings(Pair(5, body=MobileNetV2(0, 0.35, head=False, dtype=jnp.bfloat16))) == []
    assert unpublished_settings(Pair(body=MobileNetV2(0, unit_strides=1))) == ["body.unit_strides", "body.head"]
    assert unpublished_settings(Pair(body=MobileNetV1(0))) == ["body"]


# --- Which networks others have --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        MobileNetV2(),
        MobileNetV2(7, 0.35, expansion=4.0, convention="pytorch", output_stride=32),
        MobileNetV2(
            dropout_rate=0.2,
            batch_norm_momentum=0.5,
            batch_norm_axis="data",
            dtype=jnp.bfloat16,
            kernels="xla",
            frozen_batch_norm=True,
        ),
        MobileNetV1(0, 0.25),
        ClassicResidualNet(),
    ],
)
def test_what_a_file_of_weights_tells_and_what_inference_does_not_depend_on_is_published(model):
    assert unpublished_settings(model) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 5},
        {"activation": "relu"},
        {"bottleneck_activation": "relu6"},
        {"block": LinearInside},
        {"block": TwoDepthwise},
        {"block": Mine},
        {"unit_strides": 2, "output_stride": 16},
        {"stages": (Stage(1, 16, 1, 1),)},
        {"channel_divisor": 1},
        {"head": False},
    ],
    ids=str,
)
def test_every_other_setting_makes_a_network_that_nobody_else_has(settings):
    assert unpublished_settings(MobileNetV2(7, 0.5, **settings)) == list(settings)


def test_a_new_attribute_counts_by_itself(monkeypatch):
    monkeypatch.setitem(names.MODELS, "mobilenet_v2", Other)
    assert unpublished_settings(Other(7, 0.5)) == []
    assert unpublished_settings(Other(7, 0.5, gain=2.0)) == ["gain"]


# --- Descriptions of version 0.1.0 -----------------------------------------------------------------------

SAVED = {"num_classes": 10, "width_multiplier": 0.35, "unit_strides": 1, "output_stride": None, "activation": "relu6",
         "convention": "tensorflow", "dropout_rate": 0.2, "batch_norm_momentum": 0.9, "batch_norm_axis": None,
         "dtype": "float32"}  # fmt: skip
"""What version 0.1.0 saved for every network, besides "name" and "layers"."""
ROWS = [[1, 16, 1, 1], [6, 24, 2, 2]]


def create_saved(**settings):
    return create_model(**upgrade_settings(json.loads(json.dumps({**SAVED, **settings}))))


@pytest.mark.parametrize(
    ("shortcut", "transformation", "block"),
    [
        ("bottleneck", "depthwise", InvertedResidual),
        ("none", "depthwise", NoShortcut),
        ("expansion", "depthwise", ExpansionShortcut),
        ("bottleneck", "linear", LinearInside),
        ("bottleneck", "two_depthwise", TwoDepthwise),
    ],
)
def test_mobilenet_v2_of_version_0_1_0_opens(shortcut, transformation, block):
    model = create_saved(name="mobilenet_v2", layers="plain", expansion=3.0, bottleneck_activation="relu",
                         stages=ROWS, shortcut=shortcut, transformation=transformation, channel_divisor=8)  # fmt: skip
    assert model == MobileNetV2(
        10,
        0.35,
        1,
        dropout_rate=0.2,
        batch_norm_momentum=0.9,
        kernels="xla",
        expansion=3.0,
        bottleneck_activation="relu",
        stages=(Stage(1, 16, 1, 1), Stage(6, 24, 2, 2)),
        block=block,
    )


def test_mobilenet_v1_of_version_0_1_0_opens_as_the_published_network():
    blocks = [[64, 1], [128, 2], [128, 1], [256, 2], [256, 1], [512, 2], *[[512, 1]] * 5, [1024, 2], [1024, 1]]
    model = create_saved(name="mobilenet_v1", layers="fitted", blocks=blocks)
    assert model == MobileNetV1(10, 0.35, 1, dropout_rate=0.2, batch_norm_momentum=0.9)
    odd = create_saved(name="mobilenet_v1", layers="fitted", blocks=[[64, 1], [64, 2], [64, 1], [128, 1]])
    assert odd.stages == ((1, 64, 1, 1), (1, 64, 2, 2), (1, 128, 1, 1))


@pytest.mark.parametrize(("depthwise", "block"), [(True, ClassicResidual), (False, FullClassicResidual)])
def test_a_classic_network_of_version_0_1_0_opens(depthwise, block):
    settings = {"name": "classic_residual", "layers": "fitted", "reduction": 4.0, "channel_divisor": 1}
    model = create_saved(**settings, depthwise=depthwise, stages=ROWS)
    assert (model.block, model.reduction, model.kernels) == (block, 4.0, "tuned")
    np.testing.assert_array_equal(model.stages, ROWS)


def test_today_s_settings_are_left_as_they_are():
    settings = model_settings(MobileNetV2(3, block=NoShortcut))
    assert upgrade_settings(settings) == settings


def test_a_combination_that_no_block_has_is_refused():
    with pytest.raises(ValueError, match="no block implements shortcut='none' with transformation='linear' any more"):
        create_saved(name="mobilenet_v2", shortcut="none", transformation="linear")
