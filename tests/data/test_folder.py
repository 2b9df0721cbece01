import os

import pytest
from samples import write_folder

from mnv2_jax.data.folder import image_suffixes, read_folder
from mnv2_jax.data.sources import FolderSource
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
    # The first images include all classes.
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
    with pytest.raises(UserError, match="has 0 subfolders; expected one per class, and two classes or more"):
        read_folder(tmp_path / "flat")
    folder = write_folder(tmp_path / "empty")
    (folder / "bird").mkdir()
    with pytest.raises(UserError, match="the class folder .*bird contains no images"):
        read_folder(folder)
    with pytest.raises(UserError, match="the class folder .*cat contains 2 images; expected 3 or more"):
        read_folder(write_folder(tmp_path / "few", images=2))
    for name, classes in (("train", ("cat", "dog")), ("val", ("cat", "cow"))):
        write_folder(tmp_path / "odd" / name, classes)
    with pytest.raises(UserError, match="have different classes: cow, dog"):
        read_folder(tmp_path / "odd")


# --- What people have ------------------------------------------------------------------------------------


def counts(folder):
    return {split: len(inside) for split, inside in read_folder(folder).files.items()}


@pytest.mark.parametrize(
    "names", [("Train", "VAL", "Test"), ("training_set", "dev", "test_set"), ("training", "valid", "testing")]
)
def test_the_usual_names_of_splits_are_known(tmp_path, names):
    for name, images in zip(names, (3, 2, 4), strict=True):
        write_folder(tmp_path / name, images=images)
    (tmp_path / "labels.csv").write_text("x")
    assert counts(tmp_path) == {"train": 6, "validation": 4, "test": 8}
    assert read_folder(tmp_path).said == (
        f"{tmp_path}: 18 images of 2 classes (cat 9, dog 9): train 6, validation 4, test 8",
        f"left out of {tmp_path}: 1 .csv",
    )


def test_a_held_out_part_alone_is_to_test_on(tmp_path):
    write_folder(tmp_path / "val", images=1)
    assert counts(tmp_path) == {"train": 0, "validation": 0, "test": 2}


def test_all_images_as_one_part(tmp_path):
    for name in ("train", "val"):
        write_folder(tmp_path / name, images=1)
    classes, files, (said,) = read_folder(tmp_path, whole=True)
    assert [classes[label] for _, label in files["all"]] == ["cat", "dog", "cat", "dog"]
    assert said == f"{tmp_path}: 4 images of 2 classes (cat 2, dog 2)"


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    assert read_folder(write_folder(tmp_path, ("bus", "train"), images=3)).class_names == ("bus", "train")


def test_whatever_is_left_out_is_said_with_its_number(tmp_path):
    folder = write_folder(tmp_path / "pets", images=4)
    content = (folder / "cat" / "000.jpg").read_bytes()
    for suffix in (".jfif", ".JPE", ".jp2", ".avif"):
        (folder / "cat" / f"more{suffix}").write_bytes(content)
    for name in ("a.heic", "b.heic", "c.txt", "README", "._000.jpg", "Thumbs.db"):
        (folder / "cat" / name).write_bytes(content)
    for name in (".hidden", "__MACOSX"):
        write_folder(folder / "cat" / name, images=2)
        write_folder(folder / name, images=2)
    os.mkfifo(folder / "cat" / "pipe.jpg")
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "dog" / "around").symlink_to(folder / "dog")
    # Links to files and folders are followed.
    write_folder(tmp_path / "elsewhere", images=5)
    (folder / "dog" / "linked").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "elsewhere" / "dog" / "back").symlink_to(folder / "dog")
    (folder / "dog" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "cat" / "000.jpg")
    readable = sum(suffix in image_suffixes() for suffix in (".jfif", ".jpe", ".jp2", ".avif"))
    assert readable >= 3
    found, left = read_folder(folder).said
    assert found.startswith(f"{folder}: {14 + readable} images of 2 classes (cat {4 + readable}, dog 10): ")
    for what in (
        "2 .heic",
        "1 .txt",
        "1 without a suffix",
        "6 hidden or system",
        "1 special (pipe, socket or device)",
    ):
        assert what in left
    assert "1 linking to nothing" in left
    assert "2 linking to a parent folder" in left


def test_results_inside_the_data_are_no_class(tmp_path):
    folder = write_folder(tmp_path / "pets", images=3)
    before = read_folder(folder)
    for results in (folder / "runs" / "train-folder-0", folder / "cat" / "run"):
        write_folder(results, ("figures",), images=2)
        (results / "config.json").write_text('{"dataset": "folder", "seed": 0}')
    after = read_folder(folder)
    assert after[:2] == before[:2]
    assert after.said[1].endswith(f"the results in {folder}/cat/run and 1 more")


def test_names_are_the_same_however_a_system_spells_them(tmp_path):
    """macOS stores an accent as a separate character."""
    for name, accent in (("train", "\u00e9"), ("val", "e\u0301")):
        write_folder(tmp_path / "two" / name, (f"caf{accent}", "tea"), images=3)
    assert read_folder(tmp_path / "two").class_names == ("caf\u00e9", "tea")
    write_folder(tmp_path / "alike", ("caf\u00e9", "cafe\u0301", "tea"), images=3)
    with pytest.raises(UserError, match="two class folders caf\u00e9 that look alike"):
        read_folder(tmp_path / "alike")


def test_names_that_are_not_utf_8(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    folder = write_folder(tmp_path / odd, (odd, "tea"), images=3)
    (folder / odd / "000.jpg").rename(folder / odd / f"{odd}.jpg")
    classes, files, said = read_folder(folder)
    assert classes == ("caf\\xe9", "tea")
    source = FolderSource(folder, files["train"] + files["validation"] + files["test"])
    names = [source[index].name for index in range(len(source))]
    assert f"{tmp_path}/caf\\xe9/caf\\xe9/caf\\xe9.jpg" in names
    for text in (*said, *names, source.fingerprint(), *classes):
        text.encode()


def test_what_is_surely_a_mistake_is_refused(tmp_path):
    def refused(folder, says):
        with pytest.raises(UserError, match=says):
            read_folder(folder)

    nested = write_folder(tmp_path / "a" / "pets", images=3).parent
    refused(nested, "a contains a single folder, .*/a/pets, which contains the classes; use that one")
    stray = write_folder(tmp_path / "b", images=3)
    (stray / "x.png").write_bytes(b"")
    refused(stray, r"b has 1 image next to its class folders \(x.png\)")
    for part, classes in (("train", ("cat", "dog", "cow")), ("test", ("cat", "dog"))):
        write_folder(tmp_path / "c" / part, classes, images=3)
    refused(tmp_path / "c", "test and .*train have different classes: cow")
    for part in ("val", "Valid", "train"):
        write_folder(tmp_path / "d" / part, images=3)
    refused(tmp_path / "d", "d has Valid and val; expected only one of them")
    write_folder(tmp_path / "e" / "train", images=3)
    write_folder(tmp_path / "e", ("cow",), images=3)
    refused(tmp_path / "e", "e has classes in train, but also images in .*/cow")
    heic = write_folder(tmp_path / "f", images=3)
    for index in range(4):
        (heic / "cat" / f"{index}.heic").write_bytes(b"")
    refused(
        heic,
        "the class folder .*cat contains 4 .heic that cannot be read here, and only 3 images that can; convert them to JPEG",
    )
    write_folder(tmp_path / "g" / "train", images=3)
    write_folder(tmp_path / "g", ("test",), images=3)
    refused(tmp_path / "g", "g has classes in train, but also images in .*/test")
