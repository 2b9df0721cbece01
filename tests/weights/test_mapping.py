"""Name tables, one per source, used in both directions."""

import jax
import numpy as np
import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.network import variable_shapes
from mnv2_jax.weights import mapping
from mnv2_jax.weights.keras import KERAS
from mnv2_jax.weights.load import SOURCES
from mnv2_jax.weights.torchvision import TORCHVISION

from .networks import assert_equal, random_network


@pytest.mark.parametrize(
    ("source", "model"), [(source, model) for source in SOURCES for model in SOURCES[source].tables]
)
def test_every_table_names_every_variable_once_and_leads_back(source, model):
    network = random_network(source, model)
    theirs = mapping.export(SOURCES[source], network.model, network.variables)
    assert len(theirs) == len(jax.tree.leaves(network.variables))
    found, channels = mapping.infer_model(SOURCES[source], model, theirs)
    assert found == network.model
    assert_equal(mapping.fill(SOURCES[source], found, channels, theirs), network.variables)


def test_names_of_all_sources_are_told_apart():
    for source in SOURCES.values():
        for model in source.tables:
            network = random_network(source.name, model)
            names = mapping.export(source, network.model, network.variables)
            shares = {
                (other.name, kind): mapping.guess(other, names) for other in SOURCES.values() for kind in other.tables
            }
            full = {other for (other, _), (kind, share) in shares.items() if share == 1 and kind == model}
            assert full == {source.name}


@pytest.mark.parametrize("width", [0.6, 2.0])
def test_width_expansion_and_classes_are_told_from_the_shapes(width):
    network = random_network("torchvision", width_multiplier=width, expansion=4.0)
    theirs = mapping.export(TORCHVISION, network.model, network.variables)
    found, channels = mapping.infer_model(TORCHVISION, "mobilenet_v2", theirs)
    assert channels == 3
    # Because of rounding, several multipliers give the same network.
    assert variable_shapes(found) == variable_shapes(network.model)
    assert (found.num_classes, found.expansion) == (7, 4.0)


@pytest.mark.parametrize("expansion", [0.5, 1.3, 2.0, 2.2, 3.5, 6.25, 10.0])
def test_the_expansion_is_the_roundest_that_gives_all_widths(expansion):
    inputs = [8, 16, 24, 40]
    widths = [(width, round(expansion * width)) for width in inputs]
    assert mapping.infer_expansion(widths) == expansion
    # A tensor of wrong shape does not mislead this; it is reported when the network is filled.
    found = mapping.infer_expansion([*widths, (16, 1000)])
    assert found == pytest.approx(expansion, rel=0.1)
    assert mapping.infer_expansion([]) is None


def test_the_expansion_of_the_table_is_each_stage_s_own():
    network = random_network("torchvision", expansion=6.0)
    theirs = mapping.export(TORCHVISION, network.model, network.variables)
    assert mapping.infer_model(TORCHVISION, "mobilenet_v2", theirs)[0] == network.model.clone(expansion=None)


def test_channels_of_no_width_are_refused():
    network = random_network("torchvision")
    theirs = mapping.export(TORCHVISION, network.model, network.variables)
    odd = {name: np.resize(tensor, tensor.size + 3) if tensor.ndim == 1 else tensor for name, tensor in theirs.items()}
    with pytest.raises(UserError, match="no width multiplier gives the channels of this mobilenet_v2"):
        mapping.infer_model(TORCHVISION, "mobilenet_v2", odd)


def test_two_layers_never_get_one_name():
    """Keras has a name for only one block without an expansion, the first."""
    network = random_network("keras", expansion=1.0)
    with pytest.raises(UserError, match="Keras has no name for block_1: there, all blocks but the first have an exp"):
        mapping.export(KERAS, network.model, network.variables)


def test_a_wrapper_s_prefix_is_taken_off():
    network = random_network("timm")
    theirs = mapping.export(SOURCES["timm"], network.model, network.variables)
    for prefix in ("module.", "model.backbone."):
        wrapped = {prefix + name: tensor for name, tensor in theirs.items()}
        assert mapping.strip_prefix(SOURCES["timm"], wrapped).keys() == theirs.keys()
    # A classifier beside the backbone shares only the first parts of the prefix.
    beside = {("model." if name.startswith("classifier") else "model.net.") + name: v for name, v in theirs.items()}
    assert mapping.strip_prefix(SOURCES["timm"], beside).keys() == theirs.keys()


@pytest.mark.parametrize(
    ("name", "kernel"), [("fc", (5, 1280)), ("head.conv", (5, 1280, 1, 1)), ("classifier", (5, 1280))]
)
def test_another_linear_layer_behind_the_network_is_its_classifier(name, kernel):
    network = random_network("torchvision", num_classes=0)
    tensors = mapping.export(TORCHVISION, network.model, network.variables)
    weight = np.ones(kernel, np.float32)
    found, said = mapping.find_classifier(TORCHVISION, "mobilenet_v2", {**tensors, f"{name}.weight": weight})
    assert said == [f"the classifier is the layer {name!r} with 5 outputs"]
    assert found["classifier.1.weight"].shape == (5, 1280)
    np.testing.assert_array_equal(found["classifier.1.bias"], np.zeros(5))


def test_a_head_of_several_layers_is_named_with_what_is_known():
    network = random_network("torchvision", num_classes=0)
    tensors = mapping.export(TORCHVISION, network.model, network.variables)
    head = {"classifier.1.weight": np.ones((9, 1280), np.float32), "classifier.1.bias": np.ones(9, np.float32)}
    tensors |= {**head, "classifier.3.weight": np.ones((5, 9), np.float32)}
    found, said = mapping.find_classifier(TORCHVISION, "mobilenet_v2", tensors)
    assert (found, said) == (tensors, [])
    model, channels = mapping.infer_model(TORCHVISION, "mobilenet_v2", found)
    says = r"no layer: classifier.3.weight; supported after the network is one linear layer with a weight of shape \(classes, 1280\) and a bias, or no layer"
    with pytest.raises(UserError, match=says):
        mapping.fill(TORCHVISION, model, channels, found)
