"""The table of data sets. It imports neither TFDS nor NumPy, so that command lines can list it without them.

A data set is a TFDS set in array_record format in the TFDS data directory (`~/tensorflow_datasets`, or the
environment variable TFDS_DATA_DIR). It is read through TFDS data sources, without TensorFlow. Beyond the catalog,
any classification set of TFDS that is prepared there can be used, and "folder": the user's own images, one subfolder
per class. `mnv2_jax.data.prepare` finds and prepares data sets.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

FOLDER = "folder"

OnBadImage = Literal["stop", "skip"]
"""What a stream does with a damaged image."""

ExifOrientation = Literal["apply", "ignore"]
"""Whether to rotate an image upright by its EXIF orientation, or to take it as stored."""


def describe_orientation(how: ExifOrientation) -> str:
    """Describe the setting in words."""
    if how == "apply":
        return "photographs are rotated upright by their EXIF tag (--exif-orientation ignore keeps them as stored)"
    return "photographs are used as stored, whatever their EXIF tag says"


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one data set is found, split and prepared.

    Attributes:
        title: name in figures and reports.
        builder: TFDS name, or "package.module:Class" for one of our own TFDS builders.
        image_size: side in pixels to which the images are scaled.
        source_size: side in pixels of the original images; None if they vary in size.
        flip: whether a mirrored image shows the same class.
        shift: largest shift of a training image in pixels, along each axis; None for random crops of any size, as for
            ImageNet.
        resident: whether it is kept on the device by default.
        takes_files: whether the builder reads, and checks, a folder of the user's files (`data_files`).
        train, validation, test: TFDS split names. Settings are chosen on the validation split, a part of the
            training data that no run trains on; the test split is read once, at the end of a run.
    """

    title: str
    builder: str
    image_size: int
    source_size: int | None
    flip: bool
    shift: int | None
    resident: bool = True
    takes_files: bool = False
    train: str = "train[10%:]"
    validation: str = "train[:10%]"
    test: str = "test"


CATALOG: dict[str, Entry] = {
    "digits": Entry(
        "handwritten digits (scikit-learn)",
        "mnv2_jax.data.builders.digits:Digits",
        image_size=20,
        source_size=8,
        flip=False,
        shift=2,
    ),
    "fashion_mnist": Entry(
        "Fashion-MNIST",
        "mnv2_jax.data.builders.fashion_mnist:FashionMNIST",
        image_size=28,
        source_size=28,
        flip=True,
        shift=2,
        takes_files=True,
    ),
    "cifar10": Entry("CIFAR-10", "cifar10", image_size=32, source_size=32, flip=True, shift=4),
    "cifar100": Entry("CIFAR-100", "cifar100", image_size=32, source_size=32, flip=True, shift=4),
    "imagenette": Entry(
        "Imagenette", "imagenette", 224, None, flip=True, shift=None, resident=False, test="validation"
    ),
    "imagenet2012": Entry(
        "ImageNet (ILSVRC 2012)",
        "imagenet2012",
        224,
        None,
        flip=True,
        shift=None,
        resident=False,
        # 12,811 images, which leaves 99% to train on.
        train="train[1%:]",
        validation="train[:1%]",
        test="validation",
    ),
}

if TYPE_CHECKING:
    ResidentName = str
else:
    ResidentName = Literal[tuple(name for name, entry in CATALOG.items() if entry.resident)]
    """Sets that are small enough to live on the device."""
