"""One step of training and of evaluation, written for one run on one device.

The devices of a run form the axis "data" of a mesh, or of `pmap`. Each holds its slice of the batch and the whole
state; one sum over the axis makes the update the same on all of them. The step is independent of the task.
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from mnv2_jax.data.batch import Batch
from mnv2_jax.models.layers import switch_activation
from mnv2_jax.tasks.task import Sums, Task

DATA_AXIS = "data"


class TrainState(flax.struct.PyTreeNode):
    """The complete state of a run between two steps. All randomness of a step follows from `seed` and `step`.

    JAX also fills this container with shapes and shardings instead of arrays, hence the wide types.
    """

    step: PyTree  # Int[Array, ""]
    seed: PyTree  # Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree  # of the trained parameters
    ema: PyTree  # moving average of the trained parameters, or None
    choice: PyTree = None  # Int[Array, ""], if runs that share a program differ in an activation
    rate: PyTree = None  # Float[Array, ""], learning-rate factor, if runs that share a program differ in it

    def variables(self, averaged: bool = False) -> dict[str, PyTree]:
        """Return the network's variables; `averaged` takes the moving average of the parameters if there is one."""
        averages = self.ema if averaged and self.ema is not None else {}
        return {"params": {**self.params, **averages}, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a step needs besides state and batch.

    Attributes:
        model: the network. With a `batch_norm_axis`, training takes batch statistics over the devices along it; with
            `frozen_batch_norm` it uses the running statistics.
        task: loss and metrics.
        optimizer: turns gradients into updates.
        accumulation: number of microbatches that a device processes per step, in turn.
        ema_decay: decay of the moving average of the parameters; 0 for no average.
        mixup: alpha of the Beta(alpha, alpha) that mixing fractions are drawn from; 0 for no mixup.
        activations: candidates for the bottleneck activation; `TrainState.choice` is the index of a run's own. One
            program then serves networks that differ only in it. Empty to use the model's own.
        rated: whether each run has its own learning-rate factor.
        trained_layers: top-level names of the parameters to train, the others stay fixed; None trains all.
    """

    model: nn.Module
    task: Task
    optimizer: optax.GradientTransformation
    accumulation: int = 1
    ema_decay: float = 0.0
    mixup: float = 0.0
    activations: tuple[str, ...] = ()
    rated: bool = False
    trained_layers: tuple[str, ...] | None = None

    def network(self, state: TrainState) -> nn.Module:
        """Return the network of a run."""
        if not self.activations:
            return self.model
        return self.model.clone(bottleneck_activation=switch_activation(self.activations, state.choice))

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Split the parameters into those that are trained and the others."""
        if self.trained_layers is None:
            return params, {}
        trained = {name: layer for name, layer in params.items() if name in self.trained_layers}
        return trained, {name: layer for name, layer in params.items() if name not in trained}

    @property
    def frozen_statistics(self) -> bool:
        """Whether the running statistics of batch norm stay fixed."""
        return getattr(self.model, "frozen_batch_norm", False)


def init_state(
    seed: Int[Array, ""],
    learner: Learner,
    image_shape: tuple[int, int, int],
    choice: Int[Array, ""] | None = None,
    rate: Float[Array, ""] | None = None,
) -> TrainState:
    """Return the state before the first step. It depends only on the seed, so runs can be paired by their seeds."""
    init_key, _ = jax.random.split(jax.random.key(seed))
    variables = learner.model.lazy_init(init_key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    params = variables["params"]
    trained, _ = learner.split(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=learner.optimizer.init(trained),
        ema=trained if learner.ema_decay else None,
        choice=choice,
        rate=rate,
    )


def train_step(state: TrainState, batch: Batch, learner: Learner) -> tuple[TrainState, Sums]:
    """Do one update. Returns the new state, and the batch's sums over all devices, computed before the update.

    Runs inside `DATA_AXIS`; `batch` is this device's slice. Microbatches are treated like extra devices: gradients
    are summed, running statistics averaged.
    """
    init_key, _ = jax.random.split(jax.random.key(state.seed))
    dropout_key, mixup_key = (jax.random.fold_in(jax.random.fold_in(init_key, use), state.step) for use in (1, 2))
    trained, frozen = learner.split(state.params)

    def loss(trained, microbatch: Batch):
        variables = {"params": {**trained, **frozen}, "batch_stats": state.batch_stats}
        labelled = mix_pairs(mixup_key, microbatch, learner.mixup) if learner.mixup else [microbatch]
        outputs, updates = learner.network(state).apply(
            variables,
            labelled[0].images,
            train=True,
            index=microbatch.index,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        each = (learner.task.sums(outputs, one, train=True) for one in labelled)
        sums = jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *each)
        return sums["loss"], (sums, {} if learner.frozen_statistics else updates["batch_stats"])

    def of_microbatch(microbatch: Batch):
        gradients, (sums, batch_stats) = jax.grad(loss, has_aux=True)(trained, microbatch)
        return gradients, sums, batch_stats

    if learner.accumulation == 1:
        totals = of_microbatch(batch)
    else:
        microbatches = jax.tree.map(lambda leaf: leaf.reshape(learner.accumulation, -1, *leaf.shape[1:]), batch)
        first = jax.tree.map(lambda leaf: leaf[0], microbatches)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_microbatch, first))
        totals, _ = lax.scan(
            lambda sums, one: (jax.tree.map(jnp.add, sums, of_microbatch(one)), None), zeros, microbatches
        )
    # One psum for everything, so that devices synchronise once per step.
    gradients, sums, batch_stats = lax.psum(totals, DATA_AXIS)
    gradients = jax.tree.map(lambda leaf: leaf / sums[learner.task.normalizer], gradients)
    if learner.frozen_statistics:
        batch_stats = state.batch_stats
    else:
        count = learner.accumulation * lax.axis_size(DATA_AXIS)
        batch_stats = jax.tree.map(lambda leaf: leaf / count, batch_stats)

    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, trained)
    if state.rate is not None:
        # With every optimizer here, a constant factor on the updates is a factor on the learning rate.
        updates = jax.tree.map(lambda leaf: state.rate * leaf, updates)
    trained = optax.apply_updates(trained, updates)
    ema = state.ema
    if learner.ema_decay:
        # As TensorFlow averages when given the step: a smaller decay at the start of training.
        decay = jnp.minimum(learner.ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(trained, ema, 1 - decay)
    params = {**trained, **frozen}
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
    return state, sums


def mix_pairs(key: Key[Array, ""], batch: Batch, alpha: float) -> list[Batch]:
    """Mixup: mix each image with its neighbour, the one whose index differs in the last bit.

    Each image of a pair keeps a fraction s of itself and gets 1 - s of the other. s is drawn from Beta(alpha, alpha) by
    the pair's index alone, so devices and microbatches make no difference as long as each holds whole pairs.

    Returns:
        The mixed images twice: with their own targets, weighted by s, and with the other's, weighted by 1 - s. Adding
        the sums of both equals training on mixed labels for any loss that is linear in the labels, such as cross
        entropy. The accuracy is the one the authors report: each label counts by its fraction.

    Source: Zhang et al., arXiv:1710.09412. One fraction per pair as in timm; the authors' code draws one per batch.
    """

    def swap(leaf):
        return leaf.reshape(-1, 2, *leaf.shape[1:])[:, ::-1].reshape(leaf.shape)

    def share_of(pair):
        return jax.random.beta(jax.random.fold_in(key, pair), alpha, alpha)

    share = jax.vmap(share_of)(batch.index // 2)
    images = batch.images + (1 - share)[:, None, None, None] * (swap(batch.images) - batch.images)
    own = batch._replace(images=images, weights=share * batch.weights)
    return [own, own._replace(targets=jax.tree.map(swap, batch.targets), weights=(1 - share) * batch.weights)]


def device_index(batch_size: int, accumulation: int) -> Int[Array, " n"]:
    """Return the indices in the global batch of this device's examples, by microbatch. Runs inside `DATA_AXIS`.

    A microbatch is a contiguous slice of the global batch, and each device holds a slice of every microbatch, so the
    microbatches do not depend on the number of devices.
    """
    size = batch_size // accumulation
    share = size // lax.axis_size(DATA_AXIS)
    starts = size * jnp.arange(accumulation) + share * lax.axis_index(DATA_AXIS)
    return (starts[:, None] + jnp.arange(share)).ravel()


def eval_step(state: TrainState, batch: Batch, learner: Learner) -> tuple[Sums, PyTree]:
    """Return a batch's sums over all devices, from running statistics and the moving average if there is one.

    If the task has an evaluator on the host, the second result is what it needs: (predictions, targets, weights) of
    the whole batch, on every device. Otherwise it is None.
    """
    outputs = learner.network(state).apply(state.variables(averaged=True), batch.images, train=False)
    sums = lax.psum(learner.task.sums(outputs, batch, train=False), DATA_AXIS)
    evaluator = learner.task.evaluator
    if evaluator is None:
        return sums, None
    own = (evaluator.predictions(outputs), batch.targets, batch.weights)
    return sums, lax.all_gather(own, DATA_AXIS, tiled=True)
