"""One step of training and of evaluation, written once, for one run on one device.

The devices of a run lie along the axis "data" of a mesh, or of `pmap`: each has its part of the batch and the
whole state, and one sum over the axis makes the update the same everywhere. What the task is, the step does
not know.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from mnv2_jax.data.batch import Batch
from mnv2_jax.tasks.task import Sums, Task

DATA_AXIS = "data"


class TrainState(flax.struct.PyTreeNode):
    """All that a run is, between two steps. What is random in a step follows from `seed` and `step`.

    JAX also fills such a container with shapes and shardings instead of arrays, hence the wide types.
    """

    step: PyTree  # Int[Array, ""]
    seed: PyTree  # Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree  # moving average of params, or None
    choice: PyTree = None  # Int[Array, ""], where the network is one of several that share a program
    rate: PyTree = None  # Float[Array, ""], factor of the learning rate, where runs that share a program differ in it

    def variables(self, averaged: bool = False) -> dict[str, PyTree]:
        """What the network is applied with, of the moving average if there is one and it is wanted."""
        params = self.ema if averaged and self.ema is not None else self.params
        return {"params": params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a step needs besides state and batch.

    Attributes:
        model: the network; its `batch_norm_axis` decides over which images training takes statistics.
        task: target, loss and metrics.
        optimizer: from gradients to updates.
        accumulation: parts in which a device takes its images, one after the other.
        ema_decay: share that the moving average keeps; 0 for no average.
        choices: how many networks the model is, of which each run has one by its number; see `MobileNetV2.choice`.
        rated: whether each run has a factor of its own for the learning rate.
    """

    model: nn.Module
    task: Task
    optimizer: optax.GradientTransformation
    accumulation: int = 1
    ema_decay: float = 0.0
    choices: int = 1
    rated: bool = False

    def network(self, state: TrainState) -> nn.Module:
        """The network of a run: the one that it has chosen, where the model is several."""
        return self.model if state.choice is None else self.model.clone(choice=state.choice)


def init_state(
    seed: Int[Array, ""],
    learner: Learner,
    image_shape: tuple[int, int, int],
    choice: Int[Array, ""] | None = None,
    rate: Float[Array, ""] | None = None,
) -> TrainState:
    """The state before the first step. Seeds, not networks, decide: the same seed pairs two networks."""
    init_key, _ = jax.random.split(jax.random.key(seed))
    variables = learner.model.lazy_init(init_key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=learner.optimizer.init(params),
        ema=params if learner.ema_decay else None,
        choice=choice,
        rate=rate,
    )


def train_step(state: TrainState, batch: Batch, learner: Learner) -> tuple[TrainState, Sums]:
    """One update; the metrics are those of the batch before it, over all devices.

    Inside `DATA_AXIS`: `batch` is this device's part. Parts that are accumulated are to a device what devices
    are to a run: gradients add up, and running statistics are the mean of theirs.
    """
    init_key, _ = jax.random.split(jax.random.key(state.seed))
    dropout_key = jax.random.fold_in(jax.random.fold_in(init_key, 1), state.step)

    def loss(params, part: Batch):
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, updates = learner.network(state).apply(
            variables,
            part.images,
            train=True,
            places=part.places,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        sums = learner.task.sums(outputs, part, train=True)
        return sums["loss"], (sums, updates["batch_stats"])

    def of_part(part: Batch):
        gradients, (sums, batch_stats) = jax.grad(loss, has_aux=True)(state.params, part)
        return gradients, sums, batch_stats

    if learner.accumulation == 1:
        totals = of_part(batch)
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(learner.accumulation, -1, *leaf.shape[1:]), batch)
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_part, first))
        totals, _ = lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(part)), None), zeros, parts)
    # All in one, so that devices wait for each other once a step.
    gradients, sums, batch_stats = lax.psum(totals, DATA_AXIS)
    gradients = jax.tree.map(lambda leaf: leaf / sums["examples"], gradients)
    count = learner.accumulation * lax.axis_size(DATA_AXIS)
    batch_stats = jax.tree.map(lambda leaf: leaf / count, batch_stats)

    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, state.params)
    if state.rate is not None:
        # Both optimizers' updates are proportional to the learning rate of the whole run.
        updates = jax.tree.map(lambda leaf: state.rate * leaf, updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if learner.ema_decay:
        # As TensorFlow averages when it knows the step: the first ones count for more.
        decay = jnp.minimum(learner.ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, ema, 1 - decay)
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
    return state, sums


def device_places(batch_size: int, accumulation: int) -> Int[Array, " n"]:
    """Which places of the whole batch this device has, part after part. Inside `DATA_AXIS`.

    A part is a run of the batch, and each device has a run of every part: so the parts are the same whatever the
    number of devices.
    """
    part = batch_size // accumulation
    share = part // lax.axis_size(DATA_AXIS)
    starts = part * jnp.arange(accumulation) + share * lax.axis_index(DATA_AXIS)
    return (starts[:, None] + jnp.arange(share)).ravel()


def eval_step(state: TrainState, batch: Batch, learner: Learner) -> Sums:
    """Metrics of a batch over all devices, with the running statistics, and the moving average if there is one."""
    outputs = learner.network(state).apply(state.variables(averaged=True), batch.images, train=False)
    return lax.psum(learner.task.sums(outputs, batch, train=False), DATA_AXIS)
