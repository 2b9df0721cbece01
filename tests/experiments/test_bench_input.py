import json

import pytest

from experiments.scripts import load

TINY = ["--files", "2", "--images", "32", "--rounds", "1"]


@pytest.mark.slow
def test_rates_of_ours_alone(command, capsys):
    assert command("bench_input", *TINY, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_a_file"] > 10_000
    (rounds,) = found["images_per_second"].values()
    assert all(rate > 0 for rate in rounds[0].values())
    assert found["ratio_a_core"] == {}


def test_the_stream_yields_batches_of_the_size_that_is_compared(tmp_path):
    script = load("bench_input")
    script.write_files(tmp_path, 2)
    assert next(script.ours(tmp_path)).shape == (script.BATCH, script.SIZE, script.SIZE, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "31"], "--files and --rounds must be 1 or more, and --images 32 or more"),
        (["--peer-python", "/nowhere"], "--peer-python /nowhere is not a Python interpreter with TensorFlow"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, says):
    assert says in refused("bench_input", *arguments)
