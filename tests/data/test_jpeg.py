import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from samples import encoded

from mnv2_jax.data import jpeg
from mnv2_jax.data.jpeg import decode, read_frame
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
        # The last row of a smaller one may take its pixels from a block's rows that are not asked for.
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
    decode(jpeg_of(pixels, progressive=True), 3, rows=40)  # has all rows in every pass
    assert sizes == [(40, 110), (150, 110), (150, 110)]


def test_an_image_without_its_end_is_damaged_whatever_is_asked_of_it(pixels):
    example = jpeg_of(pixels, quality=95)
    for share in (0.3, 0.99):
        content = example.content[: int(share * len(example.content))]
        with pytest.raises(UserError, match="picture cannot be read as an image"):
            decode(Example(content, 0, "picture"), 3, rows=10)


def test_damage_above_what_is_asked_for_is_seen(pixels):
    """A file whose data ends too early, but that has its end."""
    content = jpeg_of(pixels, quality=95).content
    half = Example(content[: len(content) // 2] + jpeg.END_OF_IMAGE, 0, "half")
    assert decode(half, 3, rows=30).shape == (30, 110, 3)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "read_image", lambda name, *rest: read.append(name) or Image.new("RGB", (110, 150)))
        decode(half, 3, rows=120)
    assert read == ["half"]
