import pytest
from samples import write_folder

from mnv2_jax.data.folder import read_folder
from mnv2_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "pets")


def test_a_folder_is_split_by_names_alone(folder):
    classes, files, _ = read_folder(folder)
    assert classes == ("cat", "dog")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 32, "validation": 4, "test": 4}
    assert len({path for inside in files.values() for path, _ in inside}) == 40
    assert all(classes[label] == path.parent.name for inside in files.values() for path, label in inside)
    # The first images are of all classes.
    assert [label for _, label in files["train"][:4]] == [0, 1, 0, 1]
    assert read_folder(folder).files == files


def test_folders_that_are_split_already(tmp_path):
    for name in ("train", "val"):
        write_folder(tmp_path / "two" / name, images=10)
    _, files, _ = read_folder(tmp_path / "two")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 18, "validation": 2, "test": 20}
    for name in ("train", "validation", "test"):
        write_folder(tmp_path / "three" / name, images=3)
    _, files, _ = read_folder(tmp_path / "three")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 6, "validation": 6, "test": 6}


def test_a_folder_with_a_training_part_only(tmp_path):
    write_folder(tmp_path / "one" / "train", images=10)
    (tmp_path / "one" / "notes").mkdir()
    _, files, _ = read_folder(tmp_path / "one")
    assert {split: len(inside) for split, inside in files.items()} == {"train": 16, "validation": 2, "test": 2}


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    with pytest.raises(UserError, match="has 0 subfolders; expected one a class, two classes or more"):
        read_folder(tmp_path / "flat")
    folder = write_folder(tmp_path / "empty")
    (folder / "bird").mkdir()
    with pytest.raises(UserError, match="the class folder .*bird holds no images"):
        read_folder(folder)
    with pytest.raises(UserError, match="the class folder .*cat holds 2 images; expected 3 or more"):
        read_folder(write_folder(tmp_path / "few", images=2))
    for name, classes in (("train", ("cat", "dog")), ("val", ("cat", "cow"))):
        write_folder(tmp_path / "odd" / name, classes)
    with pytest.raises(UserError, match="hold other classes: cow, dog"):
        read_folder(tmp_path / "odd")
