import json

import numpy as np
import pytest

from experiments.scripts import load
from mnv2_jax.errors import UserError

TINY = {"channels": (1, 2, 8), "embeddings": 6, "decoders": 3, "decoder_steps": 20, "points": 32}


@pytest.fixture(scope="module")
def script():
    return load("relu_embedding")


def estimate(mean, spread=0.002):
    return {"mean": mean, "ci95": [mean - spread, mean + spread]}


@pytest.mark.parametrize(
    ("lost", "own", "holds"),
    [
        ({1: 0.6, 2: 0.3, 30: 0.0}, {1: 0.1, 2: 0.3, 30: 0.0}, "paper"),
        ({1: 0.0, 2: 0.3, 30: 0.6}, {1: 0.0, 2: 0.3, 30: 0.6}, "no loss in fewer channels"),
        ({1: 0.6, 2: 0.7, 30: 0.0}, {1: 0.1, 2: 0.7, 30: 0.0}, "neither"),
        ({1: 0.5, 2: 0.3, 30: 0.0}, {1: 0.0, 2: 0.3, 30: 0.0}, "neither"),
        ({2: 0.3, 30: 0.0}, {2: 0.3, 30: 0.0}, "paper"),
    ],
)
def test_the_reading_follows_from_the_numbers(script, lost, own, holds):
    found = script.judge(*({n: estimate(value) for n, value in each.items()} for each in (lost, own)))
    assert found["holds"] == holds
    if 1 not in lost:
        assert found["relu_loses_in_fewer_channels"] is None
        assert "is not tried" in found["sentence"]
    else:
        assert ("is wrong" in found["sentence"]) == (own[1] > 0.05)


def test_the_title_ends_where_nothing_is_lost(script):
    summary = {
        "reading": {"lost": {n: estimate(share) for n, share in {"1": 0.6, "3": 0.1, "15": 0.001, "30": 0}.items()}}
    }
    assert script.finding(summary) == (
        "Behind ReLU a decoder recovers 40 % of a spiral's variance from 1 channel, 90 % from 3, 100 % from 15"
    )


def test_twice_the_same(script, tmp_path, capsys):
    options = script.Options(**TINY, out=tmp_path)
    script.main(options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "summary.json", "figure.png", "figure.svg"}
    again = script.compute(options)
    assert {name: summary[name] for name in again} == again
    assert [(each["activation"], each["n"]) for each in summary["results"][:4]] == [("relu", 1), ("relu", 2), ("relu", 8), ("relu6", 1)]  # fmt: skip
    assert summary["results"][1]["one_to_one_theorem_1"] == 0.25
    assert np.isfinite([each[name]["ci95"] for each in summary["results"] for name in script.MEASURES]).all()
    assert {"experiment", "environment", "command"} <= summary.keys()
    output = capsys.readouterr().out
    assert summary["reading"]["sentence"] in output
    # Results for another curve are not written to the same folder.
    with pytest.raises(UserError, match="turns is 2.5 there and 3 here"):
        script.main(script.Options(**TINY, turns=3, out=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--channels", "3", "2"], "--channels must be two or more increasing numbers from 1 to 256, got 3 2"),
        (["--embeddings", "5"], "--embeddings must be from 6 to 10000, got 5"),
        (["--decoders", "300"], "--decoders must be from 2 to --embeddings (200), got 300"),
        (["--decoder-steps", "0"], "--decoder-steps must be from 1 to 100000, got 0"),
        (["--points", "3"], "--points must be from 16 to 1024, got 3"),
        (["--radius", "nan"], "--radius must be greater than 0 and below 100, got nan"),
        (["--seed", "-1"], "--seed must be from 0 to 2^32 - 1, got -1"),
        (["--out", "/dev/null"], "--out /dev/null is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, says):
    assert says in refused("relu_embedding", *arguments)
