"""Optimizers and schedules, all from optax."""

from collections.abc import Sequence

import jax
import optax

from mnv2_jax.training.config import Recipe


def decays(params) -> dict:
    """Return the weight-decay mask: True for all kernels except those of depthwise convolutions.

    This is Slim's rule: depthwise filters have too few weights to need it, and batch-norm parameters are not weights.
    """

    def decays_at(path, _) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and "depthwise" not in names

    return jax.tree_util.tree_map_with_path(decays_at, params)


def create_schedule(recipe: Recipe, train_images: int) -> optax.Schedule:
    """Return the learning-rate schedule of a run on this number of training images."""
    steps, peak = recipe.steps(train_images), recipe.peak_learning_rate()
    warmup_steps = round(recipe.warmup * steps)
    if recipe.schedule == "cosine":
        if recipe.warmup:
            warmup_steps = max(1, warmup_steps)
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, max(steps, warmup_steps + 1))
        return optax.cosine_decay_schedule(peak, steps)
    decay = optax.exponential_decay(peak, recipe.steps_per_epoch(train_images), recipe.epoch_decay, staircase=True)
    if not warmup_steps:
        return decay
    # The decay counts steps from the start of the run, so that the rate drops at the ends of epochs.
    late = lambda step: decay(step + warmup_steps)  # noqa: E731
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), late], [warmup_steps])


def create_optimizer(
    recipe: Recipe, train_images: int, task_layers: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Create the optimizer of a run on this number of training images; `task_layers` are not part of the backbone.

    RMSProp is that of TensorFlow 1, which the paper used: the mean square starts at 1, epsilon is added inside the
    square root, and momentum accumulates updates already scaled by the learning rate. AdamW's weight decay is
    decoupled (Loshchilov and Hutter, arXiv:1711.05101); for the other optimizers it is an L2 penalty.
    """
    schedule = create_schedule(recipe, train_images)
    mask = decays if recipe.weight_decay_on == "kernels" else None
    penalty = optax.add_decayed_weights(recipe.weight_decay, mask=mask)
    if recipe.optimizer == "adamw":
        chain = [optax.adamw(schedule, b1=recipe.momentum, weight_decay=recipe.weight_decay, mask=mask)]
    elif recipe.optimizer == "sgd":
        chain = [penalty, optax.sgd(schedule, momentum=recipe.momentum, nesterov=recipe.nesterov)]
    else:
        rmsprop = optax.rmsprop(
            schedule,
            decay=recipe.rmsprop_decay,
            eps=recipe.rmsprop_epsilon,
            initial_scale=1.0,
            eps_in_sqrt=True,
            momentum=recipe.momentum,
        )
        chain = [penalty, rmsprop]
    if recipe.backbone_learning_rate != 1:
        # With every optimizer here, a constant factor on the updates is a factor on the learning rate.
        def is_backbone(params):
            return {name: name not in task_layers for name in params}

        chain.append(optax.masked(optax.scale(recipe.backbone_learning_rate), is_backbone))
    return optax.chain(*chain)
