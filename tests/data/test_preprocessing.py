import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from mnv2_jax.data.preprocessing import (
    PREPROCESSING,
    Preprocessing,
    describe_preprocessing,
    find_preprocessing,
    preprocess,
    preprocessing_from_json,
    read_image,
    view_of,
)
from mnv2_jax.errors import UserError

GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 2), np.arange(0, 160, 2), [7])[:2], -1)[:, :, 0].astype(np.uint8)
RGB = Image.fromarray(np.dstack([GRADIENT, np.full(GRADIENT.shape[:2], 7, np.uint8)]))  # 120 by 80 pixels


@pytest.mark.parametrize("name", list(PREPROCESSING))
def test_shape_type_and_range(name):
    x = preprocess(RGB, PREPROCESSING[name], 32)
    assert (x.shape, x.dtype) == ((32, 32, 3), np.float32)
    assert preprocess(RGB.convert("L"), PREPROCESSING[name], 32).shape == (32, 32, 1)
    assert "32 pixels" in PREPROCESSING[name].describe(32) or "32 by 32" in PREPROCESSING[name].describe(32)
    black, white = (preprocess(Image.new("RGB", (50, 40), c), PREPROCESSING[name], 32) for c in ("black", "white"))
    mean, std = PREPROCESSING[name].mean, PREPROCESSING[name].std
    np.testing.assert_allclose(black[0, 0], [-m / s for m, s in zip(mean, std, strict=True)], rtol=1e-6)
    np.testing.assert_allclose(white[9, 9], [(1 - m) / s for m, s in zip(mean, std, strict=True)], rtol=1e-5)


def test_an_image_of_the_network_s_size_is_only_scaled_where_nothing_is_cropped():
    x = preprocess(RGB.resize((32, 32)), PREPROCESSING["keras"], 32)
    np.testing.assert_allclose(x, np.asarray(RGB.resize((32, 32)), np.float32) / 127.5 - 1, atol=1e-6)


def test_what_each_geometry_sees():
    """Red increases from 0 to 238 over the width, green from 0 to 158 over the height."""

    def seen(name):
        x = (
            preprocess(RGB, PREPROCESSING[name], 32) * np.float32(PREPROCESSING[name].std)
            + np.float32(PREPROCESSING[name].mean)
        ) * 255
        return x[0, 0, 0], x[0, -1, 0], x[0, 0, 1], x[-1, 0, 1]

    np.testing.assert_allclose(seen("keras"), (2, 236, 1, 157), atol=3)  # all of it
    np.testing.assert_allclose(seen("tensorflow"), (14, 217, 10, 143), atol=3)  # 87.5 % of each side
    np.testing.assert_allclose(seen("transformers"), (50, 188, 10, 148), atol=4)  # a square of 70 pixels


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_kind_become_rgb_or_grey(mode, tmp_path):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    RGB.convert(mode).save(path)
    assert read_image(path).mode == "RGB"
    assert read_image(path, channels=1).mode == "L"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_files_of_any_kind(suffix, tmp_path):
    RGB.save(tmp_path / f"x.{suffix}")
    assert read_image(tmp_path / f"x.{suffix}").size == (120, 80)


DEEP = np.linspace(0, 65535, 48).reshape(6, 8)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("png", DEEP.astype(np.uint16)),
        ("tif", DEEP.astype(np.uint16)),
        ("tif", DEEP.astype(np.int32)),
        ("tif", (DEEP / 65535).astype(np.float32)),
    ],
    ids=["png-16", "tif-16", "tif-32", "tif-float"],
)
def test_more_than_eight_bits_are_scaled_not_cut_off(tmp_path, suffix, values):
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    found = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    expected = DEEP.astype(int) >> 8 if values.max() > 1 else np.rint(values * 255)
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"x.{suffix}", 1)), expected)


def test_values_of_which_it_is_not_said_what_is_white_are_refused(tmp_path):
    for values in (
        np.full((4, 4), 255, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), -1, np.int32),
    ):
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(UserError, match=r"x.tif has values from .* expected 0 \(black\) to (1|65535) \(white\)"):
            read_image(tmp_path / "x.tif")


def test_transparent_pixels_have_the_colour_that_is_stored_for_them(tmp_path):
    """For an alpha channel, a palette with one transparent entry, and a palette with an opacity per entry."""
    clear = RGB.convert("RGBA")
    clear.putalpha(Image.fromarray(np.arange(80 * 120, dtype=np.uint8).reshape(80, 120)))
    palette = RGB.quantize(16)
    for name, image, options in (
        ("rgba", clear, {}),
        ("la", clear.convert("LA"), {}),
        ("entry", palette, {"transparency": 3}),
        ("entries", palette, {"transparency": bytes(range(16))}),
    ):
        image.save(tmp_path / f"{name}.png", **options)
        expected = np.asarray(image.convert("RGBA"))[..., :3]
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"{name}.png")), expected, err_msg=name)


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "CMYK", "P"])
def test_colours_become_rgb_as_pillow_converts_them(tmp_path, mode):
    RGB.convert(mode).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.tif")), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    RGB.save(tmp_path / f"x.{suffix}", exif=exif)
    with Image.open(tmp_path / f"x.{suffix}") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"x.{suffix}")), np.asarray(expected))
    # The orientation of a TIFF is not EXIF; Pillow always applies it.
    as_stored = read_image(tmp_path / f"x.{suffix}", upright=False)
    assert as_stored.size == (expected.size if suffix == "tif" else (120, 80))


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    RGB.save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(tmp_path / "x.jpg").size == (120, 80)


def test_what_is_no_image(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="x.png cannot be read as an image"):
        read_image(tmp_path / "x.png")
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(
        UserError, match="x.heic cannot be read as an image: .heic is not supported; convert it to JPEG"
    ):
        read_image(tmp_path / "x.heic")
    RGB.save(tmp_path / "y.png")
    (tmp_path / "y.png").write_bytes((tmp_path / "y.png").read_bytes()[:200])
    with pytest.raises(UserError, match="y.png cannot be read as an image"):
        read_image(tmp_path / "y.png")
    RGB.resize((500, 2)).save(tmp_path / "strip.png")
    with pytest.raises(UserError, match="strip.png is 500 by 2 pixels; the longer side may be at most"):
        read_image(tmp_path / "strip.png")
    RGB.save(tmp_path / "z.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="z.png cannot be read as an image"):
        read_image(tmp_path / "z.png")


OWN = Preprocessing("resize", 0.5, "lanczos", (0.25, 0.25, 0.25), (1.0, 1.0, 1.0), half_pixel="down")


def test_a_preprocessing_of_its_own_survives_json():
    assert preprocessing_from_json(json.loads(json.dumps(dataclasses.asdict(OWN)))) == OWN
    assert preprocessing_from_json("keras") == "keras"
    assert find_preprocessing(OWN) is OWN
    for value in (
        "vgg",
        {"method": "resize"},
        {**dataclasses.asdict(OWN), "more": 1},
        {**dataclasses.asdict(OWN), "crop": 2},
    ):
        with pytest.raises(ValueError, match="unknown preprocessing|is not a preprocessing|crop must be"):
            preprocessing_from_json(value)


def test_a_preprocessing_says_what_it_does():
    said = "whole image lanczos to 64 by 64 pixels, central 32 pixels, mean (0.25, 0.25, 0.25), std (1.0, 1.0, 1.0)"
    assert describe_preprocessing(OWN, 32) == f"custom: {said}"
    assert describe_preprocessing("transformers", 224).startswith(
        "transformers: shorter side bilinear to 256, central 224"
    )


@pytest.mark.parametrize(
    "changes",
    [{"crop": 0}, {"std": (0, 1, 1)}, {"mean": (1,)}],
)
def test_values_that_no_images_are_prepared_with_are_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(OWN, **changes)


@pytest.mark.parametrize(("half_pixel", "left"), [("even", 2), ("down", 1)])
def test_where_a_crop_begins_that_cannot_be_in_the_middle(half_pixel, left):
    how = Preprocessing("resize_then_crop", 1.0, "nearest", (0.0,), (1.0,), half_pixel=half_pixel)
    image = Image.fromarray(np.arange(11, dtype=np.uint8)[None].repeat(8, 0))
    np.testing.assert_allclose(preprocess(image, how, 8)[0, :, 0] * 255, np.arange(left, left + 8), atol=1e-4)
    assert view_of(image, how, 8).left == left
