"""Files that are damaged, declare more than they hold, or are not weights at all."""

import zipfile

import h5py
import numpy as np
import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.weights import files
from mnv2_jax.weights.files import kind_of, read_safetensors, safetensors_bytes
from mnv2_jax.weights.load import export_weights, load_weights

from .networks import random_network


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Return the bytes of intact files, by name."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name in ("x.safetensors", "x.weights.h5", "x.h5"):
        network = random_network("torchvision" if name == "x.safetensors" else "keras")
        export_weights(folder / name, network, network.source)
        found[name] = (folder / name).read_bytes()
    return found


@pytest.mark.parametrize("length", [0, 7, 1000, 100_000])
@pytest.mark.parametrize("name", ["x.safetensors", "x.weights.h5", "x.h5"])
def test_a_truncated_file(name, length, contents, tmp_path):
    (tmp_path / name).write_bytes(contents[name][:length])
    with pytest.raises(UserError, match="cannot be read as|is not a supported weights file") as error:
        load_weights(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kind_is_told_from_the_content_whatever_the_name(contents, tmp_path):
    for name, kind in [("x.safetensors", "safetensors"), ("x.weights.h5", "hdf5"), ("x.h5", "hdf5")]:
        (tmp_path / "weights").write_bytes(contents[name])
        assert kind_of(tmp_path / "weights") == kind


def test_tensors_survive_a_safetensors_file(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(tensors))
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_files_that_declare_more_than_they_hold(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("Conv1/Conv1/kernel:0", (1 << 20, 1 << 12), "f4")
    with pytest.raises(UserError, match="declares 16.0 GiB of tensors"):
        load_weights(tmp_path / "x.h5")
    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("Conv1/Conv1/kernel:0", (3,), "f4", external=[(str(tmp_path / "secret"), 0, 12)])
    with pytest.raises(UserError, match="y.h5 reads Conv1/Conv1/kernel:0 from another file"):
        load_weights(tmp_path / "y.h5")
    monkeypatch.setattr(files, "MOST_BYTES", 100 << 20)
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(110 << 20))
    assert (tmp_path / "x.keras").stat().st_size < 1 << 18
    with pytest.raises(UserError, match="declares 0.1 GiB"):
        load_weights(tmp_path / "x.keras")


def test_what_is_nothing(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; expected a weights file or a network's folder"):
        load_weights(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("to do")
    with pytest.raises(UserError, match=r"notes.txt is not a supported weights file"):
        load_weights(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is a folder without weights"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (
            ["a.npy", "b.npy"],
            r"is a NumPy archive \(containing a.npy, b.npy\), not a supported weights file; supported are",
        ),
        (["notes.txt"], r"is a zip archive \(containing notes.txt\), not a supported weights file"),
        (["x/data.pkl", "x/constants.pkl", "x/code/a.py"], "is a TorchScript archive, which contains code"),
        ([], r"is a zip archive \(containing nothing\)"),
    ],
)
def test_an_archive_of_another_kind_is_named(members, says, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in members:
            archive.writestr(name, "x")
    with pytest.raises(UserError, match=says):
        load_weights(tmp_path / "x.zip")
