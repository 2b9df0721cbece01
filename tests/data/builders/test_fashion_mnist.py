import gzip
import hashlib

import numpy as np
import pytest

from mnv2_jax.data.builders import fashion_mnist
from mnv2_jax.data.builders.fashion_mnist import FILES, IdxFile, find_idx_files, read_idx
from mnv2_jax.data.resident import load
from mnv2_jax.errors import UserError


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path, monkeypatch):
    """A folder with the four files of a tiny stand-in for Fashion-MNIST, which the builder takes for the real one."""
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
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    return folder


def test_idx_files_become_a_tfds_set_which_then_needs_no_files(idx_folder, tmp_path):
    first = load("fashion_mnist", data_files=idx_folder, data_dir=tmp_path / "tfds")
    assert first.image_shape == (28, 28, 1)
    assert [len(split.targets) for split in (first.train, first.validation, first.test)] == [27, 3, 10]
    images = read_idx(idx_folder / "t10k-images-idx3-ubyte.gz", fashion_mnist.FILES["test", "image"])
    assert {image.tobytes() for image in images} == {image.tobytes() for image in first.test.images}
    again = load("fashion_mnist", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (tmp_path / "tfds/fashion_mnist/3.0.1").is_dir()


def test_plain_idx_files_work_too(idx_folder, tmp_path):
    for path in list(idx_folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(load("fashion_mnist", data_files=idx_folder, data_dir=tmp_path / "tfds").test.targets) == 10


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


def inflate(path):
    """A file of a gibibyte in a megabyte."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())) + gzip.compress(bytes(1 << 20)) * 1024)


def take_text(path):
    path.write_text("not an IDX file")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "cannot be read or is truncated"),
        (shorten, r"bytes instead of"),
        (alter, "SHA-256 differs"),
        (inflate, "contains more bytes instead of 23,536"),
        (take_labels, "a different kind of file"),
        (take_text, "a different kind of file"),
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
    assert [len(split.targets) for split in (data.train, data.validation, data.test)] == [
        54_000,
        6_000,
        10_000,
    ]
    np.testing.assert_array_equal(np.bincount(data.test.targets), [1000] * 10)
