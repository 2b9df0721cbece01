"""Optimizers and schedules, all from optax."""

import jax
import optax

from mnv2_jax.training.config import TrainConfig


def decays(params) -> dict:
    """True for each parameter that weight decay acts on: kernels, but for those of depthwise convolutions.

    Slim's rule: a depthwise filter has too few weights to need it, and batch norm's are not weights.
    """

    def decays_at(path, _) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and "depthwise" not in names

    return jax.tree_util.tree_map_with_path(decays_at, params)


def create_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps."""
    warmup_steps = max(1, round(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup_steps, max(steps, warmup_steps + 1))
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )
