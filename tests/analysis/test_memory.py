"""What inference holds in memory, by formula and as compiled; and the script that shows it."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.analysis.memory import compile_inference, part_bytes
from mnv2_jax.errors import UserError
from mnv2_jax.models.cost import layer_costs, units

SCRIPT = Path(__file__).parents[2] / "experiments" / "memory_split.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("memory_split", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_formula_by_hand():
    """Block 1: 16 channels of 112 pixels to 24 of 56, 96 inside."""
    block = units(layer_costs(MobileNetV2(), (224, 224, 3)))[2]
    ends = 112 * 112 * 16 + 56 * 56 * 24
    assert part_bytes(block, 1) == 4 * (ends + 96 * (112 * 112 + 56 * 56))
    assert part_bytes(block, 5) == 4 * (ends + 20 * (112 * 112 + 56 * 56))
    assert part_bytes(block, 1000) == 4 * (ends + 112 * 112 + 56 * 56)


def test_what_a_program_holds():
    """An image of 400 values, the program's 100 times as many, and one that comes out."""
    images = jax.ShapeDtypeStruct((1, 400), jnp.float32)
    program = compile_inference(lambda w, x: jnp.sum(jnp.sort((x.T @ w) ** 2, axis=0)), jnp.ones((1, 100)), images)
    assert program.inner_bytes >= 4 * 400 * 100
    assert program.activation_bytes == 4 * (400 + 1) + program.inner_bytes


def test_the_script_from_flags_to_files(script, tmp_path, capsys):
    options = script.Options(
        width_multiplier=0.1, resolution=32, splits=(5, 2, 900), network_splits=(1, 2), rounds=2, out=tmp_path / "out"
    )
    script.main(options)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["split"] for row in summary["sweep"]] == [1, 2, 5, summary["inner_channels"]]
    inner = [row["inner_bytes"] for row in summary["sweep"]]
    assert inner == sorted(inner, reverse=True)
    assert len(summary["blocks"]) == 17
    assert summary["networks"]["MobileNetV1"]["published_bytes"] is None
    assert set(summary["networks"]["MobileNetV2"]["measured_bytes"]) == {"1", "2"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "summary.json",
        "figure.png",
        "figure.svg",
    }
    output = capsys.readouterr().out
    assert all(line[:40] in output for line in summary["findings"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"splits": (0,)}, "--splits must be numbers of parts from 1 on, got 0"),
        ({"network_splits": ()}, "--network-splits must be numbers of parts from 1 on, got none"),
        ({"resolution": 0}, "--resolution must be from 1"),
        ({"width_multiplier": 0.0}, "--width-multiplier must be greater than 0"),
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(script, tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        script.main(script.Options(out=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.tpu_compiler
def test_splitting_saves_memory_on_a_tpu(script, tmp_path):
    options = script.Options(splits=(1, 5), network_splits=(1,), rounds=1, topology="v5e:1x1", out=tmp_path / "out")
    script.main(options)
    whole, parts = json.loads((tmp_path / "out" / "summary.json").read_text())["sweep"]
    assert parts["tpu_activation_bytes"] < 0.8 * whole["tpu_activation_bytes"]
