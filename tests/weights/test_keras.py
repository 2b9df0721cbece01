"""Keras files without Keras; `tests/peers` tests files that Keras itself writes."""

import h5py
import pytest

from mnv2_jax.weights import mapping
from mnv2_jax.weights.keras import KERAS, group_names, name_by_order
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
