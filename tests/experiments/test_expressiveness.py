import pytest

from experiments.scripts import study_of
from mnv2_jax.ablation.arms import network_of_arm
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import layer_costs


def test_capacity_and_expressiveness_are_varied_each_alone(digits):
    study = study_of("expressiveness", bottlenecks=(0.5, 1, 2), inners=(1, 0.5))
    assert [arm.name for arm in study.arms[:2]] == ["baseline", "bottleneck x0.5, inner x1"]
    assert len(study.arms) == 3 * 2 + 2
    widths = {}
    for arm in study.arms:
        layers = {layer.name: layer for layer in layer_costs(network_of_arm(study, arm, digits), (20, 20, 1))}
        widths[arm.name] = [layers[f"block_2/{name}"].output_shape[-1] for name in ("project", "depthwise")]
        assert ("block_2/depthwise_2" in layers) == (arm.name == "two depthwise")
    assert widths["baseline"] == widths["linear"] == widths["two depthwise"] == [12, 72]
    assert widths["bottleneck x0.5, inner x1"] == [6, 72]
    assert widths["bottleneck x2, inner x1"] == [24, 72]
    assert widths["bottleneck x1, inner x0.5"] == [12, 36]
    with pytest.raises(UserError, match="--bottlenecks must be greater than 0 and below 100, got 0"):
        study_of("expressiveness", bottlenecks=(0,))
