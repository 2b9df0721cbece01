"""One step of training and of evaluation, written once, for one run on one device."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from mnv2_jax.data.resident import Batch
from mnv2_jax.tasks.classification import Sums, classification_sums


class TrainState(flax.struct.PyTreeNode):
    """All that a run is, between two steps. What is random in a step follows from `data_key` and `step`.

    JAX also fills such a container with shapes and shardings instead of arrays, hence the wide types.
    """

    step: PyTree  # Int[Array, ""]
    data_key: PyTree  # Key[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def init_state(
    seed: Int[Array, ""],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step. Seeds, not networks, decide: the same seed pairs two networks."""
    init_key, data_key = jax.random.split(jax.random.key(seed))
    variables = model.lazy_init(init_key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        data_key=data_key,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def train_step(
    state: TrainState, batch: Batch, model: nn.Module, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Sums]:
    """One update; the metrics are those of the batch before it."""

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = model.apply(variables, batch.images, train=True, mutable=["batch_stats"])
        sums = classification_sums(logits, batch.labels, batch.weights)
        return sums.loss / sums.images, (sums, updates["batch_stats"])

    gradients, (sums, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state), sums


def eval_step(state: TrainState, batch: Batch, model: nn.Module) -> Sums:
    """Metrics of a batch with the running statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: Array = model.apply(variables, batch.images, train=False)  # type: ignore[assignment]
    return classification_sums(logits, batch.labels, batch.weights)
