"""Decode images. Of a JPEG only what is needed is decoded: at reduced size, and only down to the last row needed."""

import hashlib
import re
import threading
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags

from mnv2_jax.data.preprocessing import read_image
from mnv2_jax.data.sources import Example

MOST_PIXELS = 1 << 26
"""Larger JPEGs are decoded by Pillow, which refuses decompression bombs."""

END_OF_IMAGE = b"\xff\xd9"
FEWEST_ROWS = 16
"""Rows are skipped only if there are at least this many: two rows of blocks, or one with subsampled chroma."""
UNWRITTEN = np.frombuffer(hashlib.sha512(b"unwritten").digest(), np.uint8)
"""Sentinel at the end of the last row: still there if the decoder has not written that row."""

_thread = threading.local()


class Frame(NamedTuple):
    """The frame header of a JPEG.

    Attributes:
        height, width: size in pixels.
        position: offset of the height field in the file, in bytes.
        sequential: whether rows are stored one after the other, as in most files; False if progressive.
    """

    height: int
    width: int
    position: int
    sequential: bool


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, first byte, first byte after it) of every segment of a JPEG's header; nothing if it is no JPEG."""
    position = 2 if content[:2] == b"\xff\xd8" else len(content)
    while position + 9 <= len(content) and content[position] == 0xFF:
        after = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        yield content[position + 1], position + 4, after
        position = after


def read_frame(content: bytes) -> Frame | None:
    """Read a JPEG's frame header; None if it is no JPEG."""
    for marker, first, _ in _segments(content):
        # All start-of-frame markers; C4, C8 and CC mean something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at : at + 2], "big") for at in (first + 1, first + 3))
            return Frame(height, width, first + 1, marker in (0xC0, 0xC1))
    return None


def read_orientation(content: bytes, frame: Frame) -> int:
    """Read a JPEG's orientation from EXIF or else XMP data before its frame, as Pillow does; 1 if there is none.

    Pillow takes 0.1 ms for this, a tenth of the decoding time.
    """
    found = 1
    for marker, first, after in _segments(content[: frame.position]):
        if marker != 0xE1:
            continue
        if content.startswith(b"Exif\0\0", first):
            stated = _orientation_in_exif(content[first + 6 : after])
            if stated is not None:
                return stated
        elif content.startswith(b"http://ns.adobe.com/xap/1.0/\0", first):
            match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', content[first:after])
            found = int(match[1]) if match else found
    return found


def _orientation_in_exif(content: bytes) -> int | None:
    """Read the orientation from EXIF; None if it has none.

    EXIF is a TIFF file: a header, then a table of tags with 12 bytes per entry (tag, type, number of values, value).
    """
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    table = int.from_bytes(content[4:8], order)
    entries = int.from_bytes(content[table : table + 2], order)
    tag = int(ExifTags.Base.Orientation).to_bytes(2, order)
    for at in range(table + 2, min(table + 2 + 12 * entries, len(content) - 11), 12):
        if content[at : at + 2] == tag:
            size = {3: 2, 4: 4}.get(int.from_bytes(content[at + 2 : at + 4], order), 0)  # 16 bits or 32
            return int.from_bytes(content[at + 8 : at + 8 + size], order)
    return None


class Turn(NamedTuple):
    """How to turn a stored image upright: transpose, then flip.

    Attributes:
        exchanged: whether rows and columns are exchanged.
        upside_down, mirrored: whether the order of the rows, or of the columns, is then reversed.
    """

    exchanged: bool
    upside_down: bool
    mirrored: bool

    def __call__(self, stored: UInt8[np.ndarray, "_ _ c"]) -> UInt8[np.ndarray, "_ _ c"]:
        """Turn an image, or a part of one, upright. OpenCV is faster than NumPy here."""
        image = cv2.transpose(stored) if self.exchanged else stored
        if self.upside_down or self.mirrored:
            image = cv2.flip(image, -1 if self.upside_down and self.mirrored else int(self.mirrored))
        return image.reshape(*image.shape[:2], stored.shape[2])


UPRIGHT = Turn(False, False, False)
TURNS = {
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
"""The turn for each EXIF orientation."""


class Picture:
    """An encoded image, upright. `part` decodes only the crop that is asked for.

    Args:
        example: its `content` is an image file.
        channels: 3 for RGB, 1 for greyscale.

    Attributes:
        height, width: size of the upright image in pixels.

    Raises:
        UserError: if the image is damaged and not a JPEG (a JPEG is decoded later); the message names it.
    """

    def __init__(self, example: Example, channels: int):
        self._example, self._channels, self._turn = example, channels, UPRIGHT
        self.frame = read_frame(example.content)
        if self.frame is None:
            self._whole = _decode_by_pillow(example, channels, 1, example.upright)
            self.height, self.width = self._whole.shape[:2]
            return
        if example.upright:
            self._turn = TURNS.get(read_orientation(example.content, self.frame), UPRIGHT)
        self.height, self.width = self.frame[:2][:: -1 if self._turn.exchanged else 1]

    def part(self, top: int, left: int, rows: int, columns: int, smallest: int) -> UInt8[np.ndarray, "h w c"]:
        """Decode a crop. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop's sides stay at least `smallest`.

        Returns:
            Pixels in a buffer that the next call in the same thread overwrites.

        Raises:
            UserError: if the image is damaged; the message names it.
        """
        if self.frame is None:
            return self._whole[top : top + rows, left : left + columns]
        divisor = 1
        while divisor < 8 and min(rows, columns) >= 2 * divisor * smallest:
            divisor *= 2
        # From upright coordinates to those of the stored image.
        if self._turn.upside_down:
            top = self.height - top - rows
        if self._turn.mirrored:
            left = self.width - left - columns
        if self._turn.exchanged:
            top, left, rows, columns = left, top, columns, rows
        image = decode(self._example, self._channels, divisor, top + rows, self.frame)
        part = image[top // divisor : -(-(top + rows) // divisor), left // divisor : -(-(left + columns) // divisor)]
        return self._turn(part)


def decode(
    example: Example, channels: int, divisor: int = 1, rows: int | None = None, frame: Frame | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Decode an image to RGB or greyscale as it is stored; its EXIF orientation is not applied.

    Args:
        example: its `content` is an image file.
        channels: 3 or 1.
        divisor: decode at 1/divisor of the size: 1, 2, 4 or 8.
        rows: number of rows needed, from the top; more may be returned. Damage below them goes unnoticed, unless the
            end of the file is missing.
        frame: the JPEG's frame header, if it has been read already.

    Returns:
        Pixels in a buffer that the next call in the same thread overwrites.

    Raises:
        UserError: if the image is damaged; the message names it.
    """
    frame = frame or read_frame(example.content)
    if frame is None or frame.height * frame.width > MOST_PIXELS:
        return _decode_by_pillow(example, channels, divisor)
    content, height, width = example.content, -(-frame.height // divisor), -(-frame.width // divisor)
    # If the end is missing, decode the whole image, so that the damage is reported.
    whole = not frame.sequential or not content.endswith(END_OF_IMAGE)
    if rows is not None and rows <= frame.height - FEWEST_ROWS and not whole:
        # libjpeg decodes as many rows as the header states, and skips the rest.
        content = content[: frame.position] + rows.to_bytes(2, "big") + content[frame.position + 2 :]
        height = -(-rows // divisor)
    needed = height * width * channels
    if getattr(_thread, "memory", np.empty(0)).size < needed:
        _thread.memory = np.empty(needed, np.uint8)
    # Rows are written from the top. While the last row still ends with the sentinel, decoding is not complete.
    end = _thread.memory[needed - min(width * channels, UNWRITTEN.size) : needed]
    end[:] = unwritten = UNWRITTEN[: end.size]
    try:
        return simplejpeg.decode_jpeg(
            content,
            "RGB" if channels == 3 else "GRAY",
            fastdct=True,
            fastupsample=True,
            min_height=height,
            min_width=width,
            min_factor=divisor,
            buffer=_thread.memory,
        )
    except ValueError as error:
        shortened = content is not example.content and "extraneous bytes before marker" in str(error)
        if shortened and end.tobytes() != unwritten.tobytes():
            # The error is about the skipped rows; those that were asked for have been decoded.
            return _thread.memory[:needed].reshape(height, width, channels)
        return _decode_by_pillow(example, channels, divisor)


def _decode_by_pillow(
    example: Example, channels: int, divisor: int, upright: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Decode with Pillow, which reads more formats, tolerates harmless damage and says what is wrong."""
    image = read_image(example.name, channels, example.content, upright)
    if divisor > 1:
        image = image.reduce(divisor)
    return np.asarray(image).reshape(image.height, image.width, channels)
