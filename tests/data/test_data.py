import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mnv2_jax.data import catalog
from mnv2_jax.data.builders import fashion_mnist
from mnv2_jax.data.builders.fashion_mnist import FILES, IdxFile, find_idx_files, read_idx
from mnv2_jax.data.names import ResidentName
from mnv2_jax.data.resident import (
    Augmentation,
    ResidentData,
    augment,
    batch_indices,
    evaluation_batches,
    load,
    shuffled,
)
from mnv2_jax.errors import UserError


def test_digits_are_split_fixed_stratified_and_whole(digits):
    from sklearn.datasets import load_digits

    everything = np.bincount(load_digits().target)
    test = np.bincount(digits.test.labels)
    train = np.bincount(digits.train.labels) + np.bincount(digits.validation.labels)
    np.testing.assert_array_equal(test, -(-everything // 4))
    np.testing.assert_array_equal(train + test, everything)
    assert digits.image_shape == (28, 28, 1)
    assert digits.num_classes == 10
    assert digits.train.images.dtype == np.uint8
    assert len(digits.validation.labels) == 134
    # Images that stand in two splits would be counted twice here.
    pixels = [images.tobytes() for split in (digits.train, digits.validation, digits.test) for images in split.images]
    assert len(set(pixels)) == len({image.tobytes() for image in load_digits().images})


def test_digits_are_prepared_once_without_tensorflow(digits, data_dir):
    import sys

    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*array_record*")}
    assert before
    again = load("digits", data_dir=data_dir)
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*array_record*")}
    assert "tensorflow" not in sys.modules


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
    """Of 20,000 orders of 10, each number is at each place 2,000 times: chi-squared with 9 degrees of freedom."""
    seeds = jnp.arange(20_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda seed: shuffled(jax.random.key(seed), jnp.arange(10), 10)))(seeds))
    for place in range(10):
        assert scipy.stats.chisquare(np.bincount(orders[:, place], minlength=10)).pvalue > 1e-3
    # Nor is one number more often behind another than the rest.
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % 10).ravel(), minlength=10)[1:]
    assert scipy.stats.chisquare(steps).pvalue > 1e-3


def test_a_batch_is_a_function_of_key_and_step(digits):
    examples = jax.tree.map(jnp.asarray, digits.train)

    def batch(seed, step, first=0, stop=8):
        return ResidentData(digits, 8).batch(examples, jnp.int32(seed), jnp.int32(step), jnp.arange(first, stop))

    jax.tree.map(np.testing.assert_array_equal, batch(0, 3), batch(0, 3))
    assert not np.array_equal(batch(0, 3).images, batch(0, 4).images)
    assert not np.array_equal(batch(0, 3).labels, batch(1, 3).labels)
    # A device's part is what the whole batch has there.
    jax.tree.map(lambda part, whole: np.testing.assert_array_equal(part, whole[2:6]), batch(0, 3, 2, 6), batch(0, 3))


def test_augmentation_of_an_image_does_not_depend_on_the_size_of_the_batch(digits):
    key, images = jax.random.key(0), jnp.asarray(digits.train.images[:6])
    small, large = (augment(key, jnp.arange(n), images[:n], Augmentation(2, True)) for n in (3, 6))
    np.testing.assert_array_equal(small, large[:3])


def test_augmentation_moves_by_at_most_the_shift_and_mirrors_half():
    image = np.zeros((1, 9, 9, 1), np.uint8)
    image[0, 4, 3] = 200
    many = jnp.repeat(jnp.asarray(image), 400, 0)
    moved = np.asarray(augment(jax.random.key(0), jnp.arange(400), many, Augmentation(2, True)))
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 400
    assert set(rows) == {2, 3, 4, 5, 6}
    assert set(columns) == set(range(1, 8))  # 3 or, mirrored, 5, give or take 2
    unmoved = augment(jax.random.key(0), jnp.arange(1), jnp.asarray(image), Augmentation(0, False))
    np.testing.assert_array_equal(unmoved, image)


def test_images_are_normalised_to_minus_one_to_one(digits):
    extremes = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(digits.normalization(extremes).ravel(), [-1, 1])
    batch = next(digits.evaluation("test", 5))
    np.testing.assert_allclose(batch.images, digits.test.images[:5] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 454, 1000])
def test_evaluation_shows_every_image_exactly_once(digits, batch_size):
    batches = list(evaluation_batches(digits.test, batch_size, digits.normalization))
    assert {batch.images.shape for batch in batches} == {(batch_size, 28, 28, 1)}
    real = np.concatenate([batch.weights for batch in batches]) == 1
    assert real.sum() == len(digits.test.labels)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches])[real], digits.test.labels)


def test_train_images_takes_the_first(digits, data_dir):
    fewer = load("digits", data_dir=data_dir, train_images=100)
    np.testing.assert_array_equal(fewer.train.images, digits.train.images[:100])
    for wrong in (0, -1, 1210):
        with pytest.raises(UserError, match=r"--train-images must be between 1 and the 1209"):
            load("digits", data_dir=data_dir, train_images=wrong)


def test_unknown_data_set(data_dir):
    with pytest.raises(UserError, match="unknown data set 'nothing'; known are digits, fashion_mnist"):
        load("nothing", data_dir=data_dir)


def test_digits_take_no_files(data_dir, tmp_path):
    with pytest.raises(UserError, match="leave --data-files out"):
        load("digits", data_files=tmp_path, data_dir=data_dir)


# --- IDX files -------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path, monkeypatch):
    """A folder with the four files of a tiny stand-in for Fashion-MNIST, which the builder takes for the real one."""
    import hashlib

    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    files = {}
    for (split, kind), file in FILES.items():
        shape = (30 if split == "train" else 10, *file.shape[1:])
        array = rng.integers(0, 256 if kind == "image" else 10, shape).astype(np.uint8)
        content = idx_bytes(array)
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(content))
        files[split, kind] = IdxFile(file.name, shape, hashlib.sha256(content).hexdigest())
    for module in (fashion_mnist, catalog):
        monkeypatch.setattr(module, "FILES", files)
    return folder


def test_idx_files_become_a_tfds_set_which_then_needs_no_files(idx_folder, tmp_path):
    first = load("fashion_mnist", data_files=idx_folder, data_dir=tmp_path / "tfds")
    assert first.image_shape == (28, 28, 1)
    assert [len(split.labels) for split in (first.train, first.validation, first.test)] == [27, 3, 10]
    images = read_idx(idx_folder / "t10k-images-idx3-ubyte.gz", fashion_mnist.FILES["test", "image"])
    assert {image.tobytes() for image in images} == {image.tobytes() for image in first.test.images}
    again = load("fashion_mnist", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (tmp_path / "tfds/fashion_mnist/3.0.1").is_dir()


def test_plain_idx_files_work_too(idx_folder, tmp_path):
    for path in list(idx_folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(load("fashion_mnist", data_files=idx_folder, data_dir=tmp_path / "tfds").test.labels) == 10


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def shorten(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-9]))


def alter(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))


def take_labels(path):
    path.write_bytes((path.parent / "train-labels-idx1-ubyte.gz").read_bytes())


def take_text(path):
    path.write_text("not an IDX file")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "cannot be read or is truncated"),
        (shorten, r"bytes instead of"),
        (alter, "SHA-256 differs"),
        (take_labels, "another kind of file"),
        (take_text, "another kind of file"),
    ],
)
def test_damaged_idx_file_is_named_and_nothing_is_written(idx_folder, tmp_path, damage, says):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    damage(path)
    with pytest.raises(UserError, match=says) as error:
        load("fashion_mnist", data_files=idx_folder, data_dir=tmp_path / "tfds")
    assert str(path) in str(error.value)
    assert "expected train-images-idx3-ubyte of Fashion-MNIST" in str(error.value)
    assert not list((tmp_path / "tfds").glob("fashion_mnist/*"))


def test_missing_idx_files_are_named(idx_folder, tmp_path):
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="lacks t10k-labels-idx1-ubyte"):
        find_idx_files(idx_folder)
    with pytest.raises(UserError, match="is not a folder"):
        find_idx_files(tmp_path / "nowhere")


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    def no_network(self, dl_manager):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fashion_mnist.FashionMNIST, "_split_generators", no_network)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*no route to host.*\); .* --data-files DIR"):
        load("fashion_mnist", data_dir=tmp_path / "tfds")


@pytest.mark.fashion_mnist
def test_real_fashion_mnist(fashion_files, data_dir):
    data = load("fashion_mnist", data_files=fashion_files, data_dir=data_dir)
    assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [
        54_000,
        6_000,
        10_000,
    ]
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1000] * 10)


def test_studies_know_the_sets_that_live_on_the_device():
    resident = {name for name, entry in catalog.CATALOG.items() if entry.resident}
    assert set(ResidentName.__args__) == resident


def test_a_set_that_tfds_knows_has_to_be_prepared_first(data_dir):
    with pytest.raises(UserError, match=r"mnist is not prepared in .*; prepare it once: .* datasets prepare mnist"):
        load("mnist", data_dir=data_dir)
    with pytest.raises(UserError, match="lfw is no classification set: it has 0 class features, expected one"):
        load("lfw", data_dir=data_dir)


def test_preparing_says_that_tensorflow_is_missing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def no_tensorflow(self, **_):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_tensorflow)
    with pytest.raises(UserError, match="TFDS writes the images of cifar10 with TensorFlow, which is not installed"):
        catalog.prepared_builder("cifar10", data_dir=tmp_path)


def test_preparing_imagenet_says_what_to_put_where(tmp_path):
    with pytest.raises(
        UserError, match=r"imagenet2012 has to be downloaded by hand into .*manual.*ILSVRC2012_img_train"
    ):
        catalog.prepared_builder("imagenet2012", data_dir=tmp_path)
