import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.scripts import load
from mnv2_jax.errors import UserError

TINY = {"seeds": (6, 8), "comparisons": (1, 2), "studies": 40}


@pytest.fixture(scope="module")
def script():
    return load("null_studies")


def test_twice_the_same(script, tmp_path, capsys):
    options = script.Options(**TINY, out=tmp_path)
    script.main(options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "summary.json", "figure.png", "figure.svg"}
    assert {"experiment", "environment", "command"} <= summary.keys()
    assert script.compute(options) == summary["results"]
    # Mixed studies have at least two comparisons.
    assert len(summary["results"]) == 8 * 2 * 2 - 2
    by_name = {(each["differences"], each["n"], each["comparisons"]): each for each in summary["results"]}
    wrong = by_name["failing, by the mean", 8, 1]["false_verdicts"]
    assert wrong["ci95"][0] > 0.05
    assert wrong["ci95"][0] < wrong["rate"] < wrong["ci95"][1]
    assert by_name["failing, as reported", 8, 1]["false_verdicts"]["rate"] == 0
    assert by_name["failing, as reported", 8, 1]["about_a_median"] > 0.3
    # Six seeds cannot decide two comparisons.
    assert by_name["normal", 6, 2]["without_bounds"] == 1
    assert summary["sentence"] in capsys.readouterr().out
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        script.main(script.Options(**TINY, seed=1, out=tmp_path))


def test_studies_that_cannot_decide_are_not_drawn(script):
    rate = {"rate": 0.05, "ci95": [0.04, 0.06]}
    results = [
        {
            "differences": name,
            "n": n,
            "comparisons": 2,
            "false_verdicts": rate,
            "coverage": rate,
            "without_bounds": without,
        }
        for name in script.cases()
        for n, without in ((6, 1.0), (7, 0.2))
    ]
    figure = script.draw(results, script.Options(seeds=(6, 7), comparisons=(1, 2)))
    drawn = [x for axes in figure.axes for line in axes.get_lines() for x in line.get_xdata() if x > 1]
    assert min(drawn) > 6.9
    plt.close(figure)


@pytest.mark.parametrize("name", ["normal", "heavy", "exponential", "lognormal", "mixed", "failing, by the mean"])
def test_drawn_differences_are_what_they_are_called(script, name):
    """Their mean is the true difference, and normal differences of one study correlate by 1/2."""
    case = script.cases()[name]
    values, baseline, truth = script.draw_studies(case, 20_000, 2, 2, np.random.default_rng(0))
    differences = values - baseline[:, None]
    error = differences.std(axis=(0, 2)) / np.sqrt(differences[:, 0].size)
    assert (np.abs(differences.mean(axis=(0, 2)) - truth) < 4 * error).all()
    if name == "normal":
        assert np.corrcoef(differences[:, 0, 0], differences[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.03)
    failed = np.mean(values < 0.43)
    assert failed == pytest.approx(0.1, abs=0.01) if "failing" in name else failed < 1e-4


@pytest.mark.parametrize("name", ["failing, as reported", "failing alike, as reported"])
def test_of_failing_studies_the_median_is_the_truth(script, name):
    case = script.cases()[name]
    values, baseline, truth = script.draw_studies(case, 20_000, 1, 2, np.random.default_rng(0))
    assert np.median(values - baseline[:, None]) == pytest.approx(truth[0], abs=4e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "8", "6"], "--seeds must be increasing numbers from 2 to 16, got 8 6"),
        (["--comparisons", "0"], "--comparisons must be increasing numbers from 1 to 64, got 0"),
        (["--studies", "1"], "--studies must be from 10 to 100000, got 1"),
        (["--seed", "-1"], "--seed must be from 0 to 2^32 - 1, got -1"),
        (["--out", "/dev/null"], "--out /dev/null is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, says):
    assert says in refused("null_studies", *arguments)
