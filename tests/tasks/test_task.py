import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Pointing, bright_images

from mnv2_jax.data.batch import Batch
from mnv2_jax.tasks.classification import Classification, ConfusionCounts
from mnv2_jax.tasks.metric import Metric
from mnv2_jax.tasks.task import TASKS, Task, task_settings

BATCHES = {
    "classification": (Classification(4), jnp.zeros((3, 4)), jnp.array([0, 1, 3])),
    "confusions": (ConfusionCounts(4), jnp.zeros((3, 4)), jnp.array([0, 1, 3])),
    "pointing": (Pointing(), jnp.zeros((3, 2)), jnp.ones((3, 2))),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_task_has_what_training_asks_of_it(name):
    """Its sums are those of `zeros`: "loss", its normalizer, "examples", and further ones of any shape."""
    task, outputs, targets = BATCHES[name]
    assert isinstance(task, Task)
    batch = Batch(jnp.zeros((3, 1, 1, 1)), targets, jnp.array([1.0, 1.0, 0.0]), jnp.arange(3))
    found = jax.jit(lambda outputs: task.sums(outputs, batch, train=True))(outputs)
    zeros = task.zeros()
    assert {"loss", "examples", task.normalizer} <= set(zeros)
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in found.items()} == {
        key: (leaf.shape, leaf.dtype) for key, leaf in zeros.items()
    }
    assert all(isinstance(leaf, np.ndarray) and not leaf.any() for leaf in zeros.values())
    assert float(found["examples"]) == 2
    metrics = task.metrics(jax.device_get(found))
    assert metrics["loss"] == pytest.approx(float(found["loss"] / found[task.normalizer]))
    assert task.metric.name in metrics
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_metric_prints_itself():
    assert Metric("accuracy", "accuracy").format(0.91634) == "91.63 %"
    assert Metric("distance", "distance", higher_is_better=False, percent=False).format(0.4119) == "0.412"


def test_the_accuracy_of_chance_is_known():
    assert Classification.metric.chance(10) == 0.1
    assert Metric("distance", "distance").chance is None


def test_a_task_is_opened_as_it_was_saved():
    task = Classification(10, 0.1)
    settings = task_settings(task)
    assert settings == {"name": "classification", "num_classes": 10, "label_smoothing": 0.1, "outputs": "softmax"}
    assert TASKS[settings.pop("name")](**settings) == task
    with pytest.raises(ValueError, match="the task 'pointing' is not one of classification"):
        task_settings(Pointing())


def test_a_task_may_have_metrics_that_are_no_sums():
    _, positions = bright_images(6)
    evaluator = Pointing().evaluator
    outputs = evaluator.predictions(positions + np.array([[0, 0], [1, 0], [0, 2], [3, 0], [0, 4], [50, 50]]))
    weights = np.array([1, 1, 1, 1, 1, 0])
    assert evaluator.metrics([(outputs, positions, weights)]) == {"median_distance": 2}
