"""Image classification: cross entropy and accuracy."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mnv2_jax.data.batch import CLASSES, Batch
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.metric import LOSS, Metric, Sums

Outputs = Literal["softmax", "sigmoid"]
"""How a classifier's outputs become probabilities."""
SIGMOIDS = "the network has sigmoid outputs: each class has its own probability, and they need not add up to 1"
"""Remark on a network with sigmoid outputs."""


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification with one class per image.

    Attributes:
        num_classes: number of classes.
        label_smoothing: fraction of the target that is spread evenly over all classes; in training only.
        outputs: "softmax" for exactly one class per image. "sigmoid" for independent classes, in networks from other
            code bases; these can predict, but not be evaluated or trained.
    """

    num_classes: int
    label_smoothing: float = 0.0
    outputs: Outputs = "softmax"
    name = "classification"
    targets = CLASSES
    normalizer = "examples"
    metric = Metric("accuracy", "accuracy", chance=lambda classes: 1 / classes)
    others = (LOSS, Metric("top5_accuracy", "top-5 accuracy"))
    evaluator = None
    names = ("examples", "loss", "correct", "correct_top5")

    def zeros(self) -> dict[str, np.ndarray]:
        """Return the sums over no examples."""
        return {name: np.zeros((), np.float32) for name in self.names}

    def probabilities(self, logits: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n classes"]:
        """Return the probability of each class (float64); those of a softmax add up to 1."""
        logits = logits.astype(np.float64)
        if self.outputs == "sigmoid":
            return np.exp(-np.logaddexp(0, -logits))  # does not overflow for any logit
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def sums(self, outputs: Float[Array, "n classes"], batch: Batch, train: bool) -> Sums:
        """Return the sums of examples, cross entropy in nats, and images with the label in the top 1 and the top 5.

        Among equal logits the lower class index ranks first. NaN logits never count as correct.

        Raises:
            UserError: for sigmoid outputs.
        """
        if self.outputs != "softmax":
            raise UserError(
                "the network has sigmoid outputs, so several classes or none may apply: loss and accuracy are for one "
                "class per image, and only predict supports such a network"
            )
        labels = jnp.asarray(batch.targets)
        targets = jax.nn.one_hot(labels, self.num_classes)
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        losses = optax.softmax_cross_entropy(outputs, targets)
        own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
        before = jnp.arange(self.num_classes) < labels[:, None]
        rank = jnp.sum(~((outputs < own) | ((outputs == own) & ~before)), axis=1)
        values = (jnp.ones_like(losses), losses, rank == 0, rank < 5)
        return {name: jnp.sum(value * batch.weights) for name, value in zip(self.names, values, strict=True)}

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Return mean loss and accuracy, with more than five classes also top-5 accuracy; accuracies are fractions.

        Raises:
            UserError: if no image counts.
        """
        if not sums["examples"]:
            raise UserError("no images to evaluate: the split is empty, or none of its images can be read")
        summed = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "correct_top5"}
        if self.num_classes <= 5:
            del summed["top5_accuracy"]  # every image would count as correct
        return {name: float(sums[key] / sums["examples"]) for name, key in summed.items()}


class ConfusionCounts(Classification):
    """Classification that also counts a confusion matrix.

    Used to evaluate one network, not in training. The sum "confusion" has one row per true class and one column per
    predicted class, and adds up to "examples".
    """

    def zeros(self) -> dict[str, np.ndarray]:
        """Return the sums over no examples."""
        return {**super().zeros(), "confusion": np.zeros((self.num_classes, self.num_classes), np.float32)}

    def sums(self, outputs: Float[Array, "n classes"], batch: Batch, train: bool) -> Sums:
        """Return the sums of `Classification` and the confusion matrix; ties go to the lower class index."""
        counts = jnp.zeros((self.num_classes, self.num_classes))
        cells = jnp.asarray(batch.targets), jnp.argmax(outputs, axis=1)
        return {**super().sums(outputs, batch, train), "confusion": counts.at[cells].add(batch.weights)}
