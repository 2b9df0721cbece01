"""Encoded images by number, with what is known of them: from a prepared TFDS set, or from a folder of files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from mnv2_jax.data.prepare import image_key, label_key
from mnv2_jax.data.preprocessing import IMAGE_SUFFIXES
from mnv2_jax.errors import UserError


class Example(NamedTuple):
    """An image as it lies in its file.

    Attributes:
        content: of the file.
        annotation: what `Targets.encode` makes targets of; in a classification set the class's number.
        name: for messages.
    """

    content: bytes
    annotation: Any
    name: str


@runtime_checkable
class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Example:
        """One of them."""

    def fingerprint(self) -> str:
        """Changes when the examples are others, as far as it can be told without reading them."""


class TfdsSource:
    """The examples of one split of a prepared TFDS set; what is known of an image is its class.

    Args:
        builder: of the set, in array_record form.
        split: in TFDS's words.
        limit: take only so many, the first ones.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, limit: int | None = None):
        self._builder, self._split = builder, split
        self._image, self._label = image_key(builder), label_key(builder)
        self._source = builder.as_data_source(split, decoders={self._image: tfds.decode.SkipDecoding()})
        self._length = len(self._source) if limit is None else limit
        self._title = f"{builder.name} {split}"
        self._version = str(builder.version)

    def __len__(self) -> int:
        """How many there are."""
        return self._length

    def first(self, count: int) -> "TfdsSource":
        """The first examples alone."""
        return TfdsSource(self._builder, self._split, count)

    def __getitem__(self, index: int) -> Example:
        """One of them."""
        example = self._source[index]
        name = example.get("file_name", b"")
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return Example(example[self._image], int(example[self._label]), name or f"image {index} of {self._title}")

    def fingerprint(self) -> str:
        """The set's name and version, and the split."""
        return f"{self._title} {self._version}"


class FolderSource:
    """The images of one split of a folder.

    Args:
        folder: in which they all lie.
        files: (path, annotation) of each; in a classification set the annotation is the class's number.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[Path, Any]]):
        self._folder, self._files = folder, tuple(files)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    def first(self, count: int) -> "FolderSource":
        """The first examples alone."""
        return FolderSource(self._folder, self._files[:count])

    def __getitem__(self, index: int) -> Example:
        """One of them."""
        path, annotation = self._files[index]
        try:
            return Example(path.read_bytes(), annotation, str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error

    def fingerprint(self) -> str:
        """A hash of the files' paths in the folder and their annotations."""
        names = [f"{path.relative_to(self._folder).as_posix()} {annotation}" for path, annotation in self._files]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def read_folder(folder: Path) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """The classes of a folder of images, and the (path, class) of each image by split.

    A class is a subfolder. They may lie in `folder/train` and `folder/val` (or `validation`, or `test`), else
    every class is split: of its images in the order of a hash of their names, every tenth is a test image and
    the next one a validation image. Where there is one held-out part only it is the test split, and the
    validation split is taken from the training images in the same way.

    Raises:
        UserError: for a folder without class folders, a class without images, or splits of other classes.
    """
    if not folder.is_dir():
        raise UserError(f"--data-files {folder} is not a folder; expected a folder with a subfolder of images a class")
    parts = {name: folder / name for name in ("train", "val", "validation", "test") if (folder / name).is_dir()}
    has_train = "train" in parts and any(path.is_dir() for path in parts["train"].iterdir())
    if not has_train or len(parts) == 1:
        classes, images = _read_classes(parts["train"] if has_train else folder)
        return classes, _split(images)
    classes, images = _read_classes(parts.pop("train"))
    held = {}
    for name, path in parts.items():
        others, held[name] = _read_classes(path)
        if others != classes:
            odd = sorted(set(others) ^ set(classes))
            raise UserError(f"{path} and {folder / 'train'} hold other classes: {', '.join(odd[:5])}")
    test = held.pop("test", None)
    validation = next(iter(held.values()), None)
    if test is None or validation is None:
        rest = _split(images, test=False)
        return classes, {**rest, "test": _flat(test or validation or [])}
    return classes, {"train": _flat(images), "validation": _flat(validation), "test": _flat(test)}


def _read_classes(folder: Path) -> tuple[tuple[str, ...], list[list[Path]]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder} has {len(classes)} subfolders; expected one a class, two classes or more")
    images = []
    for path in classes:
        files = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not files:
            raise UserError(f"the class folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")

        def order(file: Path, inside: Path = path) -> str:
            return hashlib.sha256(file.relative_to(inside).as_posix().encode()).hexdigest()

        images.append(sorted(files, key=order))
    return tuple(path.name for path in classes), images


def _flat(images: list[list[Path]]) -> list[tuple[Path, int]]:
    """All classes side by side, so that the first images are of all of them."""
    longest = max(map(len, images), default=0)
    return [
        (paths[index], label) for index in range(longest) for label, paths in enumerate(images) if index < len(paths)
    ]


def _split(images: list[list[Path]], test: bool = True) -> dict[str, list[tuple[Path, int]]]:
    """Every tenth of each class to the test split, and to the validation split."""
    needed = 3 if test else 2
    small = next((paths for paths in images if len(paths) < needed), None)
    if small is not None:
        raise UserError(
            f"the class folder {small[0].parent} holds {len(small)} images; expected {needed} or more, to train, "
            "validate and test on"
        )
    first = ["test" if test else "train", "validation"]
    names = [*first, *["train"] * 8]
    return {
        split: _flat([[path for index, path in enumerate(paths) if names[index % 10] == split] for paths in images])
        for split in ("train", "validation", "test")
    }
