"""How much of a plane curve survives a random embedding followed by an activation? (Fig. 1, Sec. 3.2)

The paper's Fig. 1 shows a spiral x and its image phi(Tx) in n channels, mapped back by the inverse of T, for a few n.
This module has the curve, the images and the pseudo-inverse, and measures over many T:

- the error of mapping back by the pseudo-inverse of T;
- the fraction of the curve's points where the activation is locally one to one, as in Lemma 2;
- the fraction of pairs of points that coincide;
- the fraction of the curve's variance that a decoder recovers: the best affine one, and a trained nonlinear one.

Embeddings with few channels are padded with rows of zeros, so that one program serves all n. Every activation here is
0 at 0, so padding changes neither an image's distances nor the inverse.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from mnv2_jax.models.layers import switch_activation
from mnv2_jax.models.names import Activation

Phi = Callable[[jax.Array], jax.Array]
"""An activation."""
DIMENSION = 2
"""Dimension of the space that the curve lies in."""
APART = 0.1
"""Two points are apart if their distance is at least this fraction of the curve's diameter."""
SAME = 0.01
"""Images of two points coincide if their distance is at most this fraction of the expected one under T."""

NOISE = 0.05
"""Training noise of decoders, as a fraction of a channel's standard deviation."""


def spiral(points: int, turns: float, radius: float) -> Float[Array, "points 2"]:
    """Return an outward Archimedean spiral about the origin, with points at nearly equal distances along the curve.

    Args:
        points: number of points.
        turns: number of turns about the origin.
        radius: of the last point. That of the first is a tenth of it.
    """
    # Arc length grows roughly with the square of the angle.
    angle = 2 * jnp.pi * turns * jnp.sqrt(jnp.linspace(0.01, 1, points))
    scale = radius / (2 * jnp.pi * turns)
    return scale * jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], axis=1)


def random_embeddings(
    key: Key[Array, ""], channels: Sequence[int], count: int
) -> Float[Array, "sizes count channels 2"]:
    """Draw matrices T with independent standard normal elements, `count` for each n in `channels`.

    Channels after the first n are zeros. The matrices for an n do not depend on the other entries of `channels`.
    """
    most = max(channels)

    def draw(n: int) -> jax.Array:
        matrices = jax.random.normal(jax.random.fold_in(key, n), (count, n, DIMENSION))
        return jnp.pad(matrices, ((0, 0), (0, most - n), (0, 0)))

    return jnp.stack([draw(n) for n in channels])


def embed(x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], phi: Phi) -> Float[Array, "points channels"]:
    """Return phi(Tx) of every point."""
    return phi(x @ matrix.T)


def bring_back(x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], phi: Phi) -> Float[Array, "points 2"]:
    """Return the pseudo-inverse of T times phi(Tx), which Fig. 1 shows."""
    return embed(x, matrix, phi) @ jnp.linalg.pinv(matrix).T


def inverse_error(x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], phi: Phi) -> Float[Array, ""]:
    """Return |x' - x| / |x| over all points together, where x' is mapped back by the pseudo-inverse.

    With ReLU and growing n it does not go to 0 but to 1/2: half of the channels are cut off, so x' approaches x / 2.
    """
    return jnp.linalg.norm(bring_back(x, matrix, phi) - x) / jnp.linalg.norm(x)


def one_to_one_share(x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], phi: Phi) -> Float[Array, ""]:
    """Return the fraction of points where phi(Tx) is locally one to one.

    That takes two active rows, which are linearly independent almost surely. With ReLU the mean over T is N / 2^n of
    Theorem 1, for two dimensions.
    """
    slope = jax.vmap(jax.vmap(jax.grad(phi)))(x @ matrix.T)
    active = (slope != 0) & jnp.any(matrix != 0, axis=1)
    return jnp.mean(jnp.sum(active, axis=1) >= DIMENSION)


def merged_share(
    x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], n: Int[Array, ""], phi: Phi
) -> Float[Array, ""]:
    """Return the fraction of pairs of points that are apart (`APART`) whose images coincide (`SAME`).

    T with n channels is expected to scale distances by sqrt(n).
    """

    def distances(values: jax.Array) -> jax.Array:
        return jnp.linalg.norm(values[:, None] - values[None], axis=-1)

    before, after = distances(x), distances(embed(x, matrix, phi))
    apart = before >= APART * jnp.max(before)
    return jnp.sum(apart & (after <= SAME * jnp.sqrt(n) * before)) / jnp.sum(apart)


def _recovered(
    found: Float[Array, "points 2"], x: Float[Array, "points 2"], mean: Float[Array, " 2"]
) -> Float[Array, ""]:
    return 1 - jnp.sum((found - x) ** 2) / jnp.sum((x - mean) ** 2)


def affine_share(x: Float[Array, "points 2"], matrix: Float[Array, "channels 2"], phi: Phi) -> Float[Array, ""]:
    """Return the fraction of the curve's variance that the best affine decoder recovers (1 - squared error / variance).

    It is fitted by least squares to every other point and evaluated on the points between them.
    """
    image = embed(x, matrix, phi)
    features = jnp.concatenate([image, jnp.ones_like(image[:, :1])], axis=1)
    known, held_out = features[::2], features[1::2]
    solution = jnp.linalg.pinv(known, rtol=1e-5) @ x[::2]
    return _recovered(held_out @ solution, x[1::2], x[::2].mean(axis=0))


@functools.partial(jax.jit, static_argnames="activations")
def measure(
    x: Float[Array, "points 2"],
    matrices: Float[Array, "count channels 2"],
    n: Int[Array, ""] | int,
    choice: Int[Array, ""] | int = 0,
    *,
    activations: tuple[Activation, ...],
) -> dict[str, Float[Array, " count"]]:
    """Compute all of the above for every T of n channels, with the activation at index `choice`.

    `n` and `choice` may be traced, so one program serves all.
    """
    n, phi = jnp.asarray(n), switch_activation(activations, choice)

    def one(matrix: jax.Array) -> dict[str, jax.Array]:
        return {
            "inverse_error": inverse_error(x, matrix, phi),
            "one_to_one": one_to_one_share(x, matrix, phi),
            "merged": merged_share(x, matrix, n, phi),
            "affine_share": affine_share(x, matrix, phi),
        }

    # In small batches: all pairs of points in all channels for all T at once would take gigabytes.
    return lax.map(one, matrices, batch_size=4)


# --- The trained decoder ---------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """An MLP with two hidden ReLU layers: piecewise affine, like the inverse of ReLU(Tx) where it exists."""

    width: int = 32

    @nn.compact
    def __call__(self, image: Float[Array, "points channels"]) -> Float[Array, "points 2"]:
        """Return a point of the plane for every image."""
        for name in ("hidden_1", "hidden_2"):
            image = nn.relu(nn.Dense(self.width, name=name)(image))
        return nn.Dense(DIMENSION, name="point")(image)


@functools.partial(jax.jit, static_argnames="steps")
def decoder_shares(
    x: Float[Array, "points 2"],
    images: Float[Array, "jobs points channels"],
    keys: Key[Array, " jobs"],
    *,
    steps: int,
    learning_rate: float = 1e-2,
    noise: float = NOISE,
) -> Float[Array, " jobs"]:
    """Return the fraction of the curve's variance that a trained decoder recovers from each embedding's images.

    One `Decoder` per embedding, all in parallel, is trained by full-batch Adam with a cosine schedule on every other
    point, and evaluated on the unseen points between them. This tests whether an image still determines its position on
    the curve, without extrapolation beyond the curve's ends. Noise on the inputs keeps the decoder from memorizing
    which of two nearly coinciding points is which. A better decoder may recover more.

    Args:
        x: the curve.
        images: of its points; channels of zeros are ignored.
        keys: random keys of the decoders' initial weights.
        steps: number of training steps.
        learning_rate: peak learning rate.
        noise: standard deviation of the noise on each channel in training, relative to the channel's own.
    """
    decoder, optimizer = Decoder(), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    mean, scale = x[::2].mean(axis=0), x[::2].std()
    target = (x[::2] - mean) / scale

    def prepare(image: jax.Array) -> jax.Array:
        deviation = image[::2].std(axis=0)
        used = deviation > 0
        normalized = jnp.where(used, (image - image[::2].mean(axis=0)) / jnp.where(used, deviation, 1), 0)
        # Initial weights are scaled for the number of all channels, including those that are zeros.
        return normalized * jnp.sqrt(image.shape[1] / jnp.maximum(jnp.sum(used), 1))

    inputs = jax.vmap(prepare)(images)
    amplitude = inputs[:, ::2].std(axis=1, keepdims=True)
    parameters = jax.vmap(lambda key, image: decoder.init(key, image))(keys, inputs)

    def decode(parameters: optax.Params, inputs: jax.Array) -> jax.Array:
        return jax.vmap(lambda own, image: jnp.asarray(decoder.apply(own, image)))(parameters, inputs)

    def loss(parameters: optax.Params, key: jax.Array) -> jax.Array:
        # Decoders do not interact, so they share the noise: sampling it for each would dominate the run time.
        noisy = inputs[:, ::2] + noise * amplitude * jax.random.normal(key, inputs[0, ::2].shape)
        found = decode(parameters, noisy)
        return jnp.sum(jnp.mean((found - target) ** 2, axis=(1, 2)))

    def step(
        carry: tuple[optax.Params, optax.OptState], key: jax.Array
    ) -> tuple[tuple[optax.Params, optax.OptState], None]:
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters, key), state)
        return (optax.apply_updates(parameters, updates), state), None

    of_steps = jax.random.split(jax.random.fold_in(keys[0], steps), steps)
    (parameters, _), _ = lax.scan(step, (parameters, optimizer.init(parameters)), of_steps)
    found = decode(parameters, inputs[:, 1::2]) * scale + mean
    return jax.vmap(_recovered, in_axes=(0, None, None))(found, x[1::2], mean)
