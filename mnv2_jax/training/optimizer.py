"""Optimizers and schedules, all from optax."""

from collections.abc import Sequence

import jax
import optax

from mnv2_jax.training.config import Recipe


def decays(params) -> dict:
    """True for each parameter that weight decay acts on: kernels, but for those of depthwise convolutions.

    Slim's rule: a depthwise filter has too few weights to need it, and batch norm's are not weights.
    """

    def decays_at(path, _) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and "depthwise" not in names

    return jax.tree_util.tree_map_with_path(decays_at, params)


def create_schedule(recipe: Recipe, train_images: int) -> optax.Schedule:
    """The learning rate of each step of a run on so many images."""
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
    # The decay counts from the first step, so that its steps fall on the ends of epochs.
    late = lambda step: decay(step + warmup_steps)  # noqa: E731
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), late], [warmup_steps])


def create_optimizer(
    recipe: Recipe, train_images: int, task_layers: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The optimizer of a run on so many images; `task_layers` are those that are not the backbone's.

    RMSProp is TensorFlow 1's, which the paper used: its mean square starts at 1, epsilon is added inside the
    root, and the momentum is of updates that the learning rate has scaled. AdamW's weight decay is decoupled from its
    gradients (Loshchilov and Hutter, arXiv:1711.05101), the others' is an L2 penalty.
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
        # Every optimizer's updates are proportional to the learning rate of the whole run.
        def is_backbone(params):
            return {name: name not in task_layers for name in params}

        chain.append(optax.masked(optax.scale(recipe.backbone_learning_rate), is_backbone))
    return optax.chain(*chain)
