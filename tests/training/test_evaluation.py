"""Evaluation counts every example of a split once, for any batch size, devices and task."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from samples import write_folder
from toy import Pointing, pointing_dataset

from mnv2_jax.data.stream import load_stream
from mnv2_jax.errors import UserError
from mnv2_jax.network import OWN, Network
from mnv2_jax.tasks.classification import Classification, ConfusionCounts
from mnv2_jax.training import evaluation
from mnv2_jax.training.devices import Devices
from mnv2_jax.training.evaluation import (
    evaluate_network,
    evaluate_on,
    evaluation_shapes,
    evaluation_size,
    fetch,
    measure_network,
    metrics_of,
)


class ConstantLogits(nn.Module):
    num_classes: int = 10
    answer: int = 3

    def __call__(self, images, train=False, index=None):
        return jnp.zeros((len(images), self.num_classes)).at[:, self.answer].set(1.0)


class Brightest(nn.Module):
    """Points `right` pixels to the right of the brightest pixel."""

    right: float = 0.0

    def __call__(self, images, train=False, index=None):
        _, height, width, _ = images.shape
        pixel = jnp.argmax(images.reshape(-1, height * width), axis=1)
        return jnp.stack([pixel // width + 0.5, pixel % width + 0.5 + self.right], axis=1)


def network_of(model, task, resolution=12, **changes):
    nothing = {"params": {}, "batch_stats": {}}
    return Network(model, nothing, task, OWN, "keras", resolution, image_channels=1, **changes)


@pytest.mark.parametrize("size", [16, 64])
def test_a_constant_network_scores_what_it_must_on_eight_devices(tiny, monkeypatch, size):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
    metrics = evaluate_network(network_of(ConstantLogits(), Classification(10)), tiny, "test")
    assert metrics["examples"] == 50
    assert metrics["accuracy"] == np.mean(tiny.test.targets == 3) > 0


def test_a_task_of_any_kind_is_evaluated(monkeypatch):
    """Metrics come from its sums, one of them a vector, and from its evaluator, which skips padding."""
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 8)
    metrics = evaluate_network(network_of(Brightest(right=2.0), Pointing()), pointing_dataset(), "test")
    assert metrics == {
        "examples": 30,
        "loss": 2.0,
        "distance": 2.0,
        "row_error": 0.0,
        "column_error": 2.0,
        "median_distance": 2.0,
    }


def test_every_image_is_in_the_confusion_matrix_once_on_eight_devices(tiny, monkeypatch):
    """50 images in batches of 16: padding is not counted."""
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 16)
    metrics, sums = measure_network(network_of(ConstantLogits(), ConfusionCounts(10)), tiny, "test")
    expected = np.zeros((10, 10))
    expected[:, 3] = np.bincount(tiny.test.targets, minlength=10)
    np.testing.assert_array_equal(sums["confusion"], expected)
    assert metrics == evaluate_network(network_of(ConstantLogits(), Classification(10)), tiny, "test")


def test_outputs_that_are_not_numbers_have_no_confusion_matrix(folder):
    class Broken(ConstantLogits):
        def __call__(self, images, train=False, index=None):
            return jnp.full((len(images), 2), jnp.nan)

    network = network_of(Broken(2), Classification(2), class_names=("cat", "dog"))
    found = evaluate_on(network, "folder", "all", folder)
    assert found.confusion is None
    assert "the network's outputs are not finite" in found.said[-1]


def test_a_split_without_images_is_refused():
    with pytest.raises(UserError, match="the split test has no images"):
        evaluate_network(network_of(ConstantLogits(), Classification(10)), Nothing(), "test")


class Nothing:
    """A data set without images."""

    image_shape, train_images, class_names, num_classes, preprocessing = (12, 12, 1), 0, (), 0, "keras"
    targets, said = Pointing.targets, ()

    def evaluation(self, split, batch_size, process=0, processes=1):
        return iter(())

    count = fingerprint = at = prepared_as = train_data = evaluation


@pytest.mark.parametrize(("runs", "per_run", "expected"), [(1, 8, 256), (2, 3, 255), (8, 1, 256), (1, 1, 256)])
def test_batches_of_evaluation_divide_by_the_devices_of_a_run(runs, per_run, expected):
    assert evaluation_size(Devices.create(runs, per_run)) == expected


def test_batches_of_evaluation_have_a_task_s_own_targets():
    shapes = evaluation_shapes(pointing_dataset(), 24)
    assert (shapes.images.shape, shapes.targets.shape, shapes.targets.dtype) == ((24, 12, 12, 1), (24, 2), np.float32)


def test_sums_of_any_shape_are_fetched_run_by_run():
    totals = {"examples": jnp.array([4.0, 2.0]), "moments": jnp.arange(8.0).reshape(2, 2, 2)}
    first, second = fetch(totals)
    assert (first["examples"], second["examples"]) == (4.0, 2.0)
    assert isinstance(first["examples"], float)
    np.testing.assert_array_equal(second["moments"], [[4, 5], [6, 7]])


def test_how_many_examples_were_counted_is_among_the_metrics():
    sums = {"examples": 4.0, "loss": 2.0, "correct": 1.0, "correct_top5": 3.0}
    expected = {"loss": 0.5, "accuracy": 0.25, "top5_accuracy": 0.75, "examples": 4}
    assert metrics_of(Classification(10), sums) == expected


# --- On a data set by its name ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("evaluation") / "pets", images=6)


def test_images_are_prepared_as_the_network_wants_them(folder):
    """Size and channels are those of the network, here one that ignores its input."""

    class Second(ConstantLogits):
        def __call__(self, images, train=False, index=None):
            assert images.shape[1:] == (20, 20, 1)
            return jnp.zeros((len(images), 2)).at[:, 1].set(1.0)

    network = network_of(Second(2), Classification(2), resolution=20, class_names=("cat", "dog"))
    metrics, skipped, said, names, confusion = evaluate_on(network, "folder", "train", folder)
    assert skipped == []
    assert (
        f"{folder}: 12 images of 2 classes (cat 6, dog 6): train 8, validation 2, test 2, split by their names" in said
    )
    assert "evaluates 8 of 12 images: the train split (use --split all for all of them)" in said
    assert not any("since training" in line for line in said)
    known = load_stream("folder", data_files=folder, resolution=20).fingerprint()
    for trained_on, warned in ((known, False), ("other", True)):
        said = evaluate_on(network, "folder", "test", folder, trained_on=trained_on).said
        assert any("images that it was trained on may be evaluated" in line for line in said) == warned
    with pytest.raises(UserError, match=f"^{folder}: files were .* so its splits differ; use --data-files {folder} "):
        evaluate_on(network, "folder", "test", folder, trained_on="other", named=False)
    assert (names, confusion.sum()) == (("cat", "dog"), 8)
    assert metrics["examples"] > 0
    assert 0 < metrics["accuracy"] < 1


@pytest.mark.parametrize(
    ("classes", "names", "says"),
    [
        (3, None, "the network's classes differ from those of .*pets: 3 in the network, 2 in the data"),
        (
            2,
            ("bird", "cat"),
            "the network's classes differ from those of .*: only in the network: bird; only in the data: dog",
        ),
        (3, ("bird", "cat", "dog"), "3 in the network, 2 in the data; only in the network: bird"),
    ],
)
def test_other_classes_are_refused(folder, classes, names, says):
    network = network_of(ConstantLogits(classes), Classification(classes), class_names=names)
    with pytest.raises(UserError, match=says):
        evaluate_on(network, "folder", "test", folder)


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    """Nine dogs and three cats, evaluated with a network whose first class is dog."""
    write_folder(tmp_path / "pets", ("dog",), images=9)
    write_folder(tmp_path / "pets", ("cat",), images=3)
    changes = {"resolution": 20, "class_names": ("dog", "cat")}
    metrics, _, said, names, confusion = evaluate_on(
        network_of(ConstantLogits(2, 0), Classification(2), **changes), "folder", "all", tmp_path / "pets"
    )
    assert names == ("dog", "cat")
    np.testing.assert_array_equal(confusion, [[9, 0], [3, 0]])
    assert (metrics["accuracy"], metrics["examples"]) == (0.75, 12)
    assert "the network's classes are in a different order; matched by name" in said


def test_names_in_other_words_are_matched_by_their_order_which_is_said(folder):
    network = network_of(ConstantLogits(2, 0), Classification(2), resolution=20, class_names=("tabby", "terrier"))
    metrics, _, said, *_ = evaluate_on(network._replace(source="timm"), "folder", "all", folder)
    assert metrics["accuracy"] == 0.5
    assert "the network's classes are matched by index: its first is 'tabby', the first of the data is 'cat'" in said
    with pytest.raises(UserError, match="only in the network: tabby; only in the data: dog"):
        evaluate_on(network._replace(source="timm", class_names=("tabby", "cat")), "folder", "all", folder)


def test_all_of_a_set_is_all_of_its_splits(data_dir, digits):
    metrics = evaluate_on(network_of(ConstantLogits(), Classification(10)), "digits", "all").metrics
    assert metrics["examples"] == sum(map(digits.count, ("train", "validation", "test")))
