"""Random access to encoded images and their annotations, from a prepared TFDS set or a folder of files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from mnv2_jax.data.folder import printable, spelled
from mnv2_jax.data.prepare import image_key, label_key
from mnv2_jax.errors import UserError


class Example(NamedTuple):
    """An encoded image and its annotation.

    Attributes:
        content: the file's bytes.
        annotation: the input of `Targets.encode`; the class index in a classification set.
        name: the image's name in messages.
        upright: whether to apply its EXIF orientation.
    """

    content: bytes
    annotation: Any
    name: str
    upright: bool = True


@runtime_checkable
class Source(Protocol):
    """Examples by index."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Return one example."""

    def fingerprint(self) -> str:
        """Return a string that changes when the examples do, as far as can be told without reading them."""


class TfdsSource:
    """The examples of one split of a prepared TFDS set; the annotation of an image is its class index.

    Args:
        builder: the set's builder, in array_record format.
        split: TFDS split expression.
        limit: take only this many examples, the first ones; None for all.
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
        """Return the number of examples."""
        return self._length

    def first(self, count: int) -> "TfdsSource":
        """Return a source of the first `count` examples."""
        return TfdsSource(self._builder, self._split, count, self._upright)

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        example = self._source[index]
        name = example.get("file_name", b"")
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        name = name or f"image {index} of {self._title}"
        return Example(example[self._image], int(example[self._label]), name, self._upright)

    def fingerprint(self) -> str:
        """Return the set's name and version, and the split."""
        return f"{self._title} {self._version}"


class FolderSource:
    """The images of one split of a folder.

    Args:
        folder: the folder that holds all of them.
        files: (path, annotation) of each image; in a classification set the annotation is the class index.
        upright: see `Example`.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[Path, Any]], upright: bool = True):
        self._folder, self._files, self._upright = folder, tuple(files), upright

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._files)

    def first(self, count: int) -> "FolderSource":
        """Return a source of the first `count` examples."""
        return FolderSource(self._folder, self._files[:count], self._upright)

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        path, annotation = self._files[index]
        try:
            return Example(path.read_bytes(), annotation, printable(path), self._upright)
        except OSError as error:
            raise UserError(f"{printable(path)} cannot be read ({error.strerror})") from error

    def fingerprint(self) -> str:
        """Return a hash of the files' paths relative to the folder, and their annotations."""
        names = [
            f"{spelled(path.relative_to(self._folder).as_posix())} {annotation}" for path, annotation in self._files
        ]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
