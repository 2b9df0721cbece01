import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from toy import MaskTargets, bright_images, pointing_dataset

from mnv2_jax.data.batch import Examples, View
from mnv2_jax.data.preprocessing import PREPROCESSING
from mnv2_jax.data.resident import ResidentData, batch_indices, load, shuffled
from mnv2_jax.errors import UserError

# --- The order -------------------------------------------------------------------------------------------


def test_an_epoch_shows_no_example_twice_and_the_next_another_order():
    key = jax.random.key(3)
    take = jax.jit(lambda step: batch_indices(key, step, count=21, batch_size=4))
    first = np.concatenate([take(jnp.int32(step)) for step in range(5)])
    second = np.concatenate([take(jnp.int32(step)) for step in range(5, 10)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1209])
def test_a_random_order_holds_every_number_once(count):
    order = jax.jit(jax.vmap(lambda seed: shuffled(jax.random.key(seed), jnp.arange(count), count)))(jnp.arange(3))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(count), (3, 1)))
    assert count < 16 or len({tuple(row) for row in order.tolist()}) == 3


def test_random_orders_favour_no_place():
    """In 20,000 orders of 10, each number is at each index about 2,000 times (chi-squared, 9 degrees of freedom)."""
    seeds = jnp.arange(20_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda seed: shuffled(jax.random.key(seed), jnp.arange(10), 10)))(seeds))
    for place in range(10):
        assert scipy.stats.chisquare(np.bincount(orders[:, place], minlength=10)).pvalue > 1e-3
    # Nor does any number follow another more often than the rest do.
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % 10).ravel(), minlength=10)[1:]
    assert scipy.stats.chisquare(steps).pvalue > 1e-3


def test_a_batch_is_a_function_of_key_and_step(digits):
    examples = jax.tree.map(jnp.asarray, digits.train)

    def batch(seed, step, first=0, stop=8):
        return ResidentData(digits, 8).batch(examples, jnp.int32(seed), jnp.int32(step), jnp.arange(first, stop))

    jax.tree.map(np.testing.assert_array_equal, batch(0, 3), batch(0, 3))
    assert not np.array_equal(batch(0, 3).images, batch(0, 4).images)
    assert not np.array_equal(batch(0, 3).targets, batch(1, 3).targets)
    # A device's examples are those at its indices in the whole batch.
    jax.tree.map(lambda part, whole: np.testing.assert_array_equal(part, whole[2:6]), batch(0, 3, 2, 6), batch(0, 3))


# --- Images ----------------------------------------------------------------------------------------------


def test_images_are_normalised_to_minus_one_to_one(digits):
    extremes = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(digits.normalization(extremes).ravel(), [-1, 1])
    batch = next(digits.evaluation("test", 5))
    np.testing.assert_allclose(batch.images, digits.test.images[:5] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 454, 1000])
def test_evaluation_shows_every_image_exactly_once(digits, batch_size):
    batches = list(digits.evaluation("test", batch_size))
    assert {batch.images.shape for batch in batches} == {(batch_size, 20, 20, 1)}
    real = np.concatenate([batch.weights for batch in batches]) == 1
    assert real.sum() == len(digits.test.targets)
    np.testing.assert_array_equal(np.concatenate([b.targets for b in batches])[real], digits.test.targets)


def test_train_images_takes_the_first(digits, data_dir):
    fewer = load("digits", data_dir=data_dir, train_images=100)
    np.testing.assert_array_equal(fewer.train.images, digits.train.images[:100])
    for wrong in (0, -1, 1210):
        with pytest.raises(UserError, match=r"--train-images must be from 1 to 1209, the number of images"):
            load("digits", data_dir=data_dir, train_images=wrong)


@pytest.mark.parametrize(("batch_size", "processes"), [(7, 1), (16, 1), (50, 1), (64, 1), (16, 2), (50, 2), (64, 2)])
def test_the_whole_test_set_counts_whatever_the_batch(tiny, batch_size, processes):
    """Only 50 divides the 50 images evenly. The processes' parts of each batch make up exactly the whole batch."""
    parts = [list(tiny.evaluation("test", batch_size, part, processes)) for part in range(processes)]
    assert len({len(part) for part in parts}) == 1
    batches = [jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces) for pieces in zip(*parts, strict=True)]
    assert {len(batch.targets) for batch in batches} == {batch_size}
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    kept = whole.weights == 1
    assert kept.sum() == 50
    np.testing.assert_array_equal(whole.targets[kept], tiny.test.targets)
    np.testing.assert_array_equal(whole.images[kept], tiny.normalization(tiny.test.images))


def test_a_data_set_is_known_by_its_images_and_classes(digits):
    """Runs record the digest in their settings; with another digest they would refuse to resume."""
    assert digits.fingerprint() == "888a8eb78f0b9d2e0c7928ed3958f1e1fc097f83347d34e61e5e5d9c6254c858"
    labels = digits.test.targets.copy()
    labels[0] += 1
    assert dataclasses.replace(digits, test=Examples(digits.test.images, labels)).fingerprint() != digits.fingerprint()


def test_grey_images_become_rgb_and_rgb_grey(digits):
    color = digits.with_channels(3)
    assert (color.image_shape, digits.with_channels(1)) == ((20, 20, 3), digits)
    for channel in range(3):
        np.testing.assert_array_equal(color.test.images[..., channel], digits.test.images[..., 0])
    np.testing.assert_array_equal(color.with_channels(1).train.images, digits.train.images)
    with pytest.raises(ValueError, match="images must have 1 or 3 channels; cannot convert 1 to 2"):
        digits.with_channels(2)


def test_colors_become_grey_as_pillow_makes_them(tiny):
    noise = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3)).astype(np.uint8)
    examples = Examples(noise, np.zeros(5, np.int32))
    grey = dataclasses.replace(tiny, train=examples, validation=examples, test=examples).with_channels(1)
    for one, image in zip(grey.train.images, noise, strict=True):
        np.testing.assert_array_equal(one[..., 0], np.asarray(Image.fromarray(image).convert("L")))


def test_training_and_evaluation_are_normalised_as_the_network_wants_it(tiny):
    unmoved = dataclasses.replace(tiny.augmentation, shift=0, flip=False)
    dataset = dataclasses.replace(tiny.prepared_as("torchvision", 3), augmentation=unmoved)
    normalized = PREPROCESSING["torchvision"].normalization(np.repeat(tiny.train.images, 3, axis=-1))
    evaluated = next(dataset.evaluation("train", 70))
    np.testing.assert_array_equal(evaluated.images, normalized)
    data = dataset.train_data(16)
    trained = data.batch(jax.tree.map(jnp.asarray, dataset.train), jnp.int32(0), jnp.int32(0), jnp.arange(16))
    chosen = batch_indices(jax.random.split(jax.random.split(jax.random.key(0))[1])[0], jnp.int32(0), 70, 16)
    np.testing.assert_allclose(trained.images, normalized[chosen], atol=1e-6)


# --- Targets that move with the image --------------------------------------------------------------------


def batches_of(dataset, batch_size=32, steps=3):
    data = dataset.train_data(batch_size)
    examples = jax.tree.map(jnp.asarray, dataset.train)
    batch = jax.jit(lambda seed, step: data.batch(examples, seed, step, jnp.arange(batch_size)))
    return [jax.device_get(batch(jnp.int32(seed), jnp.int32(step))) for seed in (0, 1) for step in range(steps)]


def brightest(images):
    """Return (row, column) of the center of the brightest pixel."""
    flat = images[..., 0].reshape(len(images), -1).argmax(1)
    return np.stack(np.unravel_index(flat, images.shape[1:3]), -1) + 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_point_is_where_its_pixel_is(shift, flip):
    dataset = pointing_dataset(shift=shift, flip=flip)
    moved = 0
    for batch in batches_of(dataset):
        np.testing.assert_array_equal(batch.targets, brightest(batch.images))
        unmoved = {tuple(target) for target in dataset.train.targets}
        moved += sum(tuple(target) not in unmoved for target in batch.targets)
    assert (moved > 0) == (shift > 0 or flip)


def test_a_mask_is_moved_with_its_pixels_and_empty_where_zeros_move_in():
    images, _ = bright_images(40, side=10)
    targets = {"mask": images[..., 0].astype(np.int32)}
    dataset = pointing_dataset()
    dataset = dataclasses.replace(dataset, train=Examples(images, targets), targets=MaskTargets(10))
    for batch in batches_of(dataset):
        pixels = np.round((batch.images[..., 0] + 1) * 127.5).astype(int)
        assert (pixels == 0).any()
        np.testing.assert_array_equal(batch.targets["mask"], np.where(pixels == 0, -1, pixels))


def test_the_evaluation_s_padding_has_empty_targets():
    dataset = pointing_dataset()
    *_, last = dataset.evaluation("test", 16)
    np.testing.assert_array_equal(last.weights, [1] * 14 + [0] * 2)
    np.testing.assert_array_equal(last.targets[:14], dataset.test.targets[16:])
    np.testing.assert_array_equal(last.targets[14:], 0)


def test_sets_are_known_by_their_targets_too():
    dataset = pointing_dataset()
    other = dataclasses.replace(dataset, test=Examples(dataset.test.images, dataset.test.targets + 1))
    assert dataset.fingerprint() != other.fingerprint()


def test_targets_that_depend_on_the_size_are_not_scaled_in_silence():
    with pytest.raises(ValueError, match="targets of PointTargets cannot be scaled to 24 pixels"):
        pointing_dataset().at(24)


def test_images_are_moved_by_as_much_of_them_at_another_size(digits):
    larger = digits.at(40)
    assert (larger.image_shape, larger.augmentation.shift) == ((40, 40, 1), 4)
    np.testing.assert_array_equal(larger.train.targets, digits.train.targets)
    assert digits.at(20) is digits


def test_loading_at_another_size_moves_images_by_as_much_of_them(data_dir):
    loaded = load("digits", data_dir=data_dir, resolution=40, train_images=1)
    assert (loaded.image_shape, loaded.augmentation.shift) == ((40, 40, 1), 4)


def test_loading_encodes_the_classes_as_the_task_wants_them(data_dir, digits):
    class Parity:
        def encode(self, annotation, view):
            assert view == View(8, 8, 0, 0, 8, 8, False, 20)
            return {"odd": np.bool_(annotation % 2)}

        def move(self, targets, move, resolution):
            return targets

        def empty(self):
            return {"odd": np.bool_(False)}

    dataset = load("digits", data_dir=data_dir, train_images=50, targets=Parity())
    np.testing.assert_array_equal(dataset.train.targets["odd"], digits.train.targets[:50] % 2)
    assert dataset.train_data(16).shapes().targets["odd"].shape == (50,)
