"""Fig. 1: what is measured of an embedded curve, where the answer is known."""

import importlib.util
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import cli
from mnv2_jax.analysis import embedding
from mnv2_jax.analysis.invertibility import preserved_fraction
from mnv2_jax.errors import UserError

SCRIPT = Path(__file__).parents[2] / "experiments" / "relu_embedding.py"
TINY = {"channels": (1, 2, 8), "embeddings": 6, "decoders": 3, "decoder_steps": 20, "points": 32}
PHI = ("relu", "relu6", "leaky_relu", "linear")
CORNER = jnp.array([[1.0, 0.0], [0.0, 1.0]])
STAR = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""Every coordinate and its negative: ReLU then loses nothing."""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("relu_embedding", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def curve():
    return embedding.spiral(64, 2.0, 4.0)


def test_a_spiral_of_even_steps(curve):
    radius = jnp.linalg.norm(curve, axis=1)
    assert radius[-1] == pytest.approx(4)
    assert radius[0] == pytest.approx(0.4)
    steps = np.asarray(jnp.linalg.norm(jnp.diff(curve, axis=0), axis=1))[3:]
    assert steps.max() < 1.1 * steps.min()
    assert np.all(np.diff(np.asarray(radius)) > 0)


def test_embeddings_do_not_depend_on_their_company():
    key = jax.random.key(0)
    both, alone = embedding.random_embeddings(key, (2, 5), 3), embedding.random_embeddings(key, (2,), 3)
    assert both.shape == (2, 3, 5, 2)
    np.testing.assert_array_equal(both[0, :, :2], alone[0])
    assert not both[0, :, 2:].any()
    assert both[1].all()


def test_linear_embeddings_lose_nothing_from_two_channels_on(curve):
    matrices = embedding.random_embeddings(jax.random.key(1), (1, 2), 8)
    found = embedding.measure(curve, matrices[1], 2, activations=("linear",))
    np.testing.assert_allclose(found["inverse_error"], 0, atol=1e-4)
    np.testing.assert_allclose(found["affine_share"], 1, atol=1e-4)
    assert found["one_to_one"].min() == 1
    assert found["merged"].max() == 0
    # In one channel a coordinate is gone, whatever the activation.
    found = embedding.measure(curve, matrices[0], 1, activations=("linear",))
    assert found["inverse_error"].min() > 0.5
    assert found["one_to_one"].max() == 0


def test_a_corner_keeps_a_quarter_and_a_star_everything():
    angle = 2 * jnp.pi * (jnp.arange(40) + 0.5) / 40
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    assert embedding.one_to_one_share(circle, CORNER, nn.relu) == 0.25
    assert embedding.one_to_one_share(circle, STAR, nn.relu) == 1
    # The points of the third quadrant become one: of their 100 ordered pairs those that are apart.
    distance = jnp.linalg.norm(circle[:10, None] - circle[None, :10], axis=-1)
    everywhere = jnp.linalg.norm(circle[:, None] - circle[None], axis=-1)
    apart = embedding.APART * everywhere.max()
    share = embedding.merged_share(circle, CORNER, jnp.array(2), nn.relu)
    assert share == pytest.approx(float((distance >= apart).sum() / (everywhere >= apart).sum()))
    assert embedding.merged_share(circle, STAR, jnp.array(4), nn.relu) == 0
    # relu(x) - relu(-x) = x: an affine decoder does it, and the pseudo-inverse finds half.
    assert embedding.affine_share(circle, STAR, nn.relu) == pytest.approx(1)
    np.testing.assert_allclose(embedding.bring_back(circle, STAR, nn.relu), circle / 2, atol=1e-6)
    assert embedding.inverse_error(circle, STAR, nn.relu) == pytest.approx(0.5)


def test_channels_of_zeros_change_nothing(curve):
    padded = jnp.pad(CORNER, ((0, 3), (0, 0)))
    for choice in range(len(PHI)):
        own = embedding.measure(curve, CORNER[None], 2, choice, activations=PHI)
        wide = embedding.measure(curve, padded[None], 2, choice, activations=PHI)
        for name, value in own.items():
            np.testing.assert_allclose(value, wide[name], atol=1e-4, err_msg=name)


def test_points_kept_one_to_one_are_those_of_theorem_1(curve):
    for n, matrices in zip((2, 4), embedding.random_embeddings(jax.random.key(2), (2, 4), 400), strict=True):
        share = np.asarray(embedding.measure(curve, matrices, n, activations=PHI)["one_to_one"], np.float64)
        error = share.std() / np.sqrt(len(share))
        assert abs(share.mean() - float(preserved_fraction(2, n))) < 4 * error
        # The formula for three dimensions is told apart.
        assert abs(share.mean() - float(preserved_fraction(3, n))) > 4 * error


def test_a_trained_decoder_finds_what_is_there_and_no_more(curve):
    images = jnp.stack([embedding.embed(curve, STAR, nn.relu), jnp.zeros((64, 4))])
    shares = embedding.decoder_shares(curve, images, jax.random.split(jax.random.key(0), 2), steps=200)
    assert shares[0] > 0.98
    assert abs(shares[1]) < 0.05


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


def test_the_script_twice_gives_the_same(script, tmp_path, capsys):
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
    # Another curve is not put in the same folder.
    with pytest.raises(UserError, match="turns is 2.5 there and 3 here"):
        script.main(script.Options(**TINY, turns=3, out=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--channels", "3", "2"], "--channels must be two or more numbers from 1 to 256, rising, got 3 2"),
        (["--embeddings", "5"], "--embeddings must be from 6 to 10000, got 5"),
        (["--decoders", "300"], "--decoders must be from 2 to --embeddings, 200, got 300"),
        (["--decoder-steps", "0"], "--decoder-steps must be from 1 to 100000, got 0"),
        (["--points", "3"], "--points must be from 16 to 1024, got 3"),
        (["--radius", "nan"], "--radius must be greater than 0 and below 100, got nan"),
        (["--seed", "-1"], "--seed must be from 0 to 2^32 - 1, got -1"),
        (["--out", "/dev/null"], "--out /dev/null is a file; name a folder"),
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
