"""`python -m mnv2_jax plan`, without the TPU compiler: what is refused, and what is printed of plans made by hand."""

import json

import jax
import pytest

from mnv2_jax.commands import plan as command
from mnv2_jax.plan.chips import CHIPS, Topology
from mnv2_jax.plan.compiled import Collective
from mnv2_jax.plan.plan import Plan


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v9:2x4"], "--topology must be CHIP:SHAPE, v5e:2x4 for instance, with a chip of v4, v5e"),
        (["--topology", "v5e:3x3"], "--topology v5e:3x3 is no slice that is offered; v5e has 1x1, 2x2, 2x4"),
        (["--batch-per-device", "0"], "--batch-per-device must be from 1 to 65536, got 0"),
        (["--accumulation", "3"], "--accumulation must divide --batch-per-device 128, got 3"),
        (["--width-multiplier", "-1"], "--width-multiplier must be greater than 0"),
        (["--num-classes", "0"], "--num-classes must be 1 or more"),
        (["--compare", "float32"], "--compare takes FLAG=VALUE, dtype=float32 for instance; got 'float32'"),
        (["--compare", "dtype=float8"], "float8"),
        (["--compare", "colour=red"], "colour"),
        (["--compare", "dtype=float32", "--sweep-batch"], "do not go together"),
        (["--compare", "study=ablate_bottleneck"], "--compare changes settings of a plan, and --study is none"),
        (["--compare", "=3"], "--compare takes FLAG=VALUE"),
        (["--topology", "v5e"], "--topology must be CHIP:SHAPE"),
        (["--sweep-batch", "--batch-per-device", "6", "--accumulation", "3"], "--accumulation 3 does not divide"),
        (["--study", "ablate_bottleneck", "--sweep-batch", "--dtype", "float32"], "leave --dtype, --sweep-batch out"),
    ],
)
def test_bad_input_is_said_in_one_line(run, arguments, says):
    code, output, errors = run("plan", *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert says in errors
    assert errors.count("\n") == 1


@pytest.fixture
def planned(monkeypatch):
    """The command's compilations, replaced by figures made by hand; more than 256 images a chip do not fit."""

    def plan(options, topology, batch=None):
        batch = batch or options.batch_per_device
        fits = batch <= 256
        return Plan(
            title=command.title(options, batch),
            topology=topology,
            chips=8,
            images=8 * batch,
            memory={"activations": 40_000_000 * batch, "temporary": 0, "batch": 0} if fits else {},
            hbm_bytes=40_000_000 * batch if fits else 17 * 2**30,
            flops=2e9 * batch if fits else None,
            bytes_accessed=4e8 * batch if fits else None,
            traffic_bytes=180_000_000 * batch if fits else None,
            collectives=(Collective("all-reduce", 14_000_000, 8),) if fits else (),
            compile_seconds=90.0,
        )

    monkeypatch.setattr(command, "plan", plan)
    monkeypatch.setattr(command, "open_topology", lambda name: Topology(name, CHIPS[name.split(":")[0]], jax.devices()))


def test_json_has_what_programs_read(run, planned):
    code, output, _ = run("plan", "--json")
    found = json.loads(output)
    assert code == 0
    assert {"hbm_bytes", "flops", "bytes_accessed"} <= found["per_chip"].keys()
    assert found["collectives"] == [{"kind": "all-reduce", "count": 1, "bytes": 14_000_000}]
    assert found["fits"] is True
    assert found["bound_by"] == "memory"
    assert found["images_per_second_upper_bound"] == pytest.approx(8 * 8.19e11 / 1.8e8)


def test_two_settings_side_by_side(run, planned):
    code, output, _ = run("plan", "--compare", "dtype=float32", "batch-norm=global")
    assert code == 0
    for text in ("bfloat16", "replica", "float32", "global", "bound by", "cloud.google.com/tpu/docs/v5e"):
        assert text in output
    code, output, _ = run("plan", "--json", "--compare", "topology=v6e:2x4")
    assert [other["topology"] for other in json.loads(output)["others"]] == ["v6e:2x4"]


def test_what_does_not_fit_says_by_how_much_and_what_helps(run, planned):
    code, output, _ = run("plan", "--batch-per-device", "512")
    assert code == 0
    assert "needs 17.00 GiB or more of the 15.75 GiB that a v5e gives, 1.25 GiB too much" in " ".join(output.split())
    assert "--sweep-batch" in output


def test_the_sweep_names_the_largest_batch(run, planned):
    code, output, _ = run("plan", "--sweep-batch", "--batch-per-device", "32")
    assert code == 0
    assert "The largest power-of-two batch that fits is 256 a chip" in output


def test_studies_are_found_by_their_scripts():
    study = command.find_study("ablate_bottleneck")
    assert [arm.name for arm in study.arms] == ["linear", "relu6"]
    with pytest.raises(command.UserError, match="there is no study 'nothing'; known are ablate_bottleneck"):
        command.find_study("nothing")
