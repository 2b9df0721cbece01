"""Fig. 1: measures of embedded curves, on cases with known answers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.analysis import embedding
from mnv2_jax.analysis.invertibility import preserved_fraction

PHI = ("relu", "relu6", "leaky_relu", "linear")
CORNER = jnp.array([[1.0, 0.0], [0.0, 1.0]])
STAR = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""Each coordinate and its negative, so that ReLU loses nothing."""


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
    # One channel loses a coordinate, whatever the activation.
    found = embedding.measure(curve, matrices[0], 1, activations=("linear",))
    assert found["inverse_error"].min() > 0.5
    assert found["one_to_one"].max() == 0


def test_a_corner_keeps_a_quarter_and_a_star_everything():
    angle = 2 * jnp.pi * (jnp.arange(40) + 0.5) / 40
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    assert embedding.one_to_one_share(circle, CORNER, nn.relu) == 0.25
    assert embedding.one_to_one_share(circle, STAR, nn.relu) == 1
    # The points of the third quadrant collapse to one. Merged are those of their 100 ordered pairs that are apart.
    distance = jnp.linalg.norm(circle[:10, None] - circle[None, :10], axis=-1)
    everywhere = jnp.linalg.norm(circle[:, None] - circle[None], axis=-1)
    apart = embedding.APART * everywhere.max()
    share = embedding.merged_share(circle, CORNER, jnp.array(2), nn.relu)
    assert share == pytest.approx(float((distance >= apart).sum() / (everywhere >= apart).sum()))
    assert embedding.merged_share(circle, STAR, jnp.array(4), nn.relu) == 0
    # relu(x) - relu(-x) = x, so an affine decoder recovers x; the pseudo-inverse gives x / 2.
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
        # The samples reject the formula for three dimensions.
        assert abs(share.mean() - float(preserved_fraction(3, n))) > 4 * error


def test_a_trained_decoder_finds_what_is_there_and_no_more(curve):
    images = jnp.stack([embedding.embed(curve, STAR, nn.relu), jnp.zeros((64, 4))])
    shares = embedding.decoder_shares(curve, images, jax.random.split(jax.random.key(0), 2), steps=200)
    assert shares[0] > 0.98
    assert abs(shares[1]) < 0.05
