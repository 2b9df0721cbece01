"""What each experiment's script compares, before anything is trained."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnv2_jax.ablation.matching import Matching
from mnv2_jax.ablation.study import create_network, model_of
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import count_multiply_adds, count_parameters, layer_costs

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def study_of(name, **flags):
    specification = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script.create(script.Options(**flags))


def costs_of(study, dataset):
    """(multiply-adds, parameters) of every arm, by name."""
    found = {}
    for arm in study.arms:
        side = arm.resolution or 28
        network = create_network(study, arm, dataset)
        found[arm.name] = count_multiply_adds(network, (side, side, 1)), count_parameters(network, (side, side, 1))
    return found


def test_several_activations_against_linear(digits):
    study = study_of("ablate_bottleneck", activation=("relu6", "hard_swish", "relu6"))
    assert [arm.name for arm in study.arms] == ["linear", "relu6", "hard_swish"]
    assert study.seeds == 7
    assert study.arms[1].paper.difference == -0.006
    assert len(set(costs_of(study, digits).values())) == 1


def test_shortcuts_cost_nothing(digits):
    study = study_of("ablate_residual")
    assert [arm.name for arm in study.arms] == ["bottleneck", "expansion", "none"]
    assert len(set(costs_of(study, digits).values())) == 1


def test_classic_blocks_are_matched_within_two_percent(digits):
    study = study_of("ablate_residual", question="classic", convolution=("depthwise", "full"))
    costs = costs_of(study, digits)
    madds, parameters = costs.pop("inverted")
    assert len(costs) == 4
    for name, (own_madds, own_parameters) in costs.items():
        ratio = own_madds / madds if name.endswith("madds") else own_parameters / parameters
        assert ratio == pytest.approx(1, abs=0.02), name
    # What was matched is said, with the numbers that it comes to.
    assert f"{costs['classic full, params'][1]:,} parameters" in study.arms[4].note


def test_expansions_at_one_width_and_at_one_cost(digits):
    study = study_of("ablate_expansion", expansions=(0.25, 6, 10))
    assert [(arm.name, arm.value) for arm in study.arms] == [("t=6", 6), ("t=0.25", 0.25), ("t=10", 10)]
    costs = [cost for cost, _ in costs_of(study, digits).values()]
    assert costs[1] < costs[0] < costs[2]
    study = study_of("ablate_expansion", at="multiply_adds", expansions=(0.25, 10))
    costs = [cost for cost, _ in costs_of(study, digits).values()]
    assert costs == pytest.approx([costs[0]] * 3, rel=0.02)
    with pytest.raises(UserError, match="--expansions must be greater than 0 and below 100, got -1"):
        study_of("ablate_expansion", expansions=(1, -1))


def test_mobilenet_v1_at_one_width_and_at_one_cost(digits):
    study = study_of("compare_v1_v2")
    assert model_of(study, study.arms[1])["width_multiplier"] == 0.35
    assert "expansion" not in model_of(study, study.arms[1])
    costs = costs_of(study, digits)
    assert costs["V1"][0] > 1.1 * costs["V2"][0]
    assert costs["V1, equal madds"][0] == pytest.approx(costs["V2"][0], rel=0.02)


def test_widths_and_resolutions_of_both_networks(digits):
    study = study_of("width_resolution", widths=(0.35, 0.5), resolutions=(28, 14))
    assert study.arms[0].name == "V2 0.35 28"
    assert len(study.arms) == 8
    costs = costs_of(study, digits)
    # A quarter of the pixels; the classifier and what rounds up cost the same.
    assert costs["V2 0.5 14"][0] == pytest.approx(costs["V2 0.5 28"][0] / 4, rel=0.15)
    assert costs["V1 0.5 14"][1] == costs["V1 0.5 28"][1]
    assert max(cost for _, cost, _ in study.published) == 582e6
    with pytest.raises(UserError, match="--resolutions must be from 1 to 1024 pixels, got 0"):
        study_of("width_resolution", resolutions=(0,))


def test_two_activations_in_two_precisions():
    study = study_of("ablate_depthwise_nonlinearity")
    assert [(arm.model["activation"], arm.model["dtype"]) for arm in study.arms] == [
        ("relu6", "float32"), ("relu", "float32"), ("relu6", "bfloat16"), ("relu", "bfloat16")
    ]  # fmt: skip


def test_no_width_can_match_a_cost_that_is_too_small():
    matching = Matching("digits", {"width_multiplier": 0.35})
    with pytest.raises(UserError, match=r"no width of .* has 1,000 multiply-adds within 2%; the nearest is off by"):
        matching.match("multiply_adds", 1000, {"name": "mobilenet_v1"})


def test_matching_leaves_it_to_the_study_how_many_devices_there_are():
    """Devices are counted once, when JAX starts them."""
    code = (
        "from mnv2_jax.ablation.matching import Matching; m = Matching('digits', {'width_multiplier': 0.35}); "
        "m.cost('parameters', {}); import jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "3", result.stderr


def test_arms_and_seeds_by_flag():
    study = study_of("ablate_depthwise_nonlinearity", arms=("relu",), seeds=3, images=320)
    assert [arm.name for arm in study.arms] == ["relu6", "relu"]
    assert (study.seeds, study.training.images) == (3, 320)
    with pytest.raises(UserError, match="there is no arm 'gelu'; this study has relu6, relu, relu6 bfloat16"):
        study_of("ablate_depthwise_nonlinearity", arms=("gelu",))


def test_capacity_and_expressiveness_are_varied_each_alone(digits):
    study = study_of("expressiveness", bottlenecks=(0.5, 1, 2), inners=(1, 0.5))
    assert [arm.name for arm in study.arms[:2]] == ["baseline", "bottleneck x0.5, inner x1"]
    assert len(study.arms) == 3 * 2 + 2
    widths = {}
    for arm in study.arms:
        layers = {layer.name: layer for layer in layer_costs(create_network(study, arm, digits), (28, 28, 1))}
        widths[arm.name] = [layers[f"block_2/{name}"].output_shape[-1] for name in ("project", "depthwise")]
        assert ("block_2/depthwise_2" in layers) == (arm.name == "two depthwise")
    assert widths["baseline"] == widths["linear"] == widths["two depthwise"] == [12, 72]
    assert widths["bottleneck x0.5, inner x1"] == [6, 72]
    assert widths["bottleneck x2, inner x1"] == [24, 72]
    assert widths["bottleneck x1, inner x0.5"] == [12, 36]
    with pytest.raises(UserError, match="--bottlenecks must be greater than 0 and below 100, got 0"):
        study_of("expressiveness", bottlenecks=(0,))
