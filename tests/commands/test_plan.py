"""`python -m mnv2_jax plan` without the TPU compiler: bad flags, and the output for handmade plans."""

import json
import sys
from pathlib import Path

import jax
import pytest

from mnv2_jax.commands import plan as command
from mnv2_jax.errors import UserError
from mnv2_jax.flags import parse
from mnv2_jax.plan import chips
from mnv2_jax.plan import plan as library
from mnv2_jax.plan.chips import Topology
from mnv2_jax.plan.compiled import Collective
from mnv2_jax.plan.plan import Plan

SCRIPT = Path(__file__).parents[2] / "experiments" / "ablate_bottleneck.py"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v9:2x4"], "--topology must be an accelerator type (v4-8, v5litepod-8, "),
        (
            ["--topology", "v5e:3x3"],
            "is not an available slice; choose from v5litepod-1 (v5e:1x1), v5litepod-4 (v5e:2x2)",
        ),
        (["--batch-size", "0"], "--batch-size must be greater than 0, got 0"),
        (["--batch-size", "1000000"], "--batch-size must be 524288 or less on v5litepod-8, got 1000000"),
        (["--batch-size", "100"], "--batch-size 100 is not divisible by 8 devices; use 96"),
        (["--accumulation", "3"], "--batch-size 1024 is not divisible by 8 devices with 3 microbatches each; use 1032"),
        (["--width-multiplier", "-1"], "--width-multiplier must be greater than 0"),
        (["--num-classes", "0"], "--num-classes must be from 1 to 10000000, got 0"),
        (["--step", "both"], "unknown --step both; choose from train, eval"),
        (["--compare", "float32"], "--compare takes FLAG=VALUE, for example dtype=float32; got 'float32'"),
        (["--compare", "dtype=float8"], "float8"),
        (["--compare", "colour=red"], "colour"),
        (["--compare", "dtype=float32", "--sweep-batch"], "cannot be combined"),
        (["--compare", "study=ablate_bottleneck"], "--compare changes settings of a plan; --study is not one"),
        (["--compare", "=3"], "--compare takes FLAG=VALUE"),
        (["--topology", "v5e"], "or CHIP:SHAPE (v5e:2x4), where CHIP is one of v4, v5e, v5p, v6e; got 'v5e'"),
        (
            ["--sweep-batch", "--batch-size", "48", "--accumulation", "3"],
            "none of which is divisible by --accumulation 3",
        ),
        (["--study", "ablate_bottleneck", "--sweep-batch", "--dtype", "float32"], "remove --dtype, --sweep-batch"),
    ],
)
def test_bad_input_is_said_in_one_line(refused, arguments, says):
    assert says in refused("plan", *arguments)


# --- Plans made by hand ----------------------------------------------------------------------------------


def by_hand(title, topology, batch):
    """Return a handmade plan; more than 256 images per chip do not fit."""
    fits = batch <= 256
    return Plan(
        title=title,
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


@pytest.fixture
def planned(monkeypatch):
    """Replace the command's compilations by handmade plans."""

    def plan(options, topology):
        batch = command.training_of(options).batch_size // 8
        return by_hand(command.title(options, batch), topology, batch)

    def plan_study(study, topology, watch):
        names = ", ".join(arm.name for arm in study.arms)
        with watch(f"compiling {names}"):
            return [by_hand(names, topology, 64)]

    monkeypatch.setattr(command, "plan", plan)
    monkeypatch.setattr(library, "plan_study", plan_study)
    monkeypatch.setattr(chips, "open_topology", lambda name: Topology(*chips.find_slice(name), jax.devices()))


def test_json_has_what_programs_read(run, planned):
    code, output, errors = run("plan", "--json")
    found = json.loads(output)
    assert (code, errors) == (0, "compiling for v5litepod-8 (one to four minutes)\n")
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
    assert "compiling plan 2 of 2 for v5litepod-8" in output
    code, output, _ = run("plan", "--json", "--compare", "topology=v6e-8")
    assert [other["topology"] for other in json.loads(output)["others"]] == ["v6e:2x4"]


@pytest.mark.parametrize(
    ("flags", "batch_size"),
    [([], 1024), (["--batch-size", "256"], 256), (["--topology", "v5p-8"], 512), (["--topology", "v4:2x2x2"], 1024)],
)
def test_the_batch_is_that_of_all_chips_as_for_train(flags, batch_size):
    """The default is 128 images per chip; v5p-8 has four chips."""
    training = command.training_of(parse(command.Options, "", flags))
    assert (training.batch_size, training.batch_norm) == (batch_size, "replica")


def test_what_does_not_fit_says_by_how_much_and_what_helps(run, planned):
    code, output, _ = run("plan", "--batch-size", "4096")
    assert code == 0
    assert "needs at least 17.00 GiB, 1.25 GiB more than the 15.75 GiB available on a v5e" in " ".join(output.split())
    assert "--sweep-batch" in output


def test_the_sweep_names_the_largest_batch(run, planned):
    code, output, _ = run("plan", "--sweep-batch", "--batch-size", "256")
    assert code == 0
    assert "The largest power-of-two batch that fits is 256 images per chip" in output


# --- Studies ---------------------------------------------------------------------------------------------

STUDY = """
import dataclasses
from lying_beside import ARMS

from mnv2_jax.ablation.design import Arm, Study, StudyOptions
from mnv2_jax.training.config import RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    width: float = 0.1


def create(options: Options) -> Study:
    return Study(
        experiment="mine", question="?", claim="Yes.", dataset="digits", seeds=2, training=RECIPES["small"],
        model={"width_multiplier": options.width}, arms=tuple(map(Arm, ARMS)),
    )


if __name__ == "__main__":
    raise SystemExit("it is planned, not run")
"""


def test_the_programs_of_a_study_are_those_of_its_script(run, planned):
    code, output, errors = run("plan", "--study", SCRIPT, "--topology", "v6e:2x2")
    assert (code, errors) == (0, "")
    assert output.startswith("compiling linear, relu6\n")
    assert "linear, relu6" in " ".join(output.split())
    assert json.loads(run("plan", "--study", SCRIPT, "--json")[1])["title"] == "linear, relu6"


def test_a_study_may_lie_in_any_folder_and_import_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(STUDY)
    (tmp_path / "lying_beside.py").write_text('ARMS = ("a", "b")')
    monkeypatch.chdir(tmp_path)
    for path in (Path("mine.py"), tmp_path / "mine.py"):
        study = command.find_study(path)
        assert [arm.name for arm in study.arms] == ["a", "b"]
        assert study.model["width_multiplier"] == 0.1
        del sys.modules["lying_beside"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("answer = 42", "defines no study: it needs Options, a subclass of StudyOptions, and create(options)"),
        ("class Options: pass\ndef create(options): pass", "defines no study"),
        ("from mnv2_jax.ablation.design import StudyOptions as Options", "defines no study"),
        ("Dear diary,", "cannot be run (SyntaxError: invalid syntax"),
        ("import nothing_of_that_name", "cannot be run (ModuleNotFoundError: No module named 'nothing_of"),
        ("\0\1\2", "cannot be run ("),
        (None, "is not a script; use one of yours or one in experiments/, which is in the source, not in the wheel"),
    ],
)
def test_what_describes_no_study_is_one_line(refused, content, says, tmp_path):
    path = tmp_path / "x.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        command.find_study(path)
    assert str(error.value).startswith(f"--study {path} {says}")
    assert f"--study {path} {says}" in refused("plan", "--study", path)


def test_a_folder_is_no_script(refused, tmp_path):
    assert f"--study {tmp_path} is not a script; use one" in refused("plan", "--study", tmp_path)
