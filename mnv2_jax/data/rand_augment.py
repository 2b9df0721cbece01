"""RandAugment: a few random operations on each training image, all at one magnitude.

Source: Cubuk et al., arXiv:1909.13719, with the operations and ranges of its code (tensorflow/tpu,
models/official/efficientnet/autoaugment.py), implemented with Pillow.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

GREY = 128
"""Fill value of pixels that move in and of cutout."""
SIDE = 224
"""Side of the images, in pixels, for which the source gives lengths."""


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """RandAugment of a training image, after cropping and scaling.

    Attributes:
        operations: number of operations per image; 0 for none.
        magnitude: their strength, from 0 to 30; the stated ranges are for 10. As in the source, most operations are
            weakest at 0, but solarize changes nothing from 10 on, posterize nothing from 20 on, and colour, contrast,
            brightness and sharpness nothing at 5.
    """

    operations: int = 0
    magnitude: float = 9.0

    def __call__(self, pixels: UInt8[np.ndarray, "size size c"], generator: np.random.Generator) -> None:
        """Augment a greyscale or RGB image in place; with 0 operations nothing is drawn from the generator."""
        if not self.operations:
            return
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        for drawn in generator.integers(len(OPERATIONS), size=self.operations):
            image = OPERATIONS[drawn](image, self.magnitude / 10, generator)
        pixels[:] = np.asarray(image).reshape(pixels.shape)


# Each takes an image, its strength (1 at magnitude 10), and the generator.
Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def enhanced(kind: type) -> Operation:
    """Return an operation that scales colour, contrast, brightness or sharpness by 0.1 + 0.18 * magnitude."""
    return lambda image, strength, generator: kind(image).enhance(0.1 + 1.8 * strength)


def rotated(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Rotate by 30 degrees at magnitude 10, in either direction."""
    return image.rotate(signed(30 * strength, generator), fillcolor=grey(image))


def moved(axis: int, shear: bool) -> Operation:
    """Return an operation that shears by 0.3, or shifts by 100 of 224 pixels, at magnitude 10, in either direction.

    `axis` is 0 for x and 1 for y.
    """

    def move(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
        rows = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        by = 0.3 * strength if shear else 100 * strength * image.width / SIDE
        rows[3 * axis + (1 - axis if shear else 2)] = signed(by, generator)
        return image.transform(image.size, Image.Transform.AFFINE, rows, fillcolor=grey(image))

    return move


def posterized(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Reduce values to 4 bits at magnitude 10, fewer below."""
    return ImageOps.posterize(image, min(8, max(1, int(4 * strength))))


def brightened_where_dark(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Add 110 at magnitude 10 to values below 128 (the source's SolarizeAdd)."""
    added = int(110 * strength)
    return image.point(
        [min(255, value + added) if value < 128 else value for value in range(256)] * len(image.getbands())
    )


def cut_out(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Cut out a grey square around a random pixel; its side is 80 of 224 pixels at magnitude 10."""
    reach = int(40 * strength * image.width / SIDE)
    x, y = (int(middle) for middle in generator.integers(image.width, size=2))
    if reach:
        image = image.copy()
        ImageDraw.Draw(image).rectangle((x - reach, y - reach, x + reach - 1, y + reach - 1), fill=grey(image))
    return image


def signed(value: float, generator: np.random.Generator) -> float:
    """Return the value or its negative, with probability 1/2 each."""
    return value if generator.integers(2) else -value


def grey(image: Image.Image) -> tuple[int, ...]:
    """Return the fill colour of an image."""
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
