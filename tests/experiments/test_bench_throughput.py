import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnv2_jax import cli
from mnv2_jax.errors import UserError

SCRIPT = Path(__file__).parents[2] / "experiments" / "bench_throughput.py"
TINY = ["--width-multiplier", "0.1", "--resolution", "32", "--batch-size", "2", "--rounds", "2", "--steps", "1"]


@pytest.fixture(scope="module")
def script():
    # Where Python looks when it runs the script: its other half is there.
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("bench_throughput", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


def command(*arguments, **options):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": os.environ.get("MNV2_TEST_CACHE", "")}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment, **options
    )


def test_rates_of_ours_alone(tmp_path):
    done = command(*TINY, "--tasks", "train,evaluate", "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [result["task"] for result in found["results"]] == ["train", "evaluate"]
    for result in found["results"]:
        assert (result["width_multiplier"], result["resolution"], result["batch_size"]) == (0.1, 32, 2)
        low, high = result["spread"]["ours"]
        assert 0 < low <= result["images_per_second"]["ours"] <= high
        assert result["ratio"] == {}
    assert "memory_mb" in found["results"][0]
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert found["versions"]["ours"].keys() == {"jax", "flax", "python"}
    assert found["device"] == {"ours": "cpu"}
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "figure.png", "figure.svg"}
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_ratio_is_of_the_same_round(script):
    found = script.summarize({"ours": [10.0, 20.0, 30.0], "torch": [5.0, 40.0, 15.0]})
    assert found["ratio"] == {"torch": 2.0}
    assert found["ratio_spread"] == {"torch": [0.5, 2.0]}
    assert found["images_per_second"] == {"ours": 20.0, "torch": 15.0}


def test_names_are_told_apart_by_spaces_or_commas(script):
    assert script.split(("torch,keras",)) == script.split(("torch", "keras", "torch")) == ("torch", "keras")
    assert script.split(()) == ()


def test_a_process_that_fails_says_its_last_line(script, tmp_path):
    with (
        script.Worker("ours", "train", Path(sys.executable), {"convention": "tensorflow"}, tmp_path) as worker,
        pytest.raises(UserError, match="^ours failed: KeyError: 'width_multiplier'"),
    ):
        worker.steps(1)


def test_networks_that_compute_something_else_are_not_compared(script):
    script.check_loss("torch", "train", 7.0001, 7.0)
    with pytest.raises(UserError, match=r"torch computes something else in train: its loss is 7\.10000, and ours 7\.0"):
        script.check_loss("torch", "train", 7.1, 7.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "torch,jaxx"], "--peers jaxx is not known; known are torch and keras"),
        (["--batch-size", "1"], "--batch-size must be 2 or more"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--peers", "torch", "--peer-python", "/nowhere"], "--peer-python /nowhere is no Python with torch"),
        (["--tasks", "train,guess"], "--tasks guess is not known; known are train and evaluate"),
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--width-multiplier", "nan"], "--width-multiplier must be greater than 0, got nan"),
        (["--out", "/proc/mine"], "--out /proc/mine cannot be written"),
        (["--out", "/dev/null"], "--out /dev/null is a file; name a folder"),
        (["--peers", "torch", "--unit-strides", "2"], "--unit-strides must be 0 to 1 beside peers"),
    ],
)
def test_bad_input_is_one_line(script, capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "silence_libraries", lambda: None)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Options, "", arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []
