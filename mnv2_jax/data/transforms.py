"""Augmentation of training images: crops, shifts, flips and colour, with the targets moved along.

Streamed images are cropped on the host, one at a time. Augmentation in the compiled step is at the end of the file.
"""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from mnv2_jax.data.batch import Move, Targets, View
from mnv2_jax.data.jpeg import Picture
from mnv2_jax.data.sources import Example

# Grain's threads provide the parallelism; OpenCV's would compete with them for the cores.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random crop of the image, scaled to a square (the Inception crop).

    Attributes:
        smallest: smallest area of a crop, as a fraction of the image's; the largest is 1.
        aspect: range of the crop's aspect ratio, width over height.

    Source: tensorflow/models, research/slim/preprocessing/inception_preprocessing.py.
    """

    smallest: float = 0.05
    aspect: tuple[float, float] = (0.75, 1.33)

    def box(self, generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) in pixels; the whole image if ten draws do not fit into it."""
        for _ in range(10):
            area = generator.uniform(self.smallest, 1) * height * width
            aspect = generator.uniform(*self.aspect)
            rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < rows <= height and 0 < columns <= width:
                top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
                return int(top), int(left), rows, columns
        return 0, 0, height, width


@dataclasses.dataclass(frozen=True)
class RandomShift:
    """The whole image scaled to a square, then shifted by up to `pixels` along each axis, padded with zeros."""

    pixels: int


Crop = RandomCrop | RandomShift


def crop_and_scale(
    example: Example,
    crop: RandomCrop,
    flip: bool,
    generator: np.random.Generator,
    output: UInt8[np.ndarray, "size size c"],
) -> View:
    """Decode, crop and scale an image into `output`; a JPEG is decoded only at the size and rows that are needed."""
    size, _, channels = output.shape
    picture = Picture(example, channels)
    top, left, rows, columns = crop.box(generator, picture.height, picture.width)
    part = picture.part(top, left, rows, columns, smallest=size)
    write(cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR), flip, output)
    return View(picture.height, picture.width, top, left, rows, columns, flip, size)


def write(image: UInt8[np.ndarray, "size size *c"], flip: bool, output: UInt8[np.ndarray, "size size c"]) -> None:
    """Copy an image into a batch, mirrored if `flip`; OpenCV mirrors faster than NumPy."""
    if flip:
        image = cv2.flip(image, 1)
    output[:] = image.reshape(output.shape)


def scale_and_shift(
    example: Example,
    shift: RandomShift,
    flip: bool,
    generator: np.random.Generator,
    output: UInt8[np.ndarray, "size size c"],
) -> View:
    """Decode, scale and shift an image into `output`."""
    size, _, channels = output.shape
    picture = Picture(example, channels)
    height, width = picture.height, picture.width
    image = picture.part(0, 0, height, width, smallest=max(height, width))
    if (height, width) != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(output.shape)
    margin = shift.pixels
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    top, left = generator.integers(2 * margin + 1, size=2)
    write(padded[top : top + size, left : left + size], flip, output)
    y, x = int(top - margin) * height / size, int(left - margin) * width / size
    return View(height, width, y, x, height, width, flip, size)


# --- Inside the compiled step ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A shift of training images by up to `shift` pixels along each axis; if `flip`, mirrored with probability 1/2."""

    shift: int
    flip: bool


def augment(
    key: Key[Array, ""],
    index: Int[Array, " n"],
    images: UInt8[Array, "n h w c"],
    targets: PyTree,
    augmentation: Augmentation,
    how: Targets,
) -> tuple[UInt8[Array, "n h w c"], PyTree]:
    """Shift and mirror each image and its targets, depending only on the key and the index in the global batch."""
    _, height, width, channels = images.shape
    shift = augmentation.shift
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))

    def vary(one, image, own):
        shift_key, flip_key = jax.random.split(jax.random.fold_in(key, one))
        corner = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))
        flip = augmentation.flip & jax.random.bernoulli(flip_key)
        move = Move(shift - corner[0], shift - corner[1], flip)
        return jnp.where(flip, image[:, ::-1], image), how.move(own, move, height)

    return jax.vmap(vary)(index, padded, targets)


def distort_color(
    key: Key[Array, ""], index: Int[Array, " n"], images: UInt8[Array, "n h w c"]
) -> Float[Array, "n h w c"]:
    """Change each image's brightness and saturation, in random order, drawn for its index; values in 0 to 255.

    Source: `distort_color` of slim/preprocessing/inception_preprocessing.py in its fast mode: brightness by up to
    32 of 255, saturation by a factor from 0.5 to 1.5.
    """

    def brighten(image, delta):
        return image + delta

    def saturate(image, factor):
        # In HSV the value, the largest channel, stays; the other channels move away from it (down to 0) or closer.
        value, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
        most = jnp.where(value > low, value / jnp.maximum(value - low, 1e-6), factor)
        return value - jnp.minimum(factor, jnp.maximum(most, 0)) * (value - image)

    def distort(one, image):
        order_key, delta_key, factor_key = jax.random.split(jax.random.fold_in(key, one), 3)
        delta = jax.random.uniform(delta_key, minval=-32, maxval=32)
        factor = jax.random.uniform(factor_key, minval=0.5, maxval=1.5)
        one_way, other = saturate(brighten(image, delta), factor), brighten(saturate(image, factor), delta)
        return jnp.clip(jnp.where(jax.random.bernoulli(order_key), one_way, other), 0, 255)

    return jax.vmap(distort)(index, images.astype(jnp.float32))
