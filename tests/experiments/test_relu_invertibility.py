import json

import pytest

from experiments.scripts import load
from mnv2_jax.analysis import invertibility
from mnv2_jax.analysis.invertibility import preserved_fraction

TINY = {"n": (1, 2), "m": (2, 3), "samples": 2000, "examples": 40}


@pytest.fixture(scope="module")
def script():
    return load("relu_invertibility")


def test_twice_the_same(script, tmp_path, capsys):
    options = script.Options(**TINY, out=tmp_path)
    script.main(options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "summary.json", "figure.png", "figure.svg"}
    again = {
        "results": script.try_theorem(options),
        "bounds": script.check_bounds(options),
        "lemma_2": script.try_lemma(options),
    }
    assert {name: summary[name] for name in again} == again
    assert summary["points"] == summary["points_that_agree"] == 4
    assert summary["results"][3]["theorem_1_exact"] == "1/2"
    lemma = summary["lemma_2"]
    assert lemma["determined"] == lemma["recovered"] > 0
    assert lemma["undetermined"] == lemma["second_x_found"] > 0
    assert {"experiment", "environment", "command"} <= summary.keys()
    assert "agrees with the samples at 4 of 4 points" in capsys.readouterr().out


def test_a_wrong_theorem_is_seen(script, monkeypatch):
    monkeypatch.setattr(invertibility, "preserved_fraction", lambda n, m: preserved_fraction(n + 1, m))
    results = script.try_theorem(script.Options(n=(1, 2), m=(2, 3), samples=2000))
    assert not any(row["agrees"] for row in results)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--n", "0"], "--n must be increasing numbers from 1 to 16, got 0"),
        (["--m", "3", "2"], "--m must be increasing numbers from 1 to 128, got 3 2"),
        (["--samples", "1"], "--samples must be from 100 to 1000000, got 1"),
        (["--examples", "0"], "--examples must be from 10 to 100000, got 0"),
        (["--seed", "-1"], "--seed must be from 0 to 2^32 - 1, got -1"),
        (["--out", "/dev/null"], "--out /dev/null is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, says):
    assert says in refused("relu_invertibility", *arguments)
