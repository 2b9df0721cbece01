"""The table of data sets. It imports neither TFDS nor NumPy, so that command lines can list it without them.

A set is a TFDS set in array_record form, in the TFDS data directory (`~/tensorflow_datasets`, or what the
environment variable TFDS_DATA_DIR says), and read through TFDS data sources without TensorFlow. What the
catalog does not list may be any classification set of TFDS that is prepared there, or "folder": the user's own
images, a subfolder a class. `mnv2_jax.data.prepare` finds and prepares them.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

FOLDER = "folder"

OnBadImage = Literal["stop", "skip"]
"""What a stream does about a damaged image."""

ExifOrientation = Literal["apply", "ignore"]
"""Whether an image is turned upright as its EXIF orientation says, or taken as it is stored."""


def describe_orientation(how: ExifOrientation) -> str:
    """In words."""
    if how == "apply":
        return "photographs are turned upright as their EXIF says (--exif-orientation ignore leaves them)"
    return "photographs are taken as they are stored, whatever orientation their EXIF says"


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one data set is found, split and prepared.

    Attributes:
        title: for figures and reports.
        builder: its name in TFDS, or "package.module:Class" of a TFDS builder of our own.
        image_size: side in pixels to which the images are scaled.
        source_size: side in pixels of the images before they were scaled; None where they are of many sizes.
        flip: whether a mirrored image shows the same class.
        shift: how many pixels an image may be moved in training, in both directions; None where training takes
            random crops of any size instead, as for ImageNet.
        resident: whether it lives on the device unless asked otherwise.
        takes_files: whether the builder reads a folder of the user's files, `data_files`, which it checks first.
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
        image_size=28,
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
        # 12,811 images, so that 99 % are left to train on.
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
