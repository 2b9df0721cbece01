"""Evaluation preprocessing, from an image file to a network's input, as each source of weights does it."""

import dataclasses
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from PIL import ExifTags, Image, UnidentifiedImageError

from mnv2_jax.data.batch import Normalization, View
from mnv2_jax.data.folder import UNREADABLE, printable
from mnv2_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

MOST_ELONGATED = 100
"""Largest ratio of longer to shorter side; scaling up the shorter side of a strip would take too much memory."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transform that turns a stored image upright, by EXIF orientation."""


Method = Literal["crop_then_resize", "resize_then_crop", "resize"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "sampled_bilinear"]
HalfPixel = Literal["even", "down"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square input.

    Attributes:
        method: "crop_then_resize" takes the central part and scales it to a square (TF-slim); "resize_then_crop"
            scales the shorter side and takes the central square (PyTorch); "resize" scales the whole image to a
            square, whatever its shape (Keras), and takes the central part of that.
        crop: fraction of each side that the crop keeps.
        interpolation: one of Pillow's filters, which antialias when downscaling (except "nearest");
            "sampled_bilinear" is TensorFlow 1's, which does not.
        mean, std: per channel, for values in 0 to 1.
        half_pixel: how an offset of half a pixel is rounded when the crop cannot be centred: to "even" as in PyTorch,
            "down" as in transformers.

    Raises:
        ValueError: for invalid values.
    """

    method: Method
    crop: float
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    half_pixel: HalfPixel = "even"

    def __post_init__(self) -> None:
        for name, kind in (("method", Method), ("interpolation", Interpolation), ("half_pixel", HalfPixel)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be greater than 0 and at most 1, got {self.crop}")
        numbers = np.array([*self.mean, *self.std], np.float64)
        if not len(self.mean) == len(self.std) in (1, 3) or not np.isfinite(numbers).all() or 0 in self.std:
            raise ValueError(
                f"mean and std must be 1 or 3 finite numbers each, with no std of 0, got {self.mean} and {self.std}"
            )

    def describe(self, resolution: int) -> str:
        """Describe the preprocessing in words."""
        interpolation, scaled = self.interpolation.replace("_", " "), self.scaled_side(resolution)
        geometry = {
            "crop_then_resize": f"central {self.crop:.1%} of each side, {interpolation} to {resolution} pixels",
            "resize_then_crop": f"shorter side {interpolation} to {scaled}, central {resolution} pixels",
            "resize": f"whole image {interpolation} to {scaled} by {scaled} pixels"
            + (f", central {resolution} pixels" if scaled != resolution else ""),
        }[self.method]
        if self.mean == self.std == HALF:
            return f"{geometry}, values in -1 to 1"
        # Rounded: what a file states for 0 to 255 has been divided by 255.
        mean, std = (tuple(float(f"{number:.7g}") for number in numbers) for numbers in (self.mean, self.std))
        return f"{geometry}, mean {mean}, std {std}"

    @property
    def normalization(self) -> Normalization:
        """The normalisation to the network's input range."""
        return Normalization(self.mean, self.std)

    def scaled_side(self, resolution: int) -> int:
        """Return the pixels to which the shorter side (each side for "resize") is scaled before the crop."""
        # The small term undoes rounding where the crop is a quotient of integers, such as 224 / 232.
        return int(resolution / self.crop + 1e-6)


PREPROCESSING: dict[str, Preprocessing] = {
    # tensorflow/models, research/slim/preprocessing/inception_preprocessing.py
    "tensorflow": Preprocessing("crop_then_resize", 0.875, "sampled_bilinear", HALF, HALF),
    # keras.applications.mobilenet_v2.preprocess_input, with the image loaded to the network's size.
    "keras": Preprocessing("resize", 1.0, "bilinear", HALF, HALF),
    # torchvision/models/mobilenetv2.py: IMAGENET1K_V1 scales to 256 pixels, V2 to 232.
    "torchvision": Preprocessing("resize_then_crop", 0.875, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
    "torchvision_v2": Preprocessing("resize_then_crop", 224 / 232, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
    # timm's default configurations.
    "timm": Preprocessing("resize_then_crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
    "timm_v1": Preprocessing("resize_then_crop", 0.875, "bicubic", HALF, HALF),
    # The image processor of Google's 224-pixel checkpoints.
    "transformers": Preprocessing("resize_then_crop", 0.875, "bilinear", HALF, HALF, half_pixel="down"),
}


def find_preprocessing(preprocessing: str | Preprocessing) -> Preprocessing:
    """Look up a name in `PREPROCESSING`; a `Preprocessing` is returned unchanged.

    Raises:
        ValueError: for an unknown name; the message lists those that are known.
    """
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    if preprocessing not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {preprocessing!r}; choose from {', '.join(PREPROCESSING)}")
    return PREPROCESSING[preprocessing]


def name_preprocessing(how: Preprocessing) -> str | Preprocessing:
    """Return its name in `PREPROCESSING`, or itself if it has none."""
    return next((name for name, known in PREPROCESSING.items() if known == how), how)


def describe_preprocessing(preprocessing: str | Preprocessing, resolution: int) -> str:
    """Describe a preprocessing in words, with its name."""
    name = preprocessing if isinstance(preprocessing, str) else "custom"
    return f"{name}: {find_preprocessing(preprocessing).describe(resolution)}"


def preprocessing_from_json(value: Any) -> str | Preprocessing:
    """Read a preprocessing from JSON: a name, or the `dataclasses.asdict` of a `Preprocessing`.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, Mapping):
        find_preprocessing(value)
        return value
    try:
        return Preprocessing(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{dict(value)} is not a preprocessing ({error})") from error


def of_convention(convention: str) -> str:
    """Return the name in `PREPROCESSING` that networks of this convention ("tensorflow", "pytorch") train with."""
    return "tensorflow" if convention == "tensorflow" else "torchvision"


def orientation_of(image: Image.Image) -> int:
    """Return an image's EXIF orientation, from 1 to 8; 1 (upright) if there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow calls its own EXIF support highly experimental
        return 1
    return value if value in TURNS else 1


def read_image(path: Path | str, channels: int = 3, content: bytes | None = None, upright: bool = True) -> Image.Image:
    """Read an image in any format that Pillow knows, as 8-bit greyscale (`channels` 1) or RGB.

    Only the first image of a file is read. Pillow converts the colours. Transparent pixels keep their stored colour.
    Integers of 16 or 32 bits must be 0 to 65535 and keep their upper 8 of 16 bits. Floating-point values must be
    0 (black) to 1 (white).

    Args:
        path: the file's path, or its name in messages if `content` is given.
        channels: 1 or 3.
        content: the file's content, if it has been read already.
        upright: apply the EXIF orientation. (Pillow always applies a TIFF's own orientation.)

    Raises:
        UserError: if it is no image, is damaged, is larger than Pillow considers safe, is too elongated, or has values
            outside these ranges.
    """
    name = printable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, say
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if content is None else io.BytesIO(content)) as file:
                if max(file.size) > MOST_ELONGATED * min(file.size):
                    raise UserError(
                        f"{name} is {file.width} by {file.height} pixels; the longer side may be at most "
                        f"{MOST_ELONGATED} times the shorter one"
                    )
                file.load()
                turn = TURNS.get(orientation_of(file)) if upright else None
                image = _as_bytes(file, name).convert("L" if channels == 1 else "RGB")
                return image if turn is None else image.transpose(turn)
    except UnidentifiedImageError as error:
        suffix = Path(path).suffix.lower()
        why = "it is damaged or in an unsupported format"
        if suffix in UNREADABLE:
            why = f"{suffix} is not supported; convert it to JPEG or PNG"
        raise UserError(f"{name} cannot be read as an image: {why}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} cannot be read as an image: {printable(str(error))}") from error


def _as_bytes(image: Image.Image, name: str) -> Image.Image:
    """Scale images with more than 8 bits to 8 bits, since Pillow would clip them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1 if image.mode == "F" else 65535
    if not ((values >= 0) & (values <= white)).all():
        raise UserError(
            f"{name} has values from {values.min():g} to {values.max():g}; expected 0 (black) to {white} (white), or "
            "an 8-bit image"
        )
    return Image.fromarray((np.rint(values * 255) if white == 1 else values // 256).astype(np.uint8))


def preprocess(
    image: Image.Image, how: Preprocessing, resolution: int
) -> Float[np.ndarray, "{resolution} {resolution} c"]:
    """Return the network's input for an image."""
    square = (resolution, resolution)
    if how.method == "crop_then_resize":
        top, left = _central_crop(image, how)
        image = image.crop((left, top, image.width - left, image.height - top))
        array = _resize(image, square, how)
    else:
        height, width, top, left = _resize_then_crop(image, how, resolution)
        array = _resize(image, (width, height), how)
        array = array[top : top + resolution, left : left + resolution]
    array = array.reshape(resolution, resolution, -1)
    return how.normalization.of_fractions(array)


def view_of(image: Image.Image, how: Preprocessing, resolution: int) -> View:
    """Return the view of an image that `preprocess` shows."""
    height, width = image.height, image.width
    if how.method == "crop_then_resize":
        top, left = map(float, _central_crop(image, how))
        rows, columns = height - 2 * top, width - 2 * left
    else:
        scaled_height, scaled_width, below, beside = _resize_then_crop(image, how, resolution)
        top, rows = (pixels * height / scaled_height for pixels in (below, resolution))
        left, columns = (pixels * width / scaled_width for pixels in (beside, resolution))
    return View(height, width, top, left, rows, columns, False, resolution)


def _central_crop(image: Image.Image, how: Preprocessing) -> tuple[int, int]:
    """Return (top, left) of the central crop of the unscaled image; the crop is symmetric."""
    left, top = (int((size - size * how.crop) / 2) for size in image.size)
    return top, left


def _resize_then_crop(image: Image.Image, how: Preprocessing, resolution: int) -> tuple[int, int, int, int]:
    """Return (height, width, top, left): the size to scale to, and the corner of the crop."""
    shorter, longer = sorted(image.size)
    target = how.scaled_side(resolution)
    other = int(target * longer / shorter) if how.method == "resize_then_crop" else target
    width, height = (target, other) if image.width <= image.height else (other, target)
    begin = round if how.half_pixel == "even" else int
    return height, width, begin((height - resolution) / 2), begin((width - resolution) / 2)


def _resize(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> np.ndarray:
    """Scale to `size` (width, height); return values in 0 to 1."""
    if how.interpolation == "sampled_bilinear":
        return _sampled_bilinear(np.asarray(image, np.float32) / 255, size)
    return np.asarray(image.resize(size, Image.Resampling[how.interpolation.upper()]), np.float32) / 255


def _sampled_bilinear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """TensorFlow 1's `resize_bilinear`: output pixel i is read at i * (input size / output size)."""
    for axis, target in ((0, size[1]), (1, size[0])):
        source = array.shape[axis]
        position = np.arange(target, dtype=np.float32) * np.float32(source / target)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = (position - low).reshape([-1 if index == axis else 1 for index in range(array.ndim)])
        array = array.take(low, axis) * (1 - share) + array.take(high, axis) * share
    return array.astype(np.float32)
