import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from samples import encoded

from mnv2_jax.data import jpeg
from mnv2_jax.data.batch import CLASSES
from mnv2_jax.data.preprocessing import read_image
from mnv2_jax.data.sources import Example
from mnv2_jax.data.transforms import (
    Augmentation,
    RandomCrop,
    RandomShift,
    augment,
    crop_and_scale,
    distort_color,
    scale_and_shift,
)

# --- Crops of a stream -----------------------------------------------------------------------------------


def cropped(example, crop, size):
    """Return a crop in RGB."""
    output = np.zeros((size, size, 3), np.uint8)
    crop_and_scale(example, crop, False, np.random.default_rng(0), output)
    return output


def test_random_crops_have_the_areas_and_shapes_that_they_should():
    crop, generator = RandomCrop(0.05, (0.75, 1.33)), np.random.default_rng(0)
    boxes = np.array([crop.box(generator, 300, 400) for _ in range(2000)])
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= 300).all()
    assert (left + columns <= 400).all()
    area, aspect = rows * columns / 120_000, columns / rows
    assert 0.049 < area.min() < 0.07
    assert 0.9 < area.max() <= 1
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36
    # A strip too narrow for any such crop is taken whole.
    assert RandomCrop(0.9).box(generator, 10, 1000) == (0, 0, 10, 1000)


def test_a_large_image_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    """Half if the crop is twice the target, and the result is the same image."""
    smooth = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.stack([np.tile(smooth, (512, 1)), np.tile(smooth[:, None], (1, 512)), np.full((512, 512), 90)], -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    example = Example(buffer.getvalue(), 0, "large")
    divisors, decode = [], jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda e, c, d, *rest: divisors.append(d) or decode(e, c, d, *rest))

    class Fixed(RandomCrop):
        def box(self, generator, height, width):
            return 64, 128, 256, 256

    small = cropped(example, Fixed(), 64)
    assert divisors == [4]
    expected = np.asarray(Image.fromarray(pixels.astype(np.uint8)[64:320, 128:384]).resize((64, 64)))
    assert np.abs(small.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_crop_of_a_turned_image_is_one_of_the_upright_image(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, quality=95, subsampling=0)
    upright = read_image("x", 3, buffer.getvalue())
    lossless = io.BytesIO()
    upright.save(lossless, "PNG")
    for how in (RandomCrop(), RandomShift(3)):
        found, expected = np.zeros((2, 40, 40, 3), np.uint8)
        vary = crop_and_scale if isinstance(how, RandomCrop) else scale_and_shift
        for content, output in ((buffer.getvalue(), found), (lossless.getvalue(), expected)):
            view = vary(Example(content, 0, "x"), how, True, np.random.default_rng(5), output)
            assert (view.height, view.width) == (90, 60)
        assert np.abs(found.astype(int) - expected).mean() < 2  # libjpeg's fast DCT


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_kinds_of_images(kind):
    example = Example(encoded(3, kind=kind), 0, "image")
    image = cropped(example, RandomCrop(1.0, (1.2, 1.2)), 40)
    expected = np.asarray(read_image("image", 3, example.content).resize((40, 40), Image.Resampling.BILINEAR))
    assert image.shape == (40, 40, 3)
    assert np.abs(image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_other_modes_of_images(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (204, 102, 51)).convert(mode).save(buffer, "JPEG" if mode in ("L", "CMYK") else "PNG")
    image = cropped(Example(buffer.getvalue(), 0, "x"), RandomCrop(), 8)
    expected = {"L": (127, 127, 127)}.get(mode, (204, 102, 51))
    np.testing.assert_allclose(image.reshape(-1, 3), np.broadcast_to(expected, (64, 3)), atol=8)


# --- Inside the compiled step ----------------------------------------------------------------------------


def augmented(key, images, shift, flip):
    count = len(images)
    labels = jnp.arange(count)
    moved, targets = augment(key, labels, images, labels, Augmentation(shift, flip), CLASSES)
    np.testing.assert_array_equal(targets, labels)
    return moved


def test_augmentation_of_an_image_does_not_depend_on_the_size_of_the_batch(digits):
    key, images = jax.random.key(0), jnp.asarray(digits.train.images[:6])
    small, large = (augmented(key, images[:n], 2, True) for n in (3, 6))
    np.testing.assert_array_equal(small, large[:3])


def test_augmentation_moves_by_at_most_the_shift_and_mirrors_half():
    image = np.zeros((1, 9, 9, 1), np.uint8)
    image[0, 4, 3] = 200
    many = jnp.repeat(jnp.asarray(image), 400, 0)
    moved = np.asarray(augmented(jax.random.key(0), many, 2, True))
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 400
    assert set(rows) == {2, 3, 4, 5, 6}
    assert set(columns) == set(range(1, 8))  # 3 or, mirrored, 5; plus or minus 2
    unmoved = augmented(jax.random.key(0), jnp.asarray(image), 0, False)
    np.testing.assert_array_equal(unmoved, image)


def test_colors_are_varied_within_the_papers_bounds():
    grey = jnp.full((300, 1, 1, 3), 100, jnp.uint8)
    varied = distort_color(jax.random.key(0), jnp.arange(300), grey)
    # Grey has no saturation to change, so only brightness changes, equally in all channels.
    assert float(jnp.abs(varied - varied[..., :1]).max()) < 1e-3
    assert 67.9 < float(varied.min()) < 72
    assert 128 < float(varied.max()) < 132.1
    red = jnp.tile(jnp.array([200, 100, 100], jnp.uint8), (300, 1, 1, 1))
    varied = distort_color(jax.random.key(1), jnp.arange(300), red)
    spread = (varied[..., 0] - varied[..., 1]).ravel()
    assert 49 < float(spread.min()) < 60
    assert 140 < float(spread.max()) < 151
    part = distort_color(jax.random.key(1), jnp.arange(5, 9), red[:4])
    np.testing.assert_array_equal(part, varied[5:9])
