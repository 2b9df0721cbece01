"""RandAugment: a few operations on each training image, drawn at random and of one strength.

Source: Cubuk et al., arXiv:1909.13719, with the operations and ranges of its code (tensorflow/tpu,
models/official/efficientnet/autoaugment.py), done by Pillow.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

GREY = 128
"""The value of pixels that move in, and of what is cut out."""
SIDE = 224
"""Of the images in pixels, for which lengths are given."""


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """How training images are varied after they are cropped and scaled.

    Attributes:
        operations: how many are done, one after the other; 0 for none.
        magnitude: their strength, from 0 to 30; 10 is the strength for which ranges are given. As in the source, some
            are weakest at 0 and others (posterize, solarize) at 10, and colours, contrast, brightness and sharpness
            are left as they are at 5.
    """

    operations: int = 0
    magnitude: float = 9.0

    def __call__(self, pixels: UInt8[np.ndarray, "size size c"], generator: np.random.Generator) -> None:
        """Vary an image, grey or RGB, in its place; nothing is drawn where there are no operations."""
        if not self.operations:
            return
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        for drawn in generator.integers(len(OPERATIONS), size=self.operations):
            image = OPERATIONS[drawn](image, self.magnitude / 10, generator)
        pixels[:] = np.asarray(image).reshape(pixels.shape)


# Each takes an image, its strength (1 at magnitude 10), and the generator.
Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def enhanced(kind: type) -> Operation:
    """Colours, contrast, brightness or sharpness by a factor from 0.1 to 1.9."""
    return lambda image, strength, generator: kind(image).enhance(0.1 + 1.8 * strength)


def rotated(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """By up to 30 degrees, to either side."""
    return image.rotate(signed(30 * strength, generator), fillcolor=grey(image))


def moved(axis: int, shear: bool) -> Operation:
    """Sheared by up to 0.3, or moved by up to 100 of 224 pixels, in either direction; `axis` is 0 for x and 1 for y."""

    def move(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
        rows = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        by = 0.3 * strength if shear else 100 * strength * image.width / SIDE
        rows[3 * axis + (1 - axis if shear else 2)] = signed(by, generator)
        return image.transform(image.size, Image.Transform.AFFINE, rows, fillcolor=grey(image))

    return move


def posterized(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """To 4 bits a value at magnitude 10, to fewer below."""
    return ImageOps.posterize(image, min(8, max(1, int(4 * strength))))


def brightened_where_dark(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Values below 128 grow by up to 110 (the source's SolarizeAdd)."""
    added = int(110 * strength)
    return image.point(
        [min(255, value + added) if value < 128 else value for value in range(256)] * len(image.getbands())
    )


def cut_out(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """A grey square around a random pixel, of up to 80 of 224 pixels a side."""
    reach = int(40 * strength * image.width / SIDE)
    x, y = (int(middle) for middle in generator.integers(image.width, size=2))
    if reach:
        image = image.copy()
        ImageDraw.Draw(image).rectangle((x - reach, y - reach, x + reach - 1, y + reach - 1), fill=grey(image))
    return image


def signed(value: float, generator: np.random.Generator) -> float:
    """The value or its negative, as likely."""
    return value if generator.integers(2) else -value


def grey(image: Image.Image) -> tuple[int, ...]:
    """The colour of pixels that move in."""
    return (GREY,) * len(image.getbands())


OPERATIONS: tuple[Operation, ...] = (
    lambda image, strength, generator: ImageOps.autocontrast(image),
    lambda image, strength, generator: ImageOps.equalize(image),
    lambda image, strength, generator: ImageOps.invert(image),
    rotated,
    posterized,
    lambda image, strength, generator: ImageOps.solarize(image, int(256 * strength)),
    enhanced(ImageEnhance.Color),
    enhanced(ImageEnhance.Contrast),
    enhanced(ImageEnhance.Brightness),
    enhanced(ImageEnhance.Sharpness),
    moved(0, shear=True),
    moved(1, shear=True),
    moved(0, shear=False),
    moved(1, shear=False),
    cut_out,
    brightened_where_dark,
)
"""In the order of the source."""
