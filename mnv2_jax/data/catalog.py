"""Data sets by name: their builder, their splits, and how their images are prepared.

A set is a TFDS set in array_record form, in the TFDS data directory (`~/tensorflow_datasets`, or what the
environment variable TFDS_DATA_DIR says), and read through TFDS data sources without TensorFlow. What the
catalog does not list may be any classification set of TFDS that is prepared there, or "folder": the user's own
images, a subfolder a class.
"""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mnv2_jax.data.builders.digits import Digits
from mnv2_jax.data.builders.fashion_mnist import FILES, FashionMNIST, find_idx_files, read_idx
from mnv2_jax.errors import UserError

FOLDER = "folder"


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one data set is found, split and prepared.

    Attributes:
        title: for figures and reports.
        builder: makes the TFDS builder, given `data_dir` and `file_format`.
        files_builder: the same for a folder of the user's files, after checking them; None where none are needed.
        image_size: side in pixels to which the images are scaled.
        source_size: side in pixels of the images before they were scaled; None where they are of many sizes.
        flip: whether a mirrored image shows the same class.
        shift: how many pixels an image may be moved in training, in both directions; None where training takes
            random crops of any size instead, as for ImageNet.
        resident: whether it lives on the device unless asked otherwise.
        train, validation, test: TFDS split names. Settings are chosen on the validation split, a part of the
            training data that no run trains on; the test split is read once, at the end of a run.
    """

    title: str
    builder: Callable[..., tfds.core.DatasetBuilder]
    image_size: int
    source_size: int | None
    flip: bool
    shift: int | None
    resident: bool = True
    files_builder: Callable[..., tfds.core.DatasetBuilder] | None = None
    train: str = "train[10%:]"
    validation: str = "train[:10%]"
    test: str = "test"


def _fashion_mnist_from_files(*, data_files: Path, **kwargs) -> tfds.core.DatasetBuilder:
    for key, path in find_idx_files(data_files).items():
        read_idx(path, FILES[key])
    return FashionMNIST(data_files=data_files, **kwargs)


def _of_tfds(name: str) -> Callable[..., tfds.core.DatasetBuilder]:
    return functools.partial(tfds.builder, name)


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
    "cifar10": Entry("CIFAR-10", _of_tfds("cifar10"), image_size=32, source_size=32, flip=True, shift=4),
    "cifar100": Entry("CIFAR-100", _of_tfds("cifar100"), image_size=32, source_size=32, flip=True, shift=4),
    "imagenette": Entry(
        "Imagenette", _of_tfds("imagenette"), 224, None, flip=True, shift=None, resident=False, test="validation"
    ),
    "imagenet2012": Entry(
        "ImageNet (ILSVRC 2012)",
        _of_tfds("imagenet2012"),
        224,
        None,
        flip=True,
        shift=None,
        resident=False,
        # 12,811 images, so that 99 % are left to train on.
        train="train[1%:]",
        validation="train[:1%]",
        test="validation",
    ),
}


def find_entry(name: str, data_dir: Path | None = None) -> Entry:
    """What is known of a data set: from the catalog, or for another prepared set of TFDS from its description.

    Raises:
        UserError: if there is no such set, or it has not one image and one class an example.
    """
    if name in CATALOG:
        return CATALOG[name]
    if name == FOLDER:
        raise UserError("--dataset folder is streamed; it needs --data-files DIR, with a subfolder a class")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = ", ".join([*CATALOG, FOLDER])
        raise UserError(f"unknown data set {name!r}; known are {known}, and what TFDS has prepared") from error
    except ImportError as error:
        raise UserError(f"TFDS needs more packages for {name} ({str(error).splitlines()[-1]})") from error
    image_key(builder), label_key(builder)
    splits = set(builder.info.splits)
    test = next((split for split in ("test", "validation") if split in splits), None)
    if splits and ("train" not in splits or test is None):
        raise UserError(f"{name} has the splits {', '.join(sorted(splits))}; expected train, and test or validation")
    return Entry(
        name,
        functools.partial(tfds.builder, name),
        224,
        None,
        flip=True,
        shift=None,
        resident=False,
        test=test or "test",
    )


def _only_key(builder: tfds.core.DatasetBuilder, kind: type, what: str) -> str:
    keys = [key for key, feature in dict(builder.info.features or {}).items() if type(feature) is kind]
    if len(keys) != 1:
        raise UserError(f"{builder.name} is no classification set: it has {len(keys)} {what} features, expected one")
    return keys[0]


def image_key(builder: tfds.core.DatasetBuilder) -> str:
    """The name of the examples' image.

    Raises:
        UserError: unless there is one.
    """
    return _only_key(builder, tfds.features.Image, "image")


def label_key(builder: tfds.core.DatasetBuilder) -> str:
    """The name of the examples' class.

    Raises:
        UserError: unless there is one.
    """
    return _only_key(builder, tfds.features.ClassLabel, "class")


def label_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    """The classes in their order."""
    return tuple(builder.info.features[label_key(builder)].names)


def make_builder(name: str, data_files: Path | None = None, data_dir: Path | None = None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, prepared or not; see `prepared_builder`."""
    entry = find_entry(name, data_dir)
    options: dict[str, Any] = dict(data_dir=data_dir, file_format="array_record")
    if data_files is not None and entry.files_builder is None:
        raise UserError(f"{name} needs no files of yours; leave --data-files out")
    try:
        if data_files is not None and entry.files_builder is not None:
            return entry.files_builder(data_files=data_files, **options)
        return entry.builder(**options)
    except ValueError as error:
        # TFDS found the set prepared in a form without random access.
        raise UserError(
            f"{name} is prepared in another file format than array_record ({error}); name another folder in "
            "TFDS_DATA_DIR, where it is prepared anew"
        ) from error


def prepared_builder(
    name: str, data_files: Path | None = None, data_dir: Path | None = None, progress: bool = False
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, prepared if it was not.

    Args:
        name: a name in the catalog, or of a set that TFDS has prepared.
        data_files: a folder with the user's own copy of the files, for a set that cannot be downloaded here.
        data_dir: where prepared sets live; by default TFDS's own choice.
        progress: leave TFDS its own bars and lines.

    Raises:
        UserError: if the name is unknown, the files are missing or wrong, or nothing can be prepared.
    """
    builder = make_builder(name, data_files, data_dir)
    if builder.is_prepared():
        return builder
    if name not in CATALOG and not progress:
        raise UserError(
            f"{name} is not prepared in {builder.data_dir}; prepare it once: python -m mnv2_jax datasets prepare {name}"
        )
    try:
        if not os.access(_existing_parent(Path(builder.data_dir)), os.W_OK):
            raise UserError(f"{name} cannot be prepared: {builder.data_dir} cannot be written; set TFDS_DATA_DIR")
        # TFDS prints where it writes; that is for the caller to say.
        with contextlib.nullcontext() if progress else contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why_unprepared(name, builder, error, data_files)) from error
    return builder


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _why_unprepared(name: str, builder: tfds.core.DatasetBuilder, error: Exception, data_files: Path | None) -> str:
    """One line for whatever a preparation fails of."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    if isinstance(error, ImportError) and "tensorflow" in str(error).lower():
        return (
            f"TFDS writes the images of {name} with TensorFlow, which is not installed; for this one step: "
            "pip install tensorflow-cpu"
        )
    if manual and "manual" in str(error).lower():
        where = Path(builder.data_dir).parents[1] / "downloads" / "manual"
        wanted = " ".join(str(manual).split())
        return f"{name} has to be downloaded by hand into {where} before it can be prepared: {wanted}"
    entry = CATALOG.get(name)
    if data_files is not None or (entry is not None and entry.builder is Digits):
        return f"{name} cannot be prepared in {builder.data_dir}: {reason}"
    # Whatever a download fails of (name resolution, a proxy, a checksum), the remedy is the same.
    line = f"{name} is not prepared in {builder.data_dir} and cannot be downloaded ({reason})"
    if name == "fashion_mnist":
        names = ", ".join(f"{file.name}.gz" for file in FILES.values())
        return (
            f"{line}; give the folder with its files ({names}) as --data-files DIR; Debian's package "
            "dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist"
        )
    return f"{line}; prepare it where the network is open (python -m mnv2_jax datasets prepare {name}), and copy the folder"
