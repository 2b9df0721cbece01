"""Files written by the packages themselves, and ours read by their strict loaders."""

import io
import json
import pickle
import zipfile

import h5py
import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file

from mnv2_jax.errors import UserError
from mnv2_jax.network import save_network, variable_shapes
from mnv2_jax.weights.load import export_weights, load_weights

from .conftest import randomize_keras, randomize_torch, randomized


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def torch_network():
    return randomize_torch(torchvision.models.mobilenet_v2(weights=None, width_mult=0.35, num_classes=7))


@pytest.fixture(scope="module")
def keras_network():
    return randomize_keras(keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=7))


@pytest.fixture(scope="module")
def keras_weights(keras_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "x.keras"
    keras_network.save(path)
    return load_weights(path)


# --- PyTorch ---------------------------------------------------------------------------------------------


def test_ours_to_torchvision_and_back_is_bit_exact(torch_network, tmp_path):
    torch.save(torch_network.state_dict(), tmp_path / "theirs.pth")
    weights = load_weights(tmp_path / "theirs.pth")
    assert weights.model.num_classes == 7
    assert weights.notes == ("the classifier has 7 classes",)
    save_network(tmp_path / "ours", weights)
    ours = load_weights(tmp_path / "ours")
    for name in ("back.pth", "back.safetensors"):
        export_weights(tmp_path / name, ours, "torchvision")
        assert_equal(load_weights(tmp_path / name).variables, weights.variables)
    fresh = torchvision.models.mobilenet_v2(weights=None, width_mult=0.35, num_classes=7)
    fresh.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    for name, tensor in fresh.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, torch_network.state_dict()[name]), name


def test_a_training_checkpoint_and_a_wrapper_s_prefix(torch_network, tmp_path):
    state = {f"module.{name}": value for name, value in torch_network.state_dict().items()}
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "x.pth")
    weights = load_weights(tmp_path / "x.pth")
    assert "the checkpoint's entry 'model' is used" in weights.notes
    averaged = {name: value + 1 if name.endswith("classifier.1.bias") else value for name, value in state.items()}
    torch.save({"model": state, "model_ema": {"n_averaged": torch.tensor(3), **averaged}}, tmp_path / "y.pth")
    bias = load_weights(tmp_path / "y.pth").variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(bias, torch_network.state_dict()["classifier.1.bias"].numpy() + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(dtype, torch_network, tmp_path):
    state = torch_network.state_dict()
    halved = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halved, tmp_path / "x.pth")
    save_file(halved, tmp_path / "x.safetensors")
    theirs = halved["features.0.0.weight"].float().numpy().transpose(2, 3, 1, 0)
    for name in ("x.pth", "x.safetensors"):
        kernel = load_weights(tmp_path / name).variables["params"]["stem"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, theirs)
        assert kernel.dtype == np.float32


def test_networks_of_timm_that_are_no_width_of_ours(tmp_path):
    save_file(timm.create_model("mobilenetv2_110d").state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="unexpected tensors that belong to no layer: blocks"):
        load_weights(tmp_path / "x.safetensors")


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/mnv2_jax_was_here", "w"))


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {}, "hook": evil}])
def test_a_pickle_with_code_is_refused_unrun(wrap, tmp_path):
    torch.save(wrap(Evil()), tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(wrap(Evil())))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(UserError, match=f"{name} contains more than tensors.*refused"):
            load_weights(tmp_path / name)


def test_a_whole_pickled_module_is_refused(torch_network, tmp_path):
    torch.save(torch_network, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"save only the network's state_dict\(\)"):
        load_weights(tmp_path / "x.pth")


def test_a_small_file_that_declares_a_huge_tensor_is_refused(torch_network, tmp_path):
    state = {**torch_network.state_dict(), "classifier.1.weight": torch.zeros(1).expand(1 << 20, 1280)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="declares 5.0 GiB"):
        load_weights(tmp_path / "x.pth")


def test_a_truncated_pth(torch_network, tmp_path):
    torch.save(torch_network.state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="x.pth cannot be read as .* may be truncated"):
        load_weights(tmp_path / "x.pth")


# --- transformers ----------------------------------------------------------------------------------------


def test_a_folder_of_hugging_face_s_with_labels_and_size(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "bird"}
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=96, num_labels=3, id2label=labels)
    transformers.MobileNetV2ForImageClassification(config).save_pretrained(tmp_path / "x")
    weights = load_weights(tmp_path / "x" / "model.safetensors")
    assert weights.class_names == ("cat", "dog", "bird")
    assert (weights.resolution, weights.preprocessing.scaled_side(96)) == (96, 128)
    assert_equal(load_weights(tmp_path / "x").variables, weights.variables)


def test_a_wrapped_network_of_hugging_face_s(tmp_path):
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=3)
    state = transformers.MobileNetV2ForImageClassification(config).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "x.pth")
    assert load_weights(tmp_path / "x.pth", "transformers").model.num_classes == 3


def test_a_backbone_of_hugging_face_s_alone(tmp_path):
    network = randomize_torch(transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.35)))
    network.save_pretrained(tmp_path / "x")
    weights = load_weights(tmp_path / "x" / "model.safetensors", "transformers")
    assert weights.model.num_classes == 0
    assert weights.class_names is None
    assert weights.notes[-1] == "there is no classifier: the output is the pooled features"


def test_timm_without_a_classifier(tmp_path):
    network = randomize_torch(timm.create_model("mobilenetv2_035", num_classes=0))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    assert load_weights(tmp_path / "x.pth", "timm").model.num_classes == 0


# --- Keras -----------------------------------------------------------------------------------------------


def assert_keras_weights(weights, network):
    variables = {variable.path: variable.numpy() for variable in network.weights}
    params, statistics = weights.variables["params"], weights.variables["batch_stats"]
    np.testing.assert_array_equal(params["stem"]["conv"]["kernel"], variables["Conv1/kernel"])
    depthwise = params["block_3"]["depthwise"]["conv"]["kernel"]
    np.testing.assert_array_equal(depthwise, variables["block_3_depthwise/kernel"].transpose(0, 1, 3, 2))
    variance = statistics["block_16"]["project"]["norm"]["var"]
    np.testing.assert_array_equal(variance, variables["block_16_project_BN/moving_variance"])


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.weights.h5"])
def test_every_file_that_keras_writes(name, keras_network, tmp_path):
    (keras_network.save_weights if "weights" in name else keras_network.save)(tmp_path / name)
    weights = load_weights(tmp_path / name, "keras")
    assert_keras_weights(weights, keras_network)
    assert weights.model.width_multiplier == 0.35
    assert weights.resolution == (224 if "weights" in name else 64)


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_files_of_keras_versions_that_note_no_names(name, keras_network, keras_weights, tmp_path):
    (keras_network.save_weights if "weights" in name else keras_network.save)(tmp_path / name)

    def strip(file):
        file.visititems(lambda _, item: item.attrs.clear())

    if name == "x.weights.h5":
        with h5py.File(tmp_path / name, "a") as file:
            strip(file)
    else:
        with zipfile.ZipFile(tmp_path / name) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        buffer = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(buffer, "a") as file:
            strip(file)
        parts["model.weights.h5"] = buffer.getvalue()
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content)
    assert_equal(load_weights(tmp_path / name).variables, keras_weights.variables)


@pytest.mark.parametrize("name", ["back.weights.h5", "back.h5"])
def test_ours_to_keras_and_back_is_bit_exact(name, keras_network, keras_weights, tmp_path):
    export_weights(tmp_path / name, keras_weights, "keras")
    assert_equal(load_weights(tmp_path / name).variables, keras_weights.variables)
    fresh = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, classes=7)
    fresh.load_weights(tmp_path / name)
    for ours, theirs in zip(fresh.get_weights(), keras_network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mobilenet_v1_to_keras_and_back(tmp_path):
    network = randomize_keras(
        keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, weights=None, classes=7)
    )
    network.save_weights(tmp_path / "x.weights.h5")
    weights = load_weights(tmp_path / "x.weights.h5")
    for name in ("back.weights.h5", "back.h5"):
        export_weights(tmp_path / name, weights, "keras")
        assert_equal(load_weights(tmp_path / name).variables, weights.variables)
        fresh = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, weights=None, classes=7)
        fresh.load_weights(tmp_path / name)
        for ours, theirs in zip(fresh.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


LAYERS = keras.layers


def larger_model(head, flattened=False, pooling=None):
    """Build a model as in Keras's transfer-learning guide: a backbone in a larger model, or layers on its output."""
    base = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, include_top=False,
                                          pooling=pooling)  # fmt: skip
    if flattened:
        inputs, x = base.input, base.output
    else:
        inputs = keras.Input((64, 64, 3))
        x = keras.Sequential([LAYERS.RandomFlip("horizontal"), LAYERS.RandomRotation(0.1)])(inputs)
        x = base(LAYERS.Rescaling(1 / 127.5, offset=-1, name="scale")(x), training=False)
    for layer in head:
        x = layer(x)
    return randomize_keras(keras.Model(inputs, x))


@pytest.fixture(scope="module", params=[False, True], ids=["nested", "flattened"])
def transferred(request):
    head = [LAYERS.GlobalAveragePooling2D(), LAYERS.Dropout(0.2), LAYERS.Dense(5, name="mine")]
    return larger_model(head, request.param), request.param


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.weights.h5"])
def test_a_backbone_with_pooling_dropout_and_one_dense_layer(transferred, name, tmp_path):
    network, flattened = transferred
    (network.save_weights if "weights" in name else network.save)(tmp_path / name)
    weights = load_weights(tmp_path / name)
    assert weights.model.num_classes == 5
    assert "the classifier is the dense layer 'mine' with 5 outputs" in weights.notes
    assert any("'scale'" in note for note in weights.notes) is (not flattened and "weights" not in name)
    kernel = network.get_layer("mine").kernel.numpy()
    np.testing.assert_array_equal(weights.variables["params"]["classifier"]["kernel"], kernel)


@pytest.mark.parametrize("transferred", [True], ids=["flattened"], indirect=True)
def test_a_network_out_of_a_larger_model_is_the_same_function(transferred, tmp_path):
    network, _ = transferred
    network.save(tmp_path / "x.keras")
    weights = load_weights(tmp_path / "x.keras")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    theirs = np.asarray(jax.jit(lambda x: network(x, training=False))(x))
    ours = np.asarray(jax.jit(weights.model.apply)(weights.variables, x))
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * theirs.std())


def test_two_layers_of_one_name_are_not_mixed_up(tmp_path):
    inner = keras.Sequential([keras.Input((1280,)), LAYERS.Dense(5, name="mine")])
    larger_model([LAYERS.GlobalAveragePooling2D(), inner, LAYERS.Dense(5, name="mine")]).save(tmp_path / "x.keras")
    with pytest.raises(UserError, match="several layers with the same name: mine/kernel, mine/bias"):
        load_weights(tmp_path / "x.keras")


@pytest.mark.parametrize("pooling", ["avg", None])
def test_another_head_is_listed_and_the_backbone_taken(pooling, tmp_path):
    head = [LAYERS.Flatten(), LAYERS.Dense(16, activation="relu", name="hidden"), LAYERS.Dense(5, name="mine")]
    larger_model(head, pooling=pooling).save(tmp_path / "x.keras")
    weights = load_weights(tmp_path / "x.keras")
    assert weights.model.num_classes == 0
    assert any("layers after the network that are not read: " in note and "'hidden'" in note and "'mine'" in note
               for note in weights.notes)  # fmt: skip


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.weights.h5"])
def test_a_sequential_model(name, tmp_path):
    base = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, weights=None, include_top=False)
    network = keras.Sequential(
        [base, LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(4, activation="softmax", name="mine")]
    )
    network.compile("adam", "categorical_crossentropy")
    network.optimizer.build(network.trainable_variables)  # its state is saved too
    (network.save_weights if "weights" in name else network.save)(tmp_path / name)
    weights = load_weights(tmp_path / name)
    assert weights.model.num_classes == 4
    kernel = network.get_layer("mine").kernel.numpy()
    np.testing.assert_array_equal(weights.variables["params"]["classifier"]["kernel"], kernel)


def test_another_pooling_is_no_classifier_of_ours(tmp_path):
    for head in (
        [LAYERS.GlobalMaxPooling2D(), LAYERS.Dense(5, name="mine")],
        [LAYERS.GlobalAveragePooling2D(), LAYERS.Activation("tanh"), LAYERS.Dense(5, name="mine")],
    ):
        larger_model(head).save(tmp_path / "x.keras")
        weights = load_weights(tmp_path / "x.keras")
        assert weights.model.num_classes == 0
        assert any("Pooling2D" in note and "'mine'" in note for note in weights.notes)


# --- TF-slim ---------------------------------------------------------------------------------------------


def slim_checkpoint(path, variables, averages):
    """Write a checkpoint like the paper's code: its names, a background class, optimizer slots, moving averages."""
    scopes = {"stem": "Conv", "head": "Conv_1"}
    for block in range(17):
        for layer in ("expand", "depthwise", "project"):
            scopes[f"block_{block}/{layer}"] = f"expanded_conv{f'_{block}' if block else ''}/{layer}"
    tensors = {}
    for path_of, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *layer, leaf_name = (key.key for key in path_of)
        leaf = np.asarray(leaf)
        if layer == ["classifier"]:
            name = "MobilenetV2/Logits/Conv2d_1c_1x1/" + {"kernel": "weights", "bias": "biases"}[leaf_name]
            leaf = leaf[None, None] if leaf_name == "kernel" else leaf
        else:
            scope = "MobilenetV2/" + scopes["/".join(layer[:-1])]
            if layer[-1] == "norm":
                names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
                name = f"{scope}/BatchNorm/{names[leaf_name]}"
            elif layer[-2] == "depthwise":
                name, leaf = f"{scope}/depthwise_weights", leaf.transpose(0, 1, 3, 2)
            else:
                name = f"{scope}/weights"
        tensors[name] = leaf
        if not name.endswith(("moving_mean", "moving_variance")):
            tensors[f"{name}/RMSProp"] = tensors[f"{name}/RMSProp_1"] = np.zeros_like(leaf)
            if averages:
                tensors[f"{name}/ExponentialMovingAverage"] = leaf
                tensors[name] = leaf + 1
    v1 = tf.compat.v1
    graph = v1.Graph()
    with graph.as_default(), v1.Session() as session:
        kept = [v1.Variable(value, name=name) for name, value in {**tensors, "global_step": np.int64(7)}.items()]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(kept).save(session, str(path))


@pytest.fixture(scope="module")
def slim_variables():
    from mnv2_jax import create_model

    model = create_model("mobilenet_v2", width_multiplier=0.35, num_classes=1001)
    shapes = variable_shapes(model)
    leaves, tree = jax.tree.flatten(shapes)
    values = randomized({f"{i}/moving_variance": leaf for i, leaf in enumerate(leaves)})
    return model, jax.tree.unflatten(tree, list(values.values()))


@pytest.mark.parametrize("averages", [True, False])
def test_a_checkpoint_of_the_paper_s_code(averages, slim_variables, tmp_path):
    model, variables = slim_variables
    slim_checkpoint(tmp_path / "mobilenet_v2_0.35_96.ckpt", variables, averages)
    for path in ("mobilenet_v2_0.35_96.ckpt", "mobilenet_v2_0.35_96.ckpt.index", "."):
        weights = load_weights(tmp_path / path)
        assert weights.source == "tf_slim"
        assert weights.resolution == (224 if path == "." else 96)
        assert weights.model == model
        assert_equal(weights.variables, variables)
        assert any("moving averages are used" in note for note in weights.notes) is averages
    assert weights.class_names[0] == "background"
    dropped = load_weights(tmp_path / "mobilenet_v2_0.35_96.ckpt", drop_background=True)
    assert dropped.model.num_classes == 1000
    assert dropped.class_names[0] == "tench, Tinca tinca"
    bias = variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(dropped.variables["params"]["classifier"]["bias"], bias[1:])


def test_a_truncated_checkpoint_of_tensorflow(slim_variables, tmp_path):
    slim_checkpoint(tmp_path / "model.ckpt-7", slim_variables[1], averages=False)
    data = tmp_path / "model.ckpt-7.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a TensorFlow checkpoint"):
        load_weights(tmp_path / "model.ckpt-7")


# --- The command, from a peer's file to a prediction ------------------------------------------------------


def test_convert_and_predict_give_the_peer_s_logits(torch_network, tmp_path, capsys):
    from mnv2_jax.commands import convert, predict

    torch.save(torch_network.state_dict(), tmp_path / "theirs.pth")
    convert.main(convert.Options(input=str(tmp_path / "theirs.pth"), output=tmp_path / "ours", source="torchvision"))
    x = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    capsys.readouterr()
    predict.main(predict.Options(weights=str(tmp_path / "ours"), array=tmp_path / "x.npy", json=True))
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    with torch.no_grad():
        theirs = torch_network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    ours = np.array([prediction["logits"] for prediction in predictions])
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5 * float(theirs.std()))
    best = theirs.softmax(-1).max(-1)
    assert [prediction["top"][0]["class"] for prediction in predictions] == best.indices.tolist()
    probabilities = [prediction["top"][0]["probability"] for prediction in predictions]
    np.testing.assert_allclose(probabilities, best.values.numpy(), rtol=1e-4)
