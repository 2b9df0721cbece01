import pytest

from mnv2_jax import InvertedResidual, MobileNetV2
from mnv2_jax.models.blocks import ClassicResidual, FullClassicResidual
from mnv2_jax.models.classic_residual import ClassicResidualNet
from mnv2_jax.models.cost import layer_costs


@pytest.mark.parametrize(("block", "kind"), [(ClassicResidual, "depthwise"), (FullClassicResidual, "full")])
def test_the_classic_network_is_mobilenet_v2_inside_out(block, kind):
    costs = {layer.name: layer for layer in layer_costs(ClassicResidualNet(block=block), (64, 64, 3))}
    assert costs["block_5/reduce"].kernel_shape == (1, 1, 6 * 32, 32)
    assert costs[f"block_5/{kind}"].kernel_shape == (3, 3, 1 if kind == "depthwise" else 32, 32)
    assert costs["block_5/restore"].kernel_shape == (1, 1, 32, 6 * 32)
    inverted = {layer.name: layer for layer in layer_costs(MobileNetV2(), (64, 64, 3))}
    for layer in ("stem", "classifier"):
        assert costs[layer] == inverted[layer]
    assert costs["head"].kernel_shape == (1, 1, 6 * 320, 1280)
    blocks = [{name.split("/")[0] for name in each if "block" in name} for each in (costs, inverted)]
    assert blocks[0] == blocks[1]


def test_the_reduction_and_the_block_have_to_be_those_of_a_classic_network(without_type_checks):
    with pytest.raises(ValueError, match="reduction must be greater than 0 and below 100, got -1"):
        ClassicResidualNet(reduction=-1)
    with pytest.raises(ValueError, match="the block InvertedResidual is not a subclass of ClassicResidual"):
        ClassicResidualNet(block=InvertedResidual)
