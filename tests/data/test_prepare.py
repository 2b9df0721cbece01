import pytest
import tensorflow_datasets as tfds

from mnv2_jax.data.prepare import prepared_builder
from mnv2_jax.data.resident import load
from mnv2_jax.errors import UserError


def test_unknown_data_set(data_dir):
    with pytest.raises(UserError, match="unknown data set 'nothing'; choose from digits, fashion_mnist"):
        load("nothing", data_dir=data_dir)


def test_digits_take_no_files(data_dir, tmp_path):
    with pytest.raises(UserError, match="remove --data-files"):
        load("digits", data_files=tmp_path, data_dir=data_dir)


def test_a_set_that_tfds_knows_has_to_be_prepared_first(data_dir):
    with pytest.raises(UserError, match=r"mnist is not prepared in .*; prepare it once: .* datasets prepare mnist"):
        load("mnist", data_dir=data_dir)
    with pytest.raises(UserError, match="lfw is not a classification set: it has 0 class features, expected one"):
        load("lfw", data_dir=data_dir)


def test_preparing_says_that_tensorflow_is_missing(tmp_path, monkeypatch):
    def no_tensorflow(self, **_):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_tensorflow)
    with pytest.raises(UserError, match="TFDS writes the images of cifar10 with TensorFlow, which is not installed"):
        prepared_builder("cifar10", data_dir=tmp_path)


def test_preparing_imagenet_says_what_to_put_where(tmp_path):
    with pytest.raises(
        UserError, match=r"imagenet2012 has to be downloaded by hand into .*manual.*ILSVRC2012_img_train"
    ):
        prepared_builder("imagenet2012", data_dir=tmp_path)


def test_a_builder_of_our_own_that_downloads_nothing_names_its_reason(tmp_path, monkeypatch):
    def full(self, **_):
        raise OSError("the disk is full")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"digits cannot be prepared in .*: the disk is full"):
        prepared_builder("digits", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"cifar10 is not prepared in .* cannot be downloaded \(the disk is full\)"):
        prepared_builder("cifar10", data_dir=tmp_path)


def test_names_of_tfds_may_have_versions(data_dir):
    """A colon before a version is not taken for a module path."""
    with pytest.raises(UserError, match=r"mnist:3.0.1 is not prepared in .*mnist/3.0.1"):
        load("mnist:3.0.1", data_dir=data_dir)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        UserError, match=r"digits cannot be prepared: .*/file/sets/digits/1.0.0 cannot be written \(Not a"
    ):
        prepared_builder("digits", data_dir=tmp_path / "file" / "sets", progress=True)
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    with pytest.raises(UserError, match="TFDS_DATA_DIR is empty"):
        prepared_builder("digits")


def test_a_preparation_that_fails_leaves_no_empty_folders(tmp_path, monkeypatch):
    def no_network(self, **_):
        (tmp_path / "new" / "sets" / "downloads" / "extracted").mkdir(parents=True)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(UserError, match="cifar10 is not prepared in .* cannot be downloaded .no route to host"):
        prepared_builder("cifar10", data_dir=tmp_path / "new" / "sets")
    assert list(tmp_path.iterdir()) == []
