"""Fashion-MNIST from its four IDX files, prepared without TensorFlow.

TFDS's own builder downloads the same files but needs TensorFlow to write the images. This one writes the same
data set (same name, version, features and splits), so each can read what the other has prepared.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mnv2_jax.data.builders.png import encode_png
from mnv2_jax.errors import UserError

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


class IdxFile(NamedTuple):
    """One of the four files: its name without ".gz", the array's shape, and the SHA-256 of its uncompressed content."""

    name: str
    shape: tuple[int, ...]
    sha256: str


FILES = {
    ("train", "image"): IdxFile(
        "train-images-idx3-ubyte",
        (60000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    ("train", "label"): IdxFile(
        "train-labels-idx1-ubyte",
        (60000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    ("test", "image"): IdxFile(
        "t10k-images-idx3-ubyte",
        (10000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    ("test", "label"): IdxFile(
        "t10k-labels-idx1-ubyte", (10000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


def read_idx(path: Path, file: IdxFile) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or plain, and check its shape and SHA-256.

    Raises:
        UserError: if it is not the expected file; the message names it and says what was expected.
    """
    expected = f"expected {file.name} of Fashion-MNIST, unsigned bytes of shape {file.shape}"
    # The header: two zero bytes, the type (8, unsigned bytes), the number of axes, each axis as 32 bits.
    header = bytes([0, 0, 8, len(file.shape)]) + b"".join(size.to_bytes(4, "big") for size in file.shape)
    size = len(header) + math.prod(file.shape)
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        # Read at most one byte too many: a small gzip file can unpack to any size.
        with gzip.open(path) if zipped else path.open("rb") as stream:
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read or is truncated ({error}); {expected}") from error
    if content[: len(header)] != header:
        raise UserError(f"{path} is a different kind of file: its header is {content[:16].hex(' ')}; {expected}")
    if len(content) != size:
        there = f"{len(content):,} bytes" if len(content) < size else "more bytes"
        raise UserError(f"{path} contains {there} instead of {size:,}; {expected}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UserError(f"{path} contains different data: its SHA-256 differs; {expected}, SHA-256 {file.sha256}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(file.shape)


def find_idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Find the four files in `folder`, gzipped or plain.

    Raises:
        UserError: if the folder or a file is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected the four IDX files of Fashion-MNIST in it")
    found = {}
    for key, file in FILES.items():
        candidates = [folder / f"{file.name}.gz", folder / file.name]
        found[key] = next((path for path in candidates if path.is_file()), None)
    missing = [FILES[key].name for key, path in found.items() if path is None]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)} (plain or .gz), expected from Fashion-MNIST")
    return {key: path for key, path in found.items() if path is not None}


class FashionMNIST(tfds.image_classification.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's `fashion_mnist`, prepared without TensorFlow from a folder of IDX files or from a download.

    Args:
        data_files: the folder, or None to download.
        **kwargs: passed to `tfds.core.DatasetBuilder`.

    Raises:
        UserError: if a file in the folder is missing or is not the expected one.
    """

    name = "fashion_mnist"
    data_files_instructions = (
        f"pass the folder with its files ({', '.join(f'{file.name}.gz' for file in FILES.values())}) as --data-files "
        "DIR; Debian's package dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist"
    )

    def __init__(self, *, data_files: Path | None = None, **kwargs):
        if data_files is not None:
            for key, path in find_idx_files(data_files).items():
                read_idx(path, FILES[key])
        self._data_files = data_files
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        if self._data_files is None:
            paths = dl_manager.download({key: f"{URL}{file.name}.gz" for key, file in FILES.items()})
        else:
            paths = find_idx_files(self._data_files)
        return {split: self._generate_examples(split, paths) for split in ("train", "test")}

    def _generate_examples(
        self, split: str, paths: Mapping[tuple[str, str], Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = (read_idx(Path(paths[split, kind]), FILES[split, kind]) for kind in ("image", "label"))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": encode_png(image[..., None]), "label": int(label)}
