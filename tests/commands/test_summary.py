"""`python -m mnv2_jax summary`."""

import json

import jax
import pytest


def test_numbers_as_json(run):
    code, output, errors = run(
        "summary", "--model", "mobilenet_v2", "--width-multiplier", "0.5", "--resolution", 160, "--json"
    )
    assert (code, errors) == (0, "")
    summary = json.loads(output)
    assert summary["parameters"] == 1_968_680
    assert summary["parameters_without_batch_norm"] == 1_950_136
    assert round(summary["multiply_adds"] / 1e6, 2) == 50.18
    assert sum(layer["multiply_adds"] for layer in summary["layers"]) == summary["multiply_adds"]
    first = summary["layers"][0]
    assert (first["name"], first["input_shape"], first["output_shape"]) == ("stem", [160, 160, 3], [80, 80, 16])
    assert first["activation_bytes"] == 4 * (160 * 160 * 3 + 80 * 80 * 16)


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_tables_of_operators_and_layers(run, model):
    code, output, _ = run("summary", "--model", model, "--resolution", 64, "--num-classes", 0)
    assert code == 0
    assert "…" not in output
    assert ("bottleneck" if model == "mobilenet_v2" else "depthwise separable") in output
    assert "block_12/depthwise" in output
    assert f"{(2_223_872 if model == 'mobilenet_v2' else 3_206_976):,}" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "resnet"], "unknown --model resnet; choose from mobilenet_v1, mobilenet_v2"),
        (["--bottleneck-activation", "relu7"], "unknown --bottleneck-activation relu7; choose from linear, relu6, "),
        (["--width-multiplier", "0"], "--width-multiplier must be greater than 0"),
        (["--resolution", "-1"], "--resolution must be from 1 to 4096 pixels, got -1"),
        (["--num-classes", "-1"], "--num-classes must be from 0 to 10000000, got -1"),
        (["--output-stride", "12"], "unknown --output-stride 12; choose from 8, 16, 32"),
        (["--unit-strides", "6"], "--unit-strides must be from 0 to 5, got 6"),
        (["--model", "mobilenet_v1", "--expansion", "3"], "mobilenet_v1 has no --expansion; only mobilenet_v2 has one"),
    ],
)
def test_a_network_that_there_is_not(refused, arguments, says):
    assert says in refused("summary", *arguments)


def test_a_trained_network_is_summarized(run, saved, network):
    code, output, errors = run("summary", "--weights", saved, "--json")
    assert (code, errors) == (0, "")
    found = json.loads(output)
    assert (found["model"], found["width_multiplier"], found["resolution"]) == ("mobilenet_v2", 0.1, 32)
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    assert found["layers"][-1]["output_shape"] == [3]
    output = run("summary", "--weights", saved, "--resolution", "64")[1]
    assert output.startswith(f"mobilenet_v2 of {saved}, width 0.1, 64 pixels, 3 classes\n")


def test_what_weights_say_no_flag_says(refused, saved):
    says = "--weights determines the network; remove --width-multiplier, --expansion, --num-classes"
    flags = ["--expansion", "3", "--width-multiplier", "0.5", "--num-classes", "3"]
    assert refused("summary", "--weights", saved, *flags) == says
    assert "nowhere does not exist" in refused("summary", "--weights", "nowhere")


def test_the_expansion_is_seen(run):
    blocks = json.loads(run("summary", "--expansion", "3", "--resolution", "32", "--json")[1])["table"]
    assert {row["expansion"] for row in blocks if row["operator"] == "bottleneck"} == {1, 3}
