"""Reading and writing weights without the packages they come from; `tests/peers` tests with those."""

import json
from pathlib import Path

import numpy as np
import pytest

from mnv2_jax import InvertedResidual, MobileNetV1, MobileNetV2, Network
from mnv2_jax.errors import UserError
from mnv2_jax.models import names
from mnv2_jax.models.backbone import Stage
from mnv2_jax.models.blocks import LinearInside, NoShortcut, TwoDepthwise
from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.network import save_network
from mnv2_jax.tasks.classification import Classification
from mnv2_jax.weights import mapping
from mnv2_jax.weights.load import SOURCES, export_weights, load_weights, with_outputs
from mnv2_jax.weights.torchvision import TORCHVISION
from mnv2_jax.weights.transformers import TRANSFORMERS

from .networks import assert_equal, random_network, write


@pytest.fixture(scope="module")
def network():
    return random_network("torchvision")


@pytest.fixture(scope="module")
def tensors(network):
    return mapping.export(TORCHVISION, network.model, network.variables)


# --- What is read ----------------------------------------------------------------------------------------


def test_a_network_or_a_run_s_folder_is_weights(network, tmp_path):
    save_network(tmp_path / "run" / "network", network)
    for path in (tmp_path / "run", tmp_path / "run" / "network", str(tmp_path / "run")):
        restored = load_weights(path)
        assert restored.replace(variables={}) == network.replace(variables={})
    assert_equal(restored.variables, network.variables)
    with pytest.raises(UserError, match="this is a network of this package, not weights of timm; remove --source"):
        load_weights(tmp_path / "run", "timm")


class Mine(InvertedResidual):
    """A user-defined block."""


def test_a_network_of_one_s_own_blocks_needs_their_classes(tmp_path):
    network = random_network("torchvision", block=Mine, stages=(Stage(1, 16, 1, 1),))
    save_network(tmp_path / "x", network)
    with pytest.raises(UserError, match="x: .*pass a custom block as a class"):
        load_weights(tmp_path / "x")
    assert load_weights(tmp_path / "x", blocks=[Mine]).model == network.model


def test_a_folder_of_hugging_face_s_has_labels_and_size(tmp_path):
    network = random_network("transformers")
    labels = {str(index): name for index, name in enumerate("abcdefg")}
    config = {"model_type": "mobilenet_v2", "image_size": 96, "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write(tmp_path / "model.safetensors", mapping.export(TRANSFORMERS, network.model, network.variables))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        restored = load_weights(path)
        assert restored.model == network.model
        assert (restored.class_names, restored.resolution) == (tuple("abcdefg"), 96)
        assert restored.preprocessing.scaled_side(96) == 128


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"depth_multiplier": 0.5}, r"width multiplier 0.5 \(depth_multiplier\), but the tensors have 0.25"),
        ({"expand_ratio": 3}, r"expansion 3 \(expand_ratio\), but the tensors have 6"),
        ({"num_channels": 1}, r"channels 1 \(num_channels\), but the tensors have 3"),
        ({"id2label": {"0": "cat"}}, r"classes 1 \(id2label\), but the tensors have 7"),
        ({"hidden_act": "gelu"}, 'config.json says hidden_act "gelu"'),
    ],
)
def test_a_configuration_that_the_tensors_do_not_agree_with_is_refused(config, says, tmp_path):
    network = random_network("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilenet_v2", **config}))
    path = write(tmp_path / "model.safetensors", mapping.export(TRANSFORMERS, network.model, network.variables))
    with pytest.raises(UserError, match=says) as error:
        load_weights(path)
    assert str(error.value).startswith(str(path))


def test_what_the_files_beside_the_weights_say_is_done(tmp_path):
    network = random_network("transformers", num_classes=1)
    config = {"model_type": "mobilenet_v2", "tf_padding": False, "hidden_act": "relu", "depth_multiplier": 0.25,
              "expand_ratio": 6.0, "num_channels": 3, "problem_type": "multi_label_classification"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 120, "crop_size": 96, "resample": 3}))
    write(tmp_path / "model.safetensors", mapping.export(TRANSFORMERS, network.model, network.variables))
    restored = load_weights(tmp_path)
    changes = {"convention": "pytorch", "batch_norm_epsilon": 1e-3, "activation": "relu", "num_classes": 2}
    assert restored.model == network.model.clone(**changes)
    assert (restored.resolution, restored.preprocessing.interpolation) == (96, "bicubic")
    assert (
        restored.notes[-1] == "the single sigmoid output is converted to two classes: it is the probability of class 1"
    )
    save_network(tmp_path / "ours", restored)
    assert load_weights(tmp_path / "ours").preprocessing == restored.preprocessing


def test_one_sigmoid_is_a_softmax_of_two_classes(network):
    one = random_network("torchvision", num_classes=1)
    two = with_outputs(one, "sigmoid")
    assert (two.model.num_classes, two.task) == (2, Classification(2))
    features = np.linspace(-1e-2, 1e-2, 1280, dtype=np.float32)
    logit, logits = (
        features @ network.variables["params"]["classifier"]["kernel"]
        + network.variables["params"]["classifier"]["bias"]
        for network in (one, two)
    )
    np.testing.assert_allclose(two.task.probabilities(np.asarray(logits))[1], 1 / (1 + np.exp(-logit[0])), rtol=1e-5)
    assert with_outputs(network, "sigmoid").task == Classification(7, outputs="sigmoid")
    with pytest.raises(UserError, match="there is no classifier whose outputs could be set to sigmoid"):
        with_outputs(network.replace(model=network.model.clone(num_classes=0)), "sigmoid")
    with pytest.raises(UserError, match="the network has sigmoid outputs, which a file for torchvision cannot record"):
        export_weights(Path("x.safetensors"), with_outputs(network, "sigmoid"), "torchvision")


def test_what_a_file_is_read_as_is_said(tensors, tmp_path):
    assert load_weights(write(tmp_path / "x.safetensors", tensors)).notes == ("the classifier has 7 classes",)
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    restored = load_weights(write(tmp_path / "y_96.safetensors", headless))
    assert restored.notes == ("there is no classifier: the output is the pooled features",)
    assert (restored.model.num_classes, restored.resolution) == (0, 96)


def test_only_a_network_with_a_background_loses_it(network, tensors, tmp_path):
    with pytest.raises(UserError, match="has 7 classes; only networks with 1001 classes have a background"):
        load_weights(write(tmp_path / "x.safetensors", tensors), drop_background=True)
    larger = random_network("torchvision", num_classes=1001)
    tensors = mapping.export(TORCHVISION, larger.model, larger.variables)
    restored = load_weights(write(tmp_path / "y.safetensors", tensors), drop_background=True)
    assert (restored.model.num_classes, restored.task.num_classes) == (1000, 1000)
    assert restored.class_names[0] == "tench, Tinca tinca"
    np.testing.assert_array_equal(
        restored.variables["params"]["classifier"]["bias"], larger.variables["params"]["classifier"]["bias"][1:]
    )


# --- Faults ----------------------------------------------------------------------------------------------

KERNEL = "features.3.conv.1.0.weight"
EXPAND = "features.2.conv.0.0.weight"


def renamed(tensors):
    return {("other." + name if name == KERNEL else name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {n: v for n, v in t.items() if n != KERNEL}, f"tensors are missing: {KERNEL}$"),
        (lambda t: {n: v for n, v in t.items() if not n.startswith("features.3.")}, r"missing: features\.3\..* and 10 more"),
        (lambda t: {**t, "extra.weight": np.ones(3, np.float32)}, "unexpected tensors that belong to no layer: extra.weight"),
        (renamed, f"tensors are missing: {KERNEL}"),
        (lambda t: {**t, KERNEL: t[KERNEL][:, :, :2]}, rf"{KERNEL} has shape \(48, 1, 2, 3\), expected \(48, 1, 3, 3\)"),
        (lambda t: {**t, EXPAND: t[EXPAND][:9]}, rf"{EXPAND} has shape \(9, 8, 1, 1\), expected \(48, 8, 1, 1\)"),
        (lambda t: {**t, "classifier.1.bias": t["classifier.1.bias"][:3]}, r"classifier.1.bias has shape \(3,\), expected \(7,\)"),
        (lambda t: {**t, KERNEL: t[KERNEL] * np.nan}, f"{KERNEL} contains values that are not finite"),
        (lambda t: {**t, KERNEL: (9 * t[KERNEL]).astype(np.int32)}, f"{KERNEL} has dtype int32, expected floating-point"),
        (lambda t: {**t, "features.0.1.running_var": -t["features.0.1.running_var"]}, "running_var contains negative variances"),
        (lambda t: {"a": np.ones(1, np.float32)}, r"its tensors \(a, ...\) are not those of a MobileNet from torchvision, timm"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_named(change, says, tensors, tmp_path):
    path = write(tmp_path / "x.safetensors", change(tensors))
    with pytest.raises(UserError, match=says) as error:
        load_weights(path)
    assert str(error.value).startswith(str(path))


def test_the_wrong_source_is_corrected(tensors, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match="weights of torchvision, not of timm; use --source torchvision"):
        load_weights(path, "timm")
    with pytest.raises(
        UserError, match="unknown source 'caffe'; choose from torchvision, timm, transformers, keras, tf_slim"
    ):
        load_weights(path, "caffe")


# --- What is written -------------------------------------------------------------------------------------

REST = ("mnv2_jax", "keras", 224)  # source, preprocessing, resolution
FILES = {"torchvision": "x.safetensors", "keras": "x.weights.h5"}


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("torchvision", {"width_multiplier": 0.1, "expansion": 2.2}),
        ("torchvision", {"width_multiplier": 1.4}),
        ("torchvision", {"num_classes": 0}),
        ("keras", {"width_multiplier": 0.5, "expansion": 3.0}),
    ],
    ids=str,
)
def test_a_published_network_comes_back_to_the_bit(target, settings, tmp_path):
    network = random_network(target, **settings)
    export_weights(tmp_path / FILES[target], network, target)
    restored = load_weights(tmp_path / FILES[target])
    assert restored.model == network.model
    assert restored.task == network.task
    assert_equal(restored.variables, network.variables)


def test_what_does_not_change_inference_is_no_hindrance(tmp_path):
    network = random_network("torchvision")
    trained = network.model.clone(dropout_rate=0.2, batch_norm_momentum=0.5, dtype="bfloat16", kernels="xla")
    export_weights(tmp_path / "x.safetensors", network.replace(model=trained, source="mnv2_jax"), "torchvision")
    assert_equal(load_weights(tmp_path / "x.safetensors").variables, network.variables)


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"block": LinearInside}, "block"),
        ({"block": TwoDepthwise}, "block"),
        ({"block": NoShortcut}, "block"),
        ({"block": Mine}, "block"),
        ({"channel_divisor": 1}, "channel_divisor"),
        ({"unit_strides": 1}, "unit_strides"),
        ({"output_stride": 16}, "output_stride"),
        ({"activation": "relu"}, "activation"),
        ({"bottleneck_activation": "relu6"}, "bottleneck_activation"),
        ({"head": False}, "head"),
        ({"stages": (Stage(1, 16, 1, 1), Stage(6, 24, 2, 2))}, "stages"),
        ({"unit_strides": 1, "activation": "swish"}, "unit_strides, activation"),
    ],
    ids=str,
)
def test_what_would_be_another_function_is_not_written(target, settings, named, tmp_path):
    # It is refused whatever its arrays are.
    network = Network(MobileNetV2(convention=SOURCES[target].convention, **settings), {}, Classification(1000), *REST)
    with pytest.raises(UserError, match=f"not the published mobilenet_v2 but differs in {named}: ") as error:
        export_weights(tmp_path / FILES[target], network, target)
    assert "\n" not in str(error.value)
    assert f"loaded by {SOURCES[target].title}, it would compute a different function" in str(error.value)
    assert list(tmp_path.iterdir()) == []


class Gained(MobileNetV2):
    """A user-defined network with a setting that no version has had."""

    gain: float = 1.0


def test_a_setting_that_is_new_is_a_difference_by_itself(network, monkeypatch, tmp_path):
    path, settings = tmp_path / "x.safetensors", (7, 0.25)
    model = Gained(*settings, convention="pytorch", gain=2.0)
    monkeypatch.setitem(names.MODELS, "mobilenet_v2", Gained)
    with pytest.raises(UserError, match="the network is not the published mobilenet_v2 but differs in gain: "):
        export_weights(path, network.replace(model=model), "torchvision")
    export_weights(path, network.replace(model=model.clone(gain=1.0)), "torchvision")
    assert_equal(load_weights(path).variables, network.variables)


def test_a_network_that_others_have_not_is_not_theirs(network, monkeypatch, tmp_path):
    monkeypatch.setitem(names.MODELS, "gained", Gained)
    for model, name in [(Gained(7, 0.25), "gained"), (ClassicResidualNet(7), "classic_residual")]:
        for target, file in FILES.items():
            with pytest.raises(UserError, match=f"^{SOURCES[target].title} has no {name}; it has mobilenet_v"):
                export_weights(tmp_path / file, network.replace(model=model), target)
    with pytest.raises(UserError, match="^torchvision has no mobilenet_v1; it has mobilenet_v2$"):
        export_weights(tmp_path / "x.safetensors", network.replace(model=MobileNetV1(7)), "torchvision")


@pytest.mark.parametrize(
    ("source", "name", "target", "says"),
    [
        ("torchvision", "x.pkl", "torchvision", "x.pkl must end in .safetensors or .pth"),
        ("torchvision", "x.safetensors", "timm", "unknown target 'timm'; choose from torchvision, keras"),
        ("keras", "x.safetensors", "torchvision", "use the tensorflow convention, but torchvision uses the"),
        ("torchvision", "x.h5", "keras", "use the pytorch convention, but Keras uses the tensorflow one"),
    ],
)
def test_targets_that_a_network_has_no_place_in(source, name, target, says, tmp_path):
    with pytest.raises(UserError, match=says):
        export_weights(tmp_path / name, random_network(source), target)
    assert list(tmp_path.iterdir()) == []
