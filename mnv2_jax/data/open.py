"""Open a data set by name: resident if the catalog says so and nothing else was asked for, else streamed."""

from pathlib import Path
from typing import Any

from mnv2_jax.data.batch import CLASSES, Targets
from mnv2_jax.data.catalog import CATALOG, ExifOrientation, OnBadImage
from mnv2_jax.data.rand_augment import RandAugment
from mnv2_jax.data.resident import Dataset as ResidentDataset
from mnv2_jax.data.resident import load
from mnv2_jax.data.stream import StreamedDataset, load_stream
from mnv2_jax.errors import UserError


def open_dataset(
    name: str,
    *,
    streamed: bool | None = None,
    data_files: Path | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    resolution: int | None = None,
    convention: str = "tensorflow",
    smallest_crop: float = 0.05,
    color: bool = False,
    rand_augment: RandAugment = RandAugment(),  # noqa: B008 (frozen)
    on_bad_image: OnBadImage = "stop",
    exif_orientation: ExifOrientation = "apply",
    targets: Targets = CLASSES,
) -> ResidentDataset | StreamedDataset:
    """Open a data set; prepare it first if necessary.

    Args:
        name: a name in the catalog, of a set that TFDS has prepared, or "folder".
        streamed: whether to read it while it is used; None for the catalog's choice.
        data_files, train_images, validation_images, resolution, targets: see `resident.load`.
        convention, smallest_crop, color, on_bad_image, exif_orientation: see `load_stream`; a resident set ignores
            them.
        rand_augment: see `load_stream`; for a streamed set only.

    Raises:
        UserError: if there is no such set, if it cannot be resident, or as in `resident.load` and `load_stream`.
    """
    entry = CATALOG.get(name)
    if streamed is None:
        streamed = entry is None or not entry.resident
    common: dict[str, Any] = dict(
        data_files=data_files,
        train_images=train_images,
        validation_images=validation_images,
        resolution=resolution,
        targets=targets,
    )
    if streamed:
        varied: dict[str, Any] = dict(smallest_crop=smallest_crop, color=color, rand_augment=rand_augment)
        how: dict[str, Any] = dict(exif_orientation=exif_orientation, convention=convention, on_bad_image=on_bad_image)
        return load_stream(name, **common, **varied, **how)
    if entry is None or entry.shift is None:
        raise UserError(f"{name} has images of many sizes, so it is streamed; remove --input resident")
    if rand_augment.operations:
        raise UserError(f"--rand-augment is for streamed images, but {name} is resident; add --input stream")
    return load(name, **common)
