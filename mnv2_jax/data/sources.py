"""Encoded images by number, with what is known of them: from a prepared TFDS set, or from a folder of files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from mnv2_jax.data.folder import printable, spelled
from mnv2_jax.data.prepare import image_key, label_key
from mnv2_jax.errors import UserError


class Example(NamedTuple):
    """An image as it lies in its file.

    Attributes:
        content: of the file.
        annotation: what `Targets.encode` makes targets of; in a classification set the class's number.
        name: for messages.
        upright: whether it is turned as its EXIF orientation says.
    """

    content: bytes
    annotation: Any
    name: str
    upright: bool = True


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
        upright: see `Example`.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, limit: int | None = None, upright: bool = True):
        self._builder, self._split, self._upright = builder, split, upright
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
        return TfdsSource(self._builder, self._split, count, self._upright)

    def __getitem__(self, index: int) -> Example:
        """One of them."""
        example = self._source[index]
        name = example.get("file_name", b"")
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        name = name or f"image {index} of {self._title}"
        return Example(example[self._image], int(example[self._label]), name, self._upright)

    def fingerprint(self) -> str:
        """The set's name and version, and the split."""
        return f"{self._title} {self._version}"


class FolderSource:
    """The images of one split of a folder.

    Args:
        folder: in which they all lie.
        files: (path, annotation) of each; in a classification set the annotation is the class's number.
        upright: see `Example`.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[Path, Any]], upright: bool = True):
        self._folder, self._files, self._upright = folder, tuple(files), upright

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    def first(self, count: int) -> "FolderSource":
        """The first examples alone."""
        return FolderSource(self._folder, self._files[:count], self._upright)

    def __getitem__(self, index: int) -> Example:
        """One of them."""
        path, annotation = self._files[index]
        try:
            return Example(path.read_bytes(), annotation, printable(path), self._upright)
        except OSError as error:
            raise UserError(f"{printable(path)} cannot be read ({error.strerror})") from error

    def fingerprint(self) -> str:
        """A hash of the files' paths in the folder and their annotations."""
        names = [
            f"{spelled(path.relative_to(self._folder).as_posix())} {annotation}" for path, annotation in self._files
        ]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
