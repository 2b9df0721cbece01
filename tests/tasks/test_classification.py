import math

import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax.data.batch import Batch
from mnv2_jax.errors import UserError
from mnv2_jax.tasks.classification import Classification, ConfusionCounts


def sums(logits, labels, weights=None, **task):
    logits = jnp.asarray(logits)
    count = len(labels)
    weights = jnp.ones(count) if weights is None else jnp.asarray(weights)
    batch = Batch(jnp.zeros((count, 1, 1, 1)), jnp.asarray(labels), weights, jnp.arange(count))
    return Classification(logits.shape[1], **task).sums(logits, batch, train=bool(task))


def test_constant_logits_score_exactly_the_share_of_their_class():
    """16 images, 2 of class 0, equal logits: ties go to class 0, and for top-5 to the first five of eight classes."""
    found = sums(jnp.zeros((16, 8)), [0, 0] + [1] * 9 + [5] * 5)
    assert (float(found["correct"]), float(found["correct_top5"]), float(found["examples"])) == (2, 11, 16)
    assert float(found["loss"]) == pytest.approx(16 * math.log(8))


def test_padding_counts_nowhere():
    found = sums([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]], [1, 1, 1], [1.0, 1.0, 0.0])
    assert (float(found["correct"]), float(found["examples"])) == (1, 2)


def test_confusions_are_counted_by_true_and_predicted_class():
    """Ties go to the lower class, padding is not counted, and the other sums are those of classification."""
    logits = jnp.array([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [1.0, 1.0, 1.0]])
    batch = Batch(jnp.zeros((4, 1, 1, 1)), jnp.array([1, 1, 0, 2]), jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.arange(4))
    found = ConfusionCounts(3).sums(logits, batch, train=False)
    np.testing.assert_array_equal(found.pop("confusion"), [[0, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert {name: float(value) for name, value in found.items()} == {
        name: float(value) for name, value in sums(logits, [1, 1, 0, 2], [1.0, 1.0, 0.0, 1.0]).items()
    }


def test_logits_that_are_no_numbers_are_never_right():
    found = sums([[math.nan] * 3, [0.0, math.nan, 1.0]], [0, 2])
    assert float(found["correct"]) == 0


def test_label_smoothing_is_of_training():
    """Smoothing of 0.3 over three classes gives the target 0.8. In evaluation there is none."""
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    found = sums(logits, [0], label_smoothing=0.3)
    assert float(found["loss"]) == pytest.approx(-(0.8 * math.log(0.5) + 0.2 * math.log(0.25)))


def test_metrics_are_means_over_all_examples():
    first, second = sums([[0.0, 9.0], [9.0, 0.0]], [1, 1]), sums(jnp.zeros((1, 2)), [0])
    metrics = Classification(2).metrics({name: first[name] + second[name] for name in first})
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx((9 + math.log(2)) / 3, rel=1e-3)
    with pytest.raises(UserError, match="no images to evaluate"):
        Classification(2).metrics(Classification(2).zeros())


@pytest.mark.parametrize(("classes", "top5"), [(5, False), (6, True)])
def test_the_five_best_of_five_classes_tell_nothing(classes, top5):
    metrics = Classification(classes).metrics(sums(jnp.zeros((1, classes)), [classes - 1]))
    assert metrics.get("top5_accuracy") == (0 if top5 else None)


def test_probabilities_of_a_softmax_and_of_sigmoids():
    logits = np.array([[0.0, 1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(Classification(3).probabilities(logits), [[0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(Classification(3, outputs="sigmoid").probabilities(logits), [[0.5, 1, 0]], atol=1e-12)


def test_sigmoids_are_neither_evaluated_nor_trained():
    with pytest.raises(UserError, match="has sigmoid outputs, .* only predict supports such a network"):
        sums(jnp.zeros((1, 3)), [0], outputs="sigmoid")
