import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from samples import encoded

from mnv2_jax.data import jpeg
from mnv2_jax.data.jpeg import Picture, decode, read_frame
from mnv2_jax.data.preprocessing import read_image
from mnv2_jax.data.sources import Example
from mnv2_jax.errors import UserError


def jpeg_of(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return Example(buffer.getvalue(), 0, "picture")


@pytest.fixture(scope="module")
def pixels():
    noise = np.random.default_rng(0).integers(0, 40, (150, 110, 3))
    return (noise + np.linspace(0, 200, 150)[:, None, None]).astype(np.uint8)


def test_the_size_of_a_jpeg_is_in_its_header():
    assert read_frame(encoded(0, 48, 40))[:2] == (40, 48)
    progressive = io.BytesIO()
    Image.new("L", (7, 300)).save(progressive, "JPEG", progressive=True, comment=b"x" * 500)
    assert read_frame(progressive.getvalue())[:2] == (300, 7)
    assert read_frame(encoded(0, kind="PNG")) is None
    assert read_frame(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("divisor", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [dict(subsampling=0), dict(subsampling=1), dict(subsampling=2), dict(restart_marker_rows=1), dict(optimize=True)],
    ids=lambda options: "-".join(options),
)
def test_the_rows_that_are_asked_for_are_those_of_the_whole_image(pixels, options, channels, divisor):
    example = jpeg_of(pixels, quality=90, **options)
    whole = decode(example, channels, divisor).copy()
    assert whole.shape == (-(-150 // divisor), -(-110 // divisor), channels)
    for rows in (1, 16, 33, 100, 134):
        part = decode(example, channels, divisor, rows)
        assert part.shape == (-(-rows // divisor), *whole.shape[1:])
        # The last row of a reduced image may mix in rows of its block that were not asked for.
        sure = rows // divisor
        np.testing.assert_array_equal(part[:sure], whole[:sure])


def test_what_is_below_is_not_decoded(pixels, monkeypatch):
    sizes, real = [], simplejpeg.decode_jpeg

    def watched(content, *arguments, **options):
        sizes.append(simplejpeg.decode_jpeg_header(content)[:2])
        return real(content, *arguments, **options)

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", watched)
    decode(jpeg_of(pixels), 3, rows=40)
    decode(jpeg_of(pixels), 3, rows=140)  # too little to gain
    decode(jpeg_of(pixels, progressive=True), 3, rows=40)  # every pass covers all rows
    assert sizes == [(40, 110), (150, 110), (150, 110)]


def test_an_image_without_its_end_is_damaged_whatever_is_asked_of_it(pixels):
    example = jpeg_of(pixels, quality=95)
    for share in (0.3, 0.99):
        content = example.content[: int(share * len(example.content))]
        with pytest.raises(UserError, match="picture cannot be read as an image"):
            decode(Example(content, 0, "picture"), 3, rows=10)


def test_damage_above_what_is_asked_for_is_seen(pixels):
    """The data of the file ends too early, but its end marker is there."""
    content = jpeg_of(pixels, quality=95).content
    half = Example(content[: len(content) // 2] + jpeg.END_OF_IMAGE, 0, "half")
    assert decode(half, 3, rows=30).shape == (30, 110, 3)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "read_image", lambda name, *rest: read.append(name) or Image.new("RGB", (110, 150)))
        decode(half, 3, rows=120)
    assert read == ["half"]


# --- Orientation and colours -----------------------------------------------------------------------------


def turned(pixels, orientation, form, **options):
    """Return a JPEG with an orientation in EXIF of either byte order, or only in XMP."""
    exif = Image.Exif()
    exif.endian = "<" if form == "little" else ">"
    exif[0x0110] = "a camera"
    if form == "xmp":
        text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
        return jpeg_of(pixels, xmp=text.encode(), **options)
    exif[0x0112] = orientation
    return jpeg_of(pixels, exif=exif, **options)


@pytest.mark.parametrize("form", ["little", "big", "xmp"])
@pytest.mark.parametrize("orientation", [*range(9), 77])
def test_a_part_is_one_of_the_upright_picture(pixels, orientation, form):
    example = turned(pixels, orientation, form, quality=95, subsampling=0)
    with Image.open(io.BytesIO(example.content)) as file:
        upright = ImageOps.exif_transpose(file)
    stored = decode(example, 3).copy()
    plain = Example(example.content, 0, "x", upright=False)
    assert Picture(plain, 3).part(0, 0, 150, 110, smallest=150).tobytes() == stored.tobytes()
    height, width = Picture(example, 3).height, Picture(example, 3).width
    assert (width, height) == upright.size
    whole = Picture(example, 3).part(0, 0, height, width, smallest=150).copy()
    assert np.abs(whole.astype(int) - np.asarray(upright, int)).max() <= 4  # libjpeg's fast DCT
    for top, left, rows, columns in ((0, 0, 20, 30), (17, 5, 64, 48), (90, 60, 20, 50), (0, 10, height, 41)):
        part = Picture(example, 3).part(top, left, rows, columns, smallest=150)
        np.testing.assert_array_equal(part, whole[top : top + rows, left : left + columns])
    half = Picture(example, 3).part(16, 32, 64, 48, smallest=24)
    assert half.shape == (32, 24, 3)
    expected = whole[16:80, 32:80].reshape(32, 2, 24, 2, 3).mean((1, 3))
    # If the stored image's center is not on a pixel edge, the reduced image can be shifted by a pixel.
    assert np.abs(half - expected).mean() < 6


def test_exif_that_is_cut_short_or_no_exif_turns_nothing(pixels):
    whole = turned(pixels, 6, "big").content
    start = whole.index(b"Exif")
    for length in range(40):
        damaged = whole[: start + length] + b"\xff" * (40 - length) + whole[start + 40 :]
        picture = Picture(Example(damaged, 0, "x"), 3)
        assert (picture.height, picture.width) in ((150, 110), (110, 150))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_colours_are_those_of_pillow(mode, channels):
    """Adobe CMYK files are stored inverted; both libraries must handle that."""
    smooth = np.linspace(0, 255, 64)
    image = np.stack([np.tile(smooth, (64, 1)), np.tile(smooth[:, None], (1, 64)), np.full((64, 64), 90)], -1)
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).convert(mode).save(buffer, "JPEG", quality=95, subsampling=0)
    found = decode(Example(buffer.getvalue(), 0, "x"), channels).astype(int)
    expected = np.asarray(read_image("x", channels, buffer.getvalue()), int).reshape(64, 64, channels)
    assert np.abs(found - expected).max() <= 4


# --- Files that libjpeg complains of ---------------------------------------------------------------------


def markers(content):
    """Return (position, name) of all markers: up to the scan, restart markers in it, and the end."""
    position, found = 2, []
    while content[position + 1] != 0xDA:
        found.append((position, f"{content[position + 1]:02x}"))
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    found.append((position, "da"))
    for at in range(position + 2, len(content) - 1):
        if content[at] == 0xFF and (0xD0 <= content[at + 1] <= 0xD7 or content[at + 1] == 0xD9):
            found.append((at, f"{content[at + 1]:02x}"))
    return found


def pictures():
    """Return a red image, and a blue one in all odd forms that a file may have; the blue image is intact in each."""
    rows = np.linspace(0, 90, 160)[:, None, None] * np.ones((1, 120, 3))
    red, blue = ((rows + np.array(color)).astype(np.uint8) for color in ((160, 0, 0), (0, 0, 160)))
    plain, restarts = (jpeg_of(blue, quality=95, **options).content for options in ({}, {"restart_marker_rows": 2}))
    forms = {}
    for name, content in (("plain", plain), ("restarts", restarts)):
        seen = set()
        for position, marker in markers(content):
            if marker in seen:
                continue
            seen.add(marker)
            for extra, bytes_ in (("extraneous", bytes([1, 2, 3, 0])), ("fill", bytes([0xFF] * 3))):
                forms[f"{name}-{marker}-{extra}"] = content[:position] + bytes_ + content[position:]
    forms["two-pictures"] = plain + jpeg_of(red, quality=95).content
    forms["trailing-bytes"] = plain + b"\0" * 64
    return jpeg_of(red, quality=95), forms


RED, FORMS = pictures()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [20, 100, None])
def test_pixels_are_never_those_of_the_image_before(form, rows):
    """Extra bytes make libjpeg stop before it writes a row, so memory would still hold the red image."""
    content = FORMS[form]
    decode(RED, 3)
    if "e0-extraneous" in form:  # Pillow does not accept bytes between a JPEG's first two markers
        with pytest.raises(UserError, match="blue cannot be read as an image"):
            decode(Example(content, 0, "blue"), 3, rows=rows)
        return
    with Image.open(io.BytesIO(content)) as file:
        expected = np.asarray(file.convert("RGB"), int)
    found = decode(Example(content, 0, "blue"), 3, rows=rows).astype(int)
    count = min(len(found), rows or 160)
    assert count >= (rows or 160)
    assert np.abs(found[:count] - expected[:count]).max() <= 4  # libjpeg's fast DCT
