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


def create_schedule(config: TrainConfig, train_images: int) -> optax.Schedule:
    """The learning rate of each step of a run on so many images."""
    steps, peak = config.steps(train_images), config.peak_learning_rate()
    warmup_steps = round(config.warmup * steps)
    if config.schedule == "cosine":
        if config.warmup:
            warmup_steps = max(1, warmup_steps)
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, max(steps, warmup_steps + 1))
        return optax.cosine_decay_schedule(peak, steps)
    decay = optax.exponential_decay(peak, config.steps_per_epoch(train_images), config.epoch_decay, staircase=True)
    if not warmup_steps:
        return decay
    # The decay counts from the first step, so that its steps fall on the ends of epochs.
    late = lambda step: decay(step + warmup_steps)  # noqa: E731
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), late], [warmup_steps])


def create_optimizer(config: TrainConfig, train_images: int) -> optax.GradientTransformation:
    """The optimizer of a run on so many images.

    RMSProp is TensorFlow 1's, which the paper used: its mean square starts at 1, epsilon is added inside the
    root, and the momentum is of updates that the learning rate has scaled.
    """
    schedule = create_schedule(config, train_images)
    if config.optimizer == "sgd":
        optimizer = optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov)
    else:
        optimizer = optax.rmsprop(
            schedule,
            decay=config.rmsprop_decay,
            eps=config.rmsprop_epsilon,
            initial_scale=1.0,
            eps_in_sqrt=True,
            momentum=config.momentum,
        )
    mask = decays if config.weight_decay_on == "kernels" else None
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=mask), optimizer)
