"""Reading and writing weights without the packages that they are of: `tests/peers` has those."""

import zipfile

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy

from mnv2_jax import create_model
from mnv2_jax.errors import UserError
from mnv2_jax.weights import mapping
from mnv2_jax.weights.load import SOURCES, Weights, export_weights, load_weights, save_weights
from mnv2_jax.weights.torchvision import TORCHVISION


def random_weights(source, model="mobilenet_v2", **settings):
    convention = SOURCES[source].convention
    network = create_model(model, **{"width_multiplier": 0.25, "num_classes": 7, "convention": convention, **settings})
    generator = np.random.default_rng(0)
    shapes = mapping.variable_shapes(network)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)
    return Weights(network, variables, source, SOURCES[source].preprocessing[model], 224)


@pytest.fixture(scope="module")
def weights():
    return random_weights("torchvision")


@pytest.fixture(scope="module")
def tensors(weights):
    return mapping.export(TORCHVISION, weights.model, weights.variables)


def write(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- One table, both ways --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "model"), [(source, model) for source in SOURCES for model in SOURCES[source].tables]
)
def test_every_table_names_every_variable_once_and_leads_back(source, model):
    weights = random_weights(source, model)
    theirs = mapping.export(SOURCES[source], weights.model, weights.variables)
    assert len(theirs) == len(jax.tree.leaves(weights.variables))
    network, channels = mapping.infer_model(SOURCES[source], model, theirs)
    assert network == weights.model
    assert_equal(mapping.fill(SOURCES[source], network, channels, theirs), weights.variables)


def test_names_of_all_sources_are_told_apart():
    for source in SOURCES.values():
        for model in source.tables:
            names = mapping.export(source, *random_weights(source.name, model)[:2])
            shares = {
                (other.name, kind): mapping.guess(other, names) for other in SOURCES.values() for kind in other.tables
            }
            full = {other for (other, _), (kind, share) in shares.items() if share == 1 and kind == model}
            assert full == {source.name}


@pytest.mark.parametrize("width", [0.1, 0.35, 0.6, 1.1, 1.4, 2.0])
def test_width_expansion_and_classes_are_told_from_the_shapes(width):
    weights = random_weights("torchvision", width_multiplier=width, num_classes=11, expansion=4.0)
    theirs = mapping.export(TORCHVISION, weights.model, weights.variables)
    network, channels = mapping.infer_model(TORCHVISION, "mobilenet_v2", theirs)
    assert channels == 3
    # Rounding makes some multipliers the same network.
    assert mapping.variable_shapes(network) == mapping.variable_shapes(weights.model)
    assert (network.num_classes, network.expansion) == (11, 4.0)


def test_channels_of_no_width_are_refused(tensors, tmp_path):
    odd = {name: np.resize(tensor, tensor.size + 3) if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    with pytest.raises(UserError, match="no width multiplier gives the channels"):
        load_weights(write(tmp_path / "x.safetensors", odd))


# --- Checkpoints -----------------------------------------------------------------------------------------


def test_a_checkpoint_needs_no_further_arguments(weights, tmp_path):
    named = weights._replace(class_names=tuple("abcdefg"), resolution=96)
    save_weights(tmp_path / "x", named)
    restored = load_weights(tmp_path / "x")
    assert restored[0] == named.model
    assert restored[2:] == named[2:]
    assert_equal(restored.variables, named.variables)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint(weights, tmp_path):
    save_weights(tmp_path / "x", weights)
    for file in (tmp_path / "x" / "variables").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint .*x cannot be read"):
        load_weights(tmp_path / "x")


def test_keras_without_keras(tmp_path):
    weights = random_weights("keras")
    for name in ("x.weights.h5", "x.h5"):
        export_weights(tmp_path / name, weights, "keras")
        restored = load_weights(tmp_path / name)
        assert restored.model == weights.model
        assert_equal(restored.variables, weights.variables)


# --- Faults ----------------------------------------------------------------------------------------------

KERNEL = "features.3.conv.1.0.weight"


def renamed(tensors):
    return {("other." + name if name == KERNEL else name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {n: v for n, v in t.items() if n != KERNEL}, f"tensors are missing: {KERNEL}$"),
        (lambda t: {n: v for n, v in t.items() if not n.startswith("features.3.")}, r"missing: features\.3\..* and 10 more"),
        (lambda t: {**t, "extra.weight": np.ones(3, np.float32)}, "left over that belong to no layer: extra.weight"),
        (renamed, f"tensors are missing: {KERNEL}"),
        (lambda t: {**t, KERNEL: t[KERNEL][:, :, :2]}, rf"{KERNEL} has shape \(48, 1, 2, 3\), expected \(48, 1, 3, 3\)"),
        (lambda t: {**t, "classifier.1.bias": t["classifier.1.bias"][:3]}, r"classifier.1.bias has shape \(3,\), expected \(7,\)"),
        (lambda t: {**t, KERNEL: t[KERNEL] * np.nan}, f"{KERNEL} holds values that are not finite"),
        (lambda t: {**t, KERNEL: (9 * t[KERNEL]).astype(np.int32)}, f"{KERNEL} holds int32, expected floating-point"),
        (lambda t: {**t, "features.0.1.running_var": -t["features.0.1.running_var"]}, "running_var holds negative variances"),
        (lambda t: {"a": np.ones(1, np.float32)}, r"its tensors \(a, ...\) are not those of a MobileNet of torchvision, timm"),
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
    with pytest.raises(UserError, match="no source 'caffe'; known are torchvision, timm, transformers, keras, tf_slim"):
        load_weights(path, "caffe")


@pytest.mark.parametrize("length", [0, 7, 1000, 100_000])
@pytest.mark.parametrize("name", ["x.safetensors", "x.weights.h5", "x.h5"])
def test_a_truncated_file(name, length, tmp_path):
    weights = random_weights("torchvision" if name == "x.safetensors" else "keras")
    export_weights(tmp_path / name, weights, weights.source)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    with pytest.raises(UserError, match="cannot be read as|holds no weights known here") as error:
        load_weights(tmp_path / name)
    assert name in str(error.value)


def test_files_that_declare_more_than_they_hold(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("Conv1/Conv1/kernel:0", (1 << 20, 1 << 12), "f4")
    with pytest.raises(UserError, match="declares 16.0 GiB of tensors"):
        load_weights(tmp_path / "x.h5")
    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("Conv1/Conv1/kernel:0", (3,), "f4", external=[(str(tmp_path / "secret"), 0, 12)])
    with pytest.raises(UserError, match="y.h5 takes Conv1/Conv1/kernel:0 from another file"):
        load_weights(tmp_path / "y.h5")
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(1100):
                member.write(bytes(1 << 20))
    assert (tmp_path / "x.keras").stat().st_size < 1 << 22
    with pytest.raises(UserError, match="declares 1.1 GiB"):
        load_weights(tmp_path / "x.keras")


def test_what_is_nothing(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_weights(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("to do")
    with pytest.raises(UserError, match=r"notes.txt holds no weights known here"):
        load_weights(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is a folder, but no checkpoint"):
        load_weights(tmp_path)


def test_only_a_network_with_a_background_loses_it(tensors, tmp_path):
    with pytest.raises(UserError, match="has 7 classes, and only 1001 hold a background"):
        load_weights(write(tmp_path / "x.safetensors", tensors), drop_background=True)


@pytest.mark.parametrize(
    ("source", "settings", "name", "target", "says"),
    [
        ("torchvision", {}, "x.pkl", "torchvision", "x.pkl should end in .safetensors or .pth"),
        ("torchvision", {}, "x.safetensors", "timm", "no target 'timm'; known are torchvision, keras"),
        ("keras", {}, "x.safetensors", "torchvision", "of the tensorflow convention, and torchvision computes with the"),
        ("torchvision", {}, "x.h5", "keras", "of the pytorch convention, and Keras computes with the tensorflow one"),
        ("torchvision", {"bottleneck_activation": "relu6"}, "x.safetensors", "torchvision", "no setting bottleneck_activation"),
        ("torchvision", {"unit_strides": 1}, "x.safetensors", "torchvision", "no setting unit_strides"),
    ],
)  # fmt: skip
def test_what_would_be_another_function_is_not_written(source, settings, name, target, says, tmp_path):
    with pytest.raises(UserError, match=says):
        export_weights(tmp_path / name, random_weights(source, **settings), target)
    assert list(tmp_path.iterdir()) == []


def test_mobilenet_v1_is_not_torchvision_s(tmp_path):
    weights = random_weights("timm", "mobilenet_v1")
    with pytest.raises(UserError, match="torchvision has no mobilenet_v1"):
        export_weights(tmp_path / "x.safetensors", weights, "torchvision")
