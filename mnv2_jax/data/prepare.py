"""Find and prepare the data sets of the catalog, and others of TFDS."""

import contextlib
import importlib
import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from mnv2_jax.data.catalog import CATALOG, FOLDER, Entry
from mnv2_jax.errors import UserError


def find_entry(name: str, data_dir: Path | None = None) -> Entry:
    """Return a data set's entry: from the catalog, or made from TFDS's description of another prepared set.

    Raises:
        UserError: if there is no such set, or its examples do not have exactly one image and one class each.
    """
    if name in CATALOG:
        return CATALOG[name]
    if name == FOLDER:
        raise UserError(
            "--dataset folder is streamed; it needs --data-files DIR, a folder with one subfolder of images per class"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = ", ".join([*CATALOG, FOLDER])
        raise UserError(f"unknown data set {name!r}; choose from {known}, or any set that TFDS has prepared") from error
    except ImportError as error:
        raise UserError(f"TFDS needs additional packages for {name} ({str(error).splitlines()[-1]})") from error
    image_key(builder), label_key(builder)
    splits = set(builder.info.splits)
    test = next((split for split in ("test", "validation") if split in splits), None)
    if splits and ("train" not in splits or test is None):
        raise UserError(f"{name} has the splits {', '.join(sorted(splits))}; expected train, and test or validation")
    return Entry(name, name, 224, None, flip=True, shift=None, resident=False, test=test or "test")


def _only_key(builder: tfds.core.DatasetBuilder, kind: type, what: str) -> str:
    keys = [key for key, feature in dict(builder.info.features or {}).items() if type(feature) is kind]
    if len(keys) != 1:
        raise UserError(f"{builder.name} is not a classification set: it has {len(keys)} {what} features, expected one")
    return keys[0]


def image_key(builder: tfds.core.DatasetBuilder) -> str:
    """Return the name of the image feature.

    Raises:
        UserError: unless there is exactly one.
    """
    return _only_key(builder, tfds.features.Image, "image")


def label_key(builder: tfds.core.DatasetBuilder) -> str:
    """Return the name of the class feature.

    Raises:
        UserError: unless there is exactly one.
    """
    return _only_key(builder, tfds.features.ClassLabel, "class")


def label_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    """Return the class names, by class index."""
    return tuple(builder.info.features[label_key(builder)].names)


def check_data_dir() -> None:
    """Refuse an empty TFDS_DATA_DIR, which TFDS would take for the current folder.

    Raises:
        UserError: if it is empty.
    """
    if os.environ.get("TFDS_DATA_DIR") == "":
        raise UserError("TFDS_DATA_DIR is empty; unset it, or set it to the folder of the prepared sets")


def make_builder(name: str, data_files: Path | None = None, data_dir: Path | None = None) -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of a data set, prepared or not; see `prepared_builder`."""
    check_data_dir()
    entry = find_entry(name, data_dir)
    options: dict[str, Any] = dict(data_dir=data_dir, file_format="array_record")
    if data_files is not None and not entry.takes_files:
        raise UserError(f"{name} needs no files from you; remove --data-files")
    if entry.takes_files:
        options["data_files"] = data_files
    try:
        module, _, class_name = entry.builder.rpartition(":")
        # TFDS names may contain colons too, before a version or after a namespace.
        if "." in module and class_name.isidentifier():
            return getattr(importlib.import_module(module), class_name)(**options)
        return tfds.builder(entry.builder, **options)
    except ValueError as error:
        # TFDS found the set prepared in a file format without random access.
        raise UserError(
            f"{name} is prepared in a file format other than array_record ({error}); set TFDS_DATA_DIR to another "
            "folder to prepare it again there"
        ) from error


def prepared_builder(
    name: str, data_files: Path | None = None, data_dir: Path | None = None, progress: bool = False
) -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of a data set; prepare the set first if it is not.

    Args:
        name: a name in the catalog, or of a set that TFDS has prepared.
        data_files: a folder with the user's own copy of the files, for a set that cannot be downloaded here.
        data_dir: folder of the prepared sets; TFDS's default if None.
        progress: show TFDS's own progress output; also allows preparing a set that is not in the catalog.

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
    there = _existing_parent(Path(builder.data_dir))
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{name} cannot be prepared: {builder.data_dir} cannot be written ({error.strerror}); set "
            "TFDS_DATA_DIR to another folder"
        ) from error
    # With TFDS's ten retries it takes minutes to find that there is no network, and urllib3 warns ten times.
    downloader.MAX_RETRIES = 2
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        # TFDS prints where it writes; whether to say so is up to the caller.
        with contextlib.nullcontext() if progress else contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except Exception as error:
        _remove_empty_folders(Path(builder.data_dir), there)
        if isinstance(error, UserError):
            raise
        raise UserError(_why_unprepared(name, builder, error, data_files)) from error
    return builder


def check_images(flag: str, wanted: int, there: int, name: str) -> None:
    """Refuse a number of images that is not between 1 and what the split has.

    Raises:
        UserError: says how many images there are.
    """
    if not 0 < wanted <= there:
        raise UserError(f"{flag} must be from 1 to {there}, the number of images available in {name}, got {wanted}")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _remove_empty_folders(path: Path, there: Path) -> None:
    """Remove the folders that TFDS made below `there` on the way to `path` and left empty."""
    made = [folder for folder in (path, *path.parents) if folder.is_relative_to(there) and folder != there]
    if made:
        for folder, _, _ in os.walk(made[-1], topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _why_unprepared(name: str, builder: tfds.core.DatasetBuilder, error: Exception, data_files: Path | None) -> str:
    """Explain in one line why preparation failed, and what to do."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    if isinstance(error, ImportError) and "tensorflow" in str(error).lower():
        return (
            f"TFDS writes the images of {name} with TensorFlow, which is not installed; only this step needs it: "
            "pip install tensorflow-cpu"
        )
    if manual and "manual" in str(error).lower():
        where = Path(builder.data_dir).parents[1] / "downloads" / "manual"
        wanted = " ".join(str(manual).split())
        return f"{name} has to be downloaded by hand into {where} before it can be prepared: {wanted}"
    # Builders of our own say where their data come from.
    if data_files is not None or not getattr(builder, "downloads", True):
        return f"{name} cannot be prepared in {builder.data_dir}: {reason}"
    # Whatever made the download fail (name resolution, a proxy, a checksum), the remedy is the same.
    line = f"{name} is not prepared in {builder.data_dir} and cannot be downloaded ({reason})"
    remedy = getattr(builder, "data_files_instructions", None)
    if remedy:
        return f"{line}; {remedy}"
    command = f"python -m mnv2_jax datasets prepare {name}"
    return f"{line}; prepare it on a machine with internet access ({command}) and copy the folder"
