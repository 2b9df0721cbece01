"""Data sets by name: their builder, their splits, and how their images are prepared.

Every set is a TFDS set in array_record form, prepared on first use into the TFDS data directory
(`~/tensorflow_datasets`, or what the environment variable TFDS_DATA_DIR says), and read through TFDS data
sources. TensorFlow is not needed for any of it.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tensorflow_datasets as tfds

from mnv2_jax.data.builders.digits import Digits
from mnv2_jax.data.builders.fashion_mnist import FILES, FashionMNIST, find_idx_files, read_idx
from mnv2_jax.errors import UserError

DatasetName = Literal["digits", "fashion_mnist"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one data set is found, split and prepared.

    Attributes:
        title: for figures and reports.
        builder: makes the TFDS builder, given `data_dir` and `file_format`.
        files_builder: the same for a folder of the user's files, after checking them; None where none are needed.
        image_size: side in pixels to which the images are scaled.
        flip: whether a mirrored image shows the same class.
        shift: how many pixels an image may be moved in training, in both directions.
        source_size: side in pixels of the images before they were scaled.
        train, validation, test: TFDS split names. Settings are chosen on the validation split, a tenth of the
            training data that no run trains on; the test split is read once, at the end of a run.
    """

    title: str
    builder: Callable[..., tfds.core.DatasetBuilder]
    image_size: int
    source_size: int
    flip: bool
    shift: int
    files_builder: Callable[..., tfds.core.DatasetBuilder] | None = None
    train: str = "train[10%:]"
    validation: str = "train[:10%]"
    test: str = "test"


def _fashion_mnist_from_files(*, data_files: Path, **kwargs) -> tfds.core.DatasetBuilder:
    for key, path in find_idx_files(data_files).items():
        read_idx(path, FILES[key])
    return FashionMNIST(data_files=data_files, **kwargs)


CATALOG: dict[str, Entry] = {
    "digits": Entry("handwritten digits (scikit-learn)", Digits, image_size=28, source_size=8, flip=False, shift=2),
    "fashion_mnist": Entry(
        "Fashion-MNIST",
        FashionMNIST,
        image_size=28,
        source_size=28,
        flip=True,
        shift=2,
        files_builder=_fashion_mnist_from_files,
    ),
}


def prepared_builder(
    name: str, data_files: Path | None = None, data_dir: Path | None = None
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, prepared if it was not.

    Args:
        name: a name in the catalog.
        data_files: a folder with the user's own copy of the files, for a set that cannot be downloaded here.
        data_dir: where prepared sets live; by default TFDS's own choice.

    Raises:
        UserError: if the name is unknown, the files are missing or wrong, or nothing can be prepared.
    """
    if name not in CATALOG:
        raise UserError(f"unknown data set {name!r}; known are {', '.join(CATALOG)}")
    entry = CATALOG[name]
    options = dict(data_dir=data_dir, file_format="array_record")
    if data_files is not None and entry.files_builder is None:
        raise UserError(f"{name} needs no files of yours; leave --data-files out")
    try:
        if data_files is not None and entry.files_builder is not None:
            builder = entry.files_builder(data_files=data_files, **options)
        else:
            builder = entry.builder(**options)
    except ValueError as error:
        # TFDS found the set prepared in a form without random access.
        raise UserError(
            f"{name} is prepared in another file format than array_record ({error}); name another folder in "
            "TFDS_DATA_DIR, where it is prepared anew"
        ) from error
    if builder.is_prepared():
        return builder
    try:
        # TFDS prints where it writes; that is for the caller to say.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:
        if entry.files_builder is None or data_files is not None:
            raise UserError(f"{name} cannot be prepared in {builder.data_dir}: {error}") from error
        # Whatever a download fails of (name resolution, a proxy, a checksum), the remedy is the same.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        names = ", ".join(f"{file.name}.gz" for file in FILES.values())
        raise UserError(
            f"{name} is not prepared in {builder.data_dir} and cannot be downloaded ({reason}); give the folder "
            f"with its files ({names}) as --data-files DIR; Debian's package dataset-fashion-mnist installs "
            "them in /usr/share/datasets/fashion-mnist"
        ) from error
    return builder
