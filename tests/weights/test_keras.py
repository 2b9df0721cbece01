"""Keras's files without Keras: `tests/peers` has those that it writes itself."""

import h5py
import numpy as np
import pytest

from mnv2_jax import create_model
from mnv2_jax.weights import mapping
from mnv2_jax.weights.keras import KERAS, KerasFile, adapt_head, group_names, name_by_order
from mnv2_jax.weights.load import export_weights, load_weights

from .networks import assert_equal, random_network


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5"])
@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_what_is_written_is_read_back_to_the_bit(model, name, tmp_path):
    network = random_network("keras", model)
    export_weights(tmp_path / name, network, "keras")
    restored = load_weights(tmp_path / name)
    assert restored.model == network.model
    assert (restored.source, restored.preprocessing) == ("keras", "keras")
    assert_equal(restored.variables, network.variables)


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_a_file_without_names_is_read_by_the_order_of_layers(model, tmp_path):
    network = random_network("keras", model)
    export_weights(tmp_path / "x.weights.h5", network, "keras")
    with h5py.File(tmp_path / "x.weights.h5", "a") as file:
        file.visititems(lambda _, item: item.attrs.clear())
    assert_equal(load_weights(tmp_path / "x.weights.h5").variables, network.variables)
    tensors = mapping.export(KERAS, network.model, network.variables)
    layers = {layer: group for group, layer in group_names(network.model).items()}
    counted = {f"{layers[name.split('/')[0]]}/{name.split('/')[1]}": tensor for name, tensor in tensors.items()}
    assert name_by_order(counted, network.model).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("behind", "outputs", "says"),
    [
        ([("GlobalAveragePooling2D", "pool"), ("Dropout", "drop"), ("Dense", "mine")], 7, "dense layer 'mine' with 7"),
        ([("GlobalMaxPooling2D", "pool"), ("Dense", "mine")], 0, "not taken, behind the network: GlobalMaxPooling2D"),
    ],
)
def test_a_backbone_comes_out_of_a_larger_model(behind, outputs, says):
    """With its head, where that is pooling and one dense layer."""
    network = random_network("keras", num_classes=0)
    tensors = mapping.export(KERAS, network.model, network.variables)
    names = dict.fromkeys(name.split("/")[0] for name in tensors)
    head = {"mine/kernel": np.ones((1280, 7), np.float32), "mine/bias": np.zeros(7, np.float32)}
    layers = (("InputLayer", "input"), ("Rescaling", "scale"), *(("Layer", name) for name in names), *behind)
    found, notes = adapt_head(KerasFile({**tensors, **head}, layers, None), create_model("mobilenet_v2"))
    assert mapping.infer_model(KERAS, "mobilenet_v2", found)[0].num_classes == outputs
    assert "not taken, in front of the network: Rescaling 'scale'" in notes
    assert says in " ".join(notes)
