"""Image classification: cross entropy and accuracy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


class Sums(NamedTuple):
    """Metrics as sums over examples, so that batches of different weight add up exactly."""

    loss: Float[Array, "*runs"]
    correct: Float[Array, "*runs"]
    images: Float[Array, "*runs"]


def classification_sums(
    logits: Float[Array, "n classes"],
    labels: Int[Array | np.ndarray, " n"],
    weights: Float[Array | np.ndarray, " n"],
) -> Sums:
    """Cross entropy in nats, and the images whose largest logit is the label's; ties go to the lower class."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jax.tree.map(lambda value: jnp.sum(value * weights), Sums(losses, correct, jnp.ones_like(losses)))
