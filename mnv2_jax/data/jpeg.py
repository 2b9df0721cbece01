"""Encoded images to pixels, and of a JPEG no more than is needed: at a fraction of its size, down to a row."""

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
"""Of a JPEG that is decoded without asking Pillow whether it is meant to fill the memory."""

END_OF_IMAGE = b"\xff\xd9"
FEWEST_ROWS = 16
"""To leave out: two rows of blocks, or one where colours are stored at half the resolution."""
UNWRITTEN = np.frombuffer(hashlib.sha512(b"unwritten").digest(), np.uint8)
"""How no row of an image ends: a decoder that wrote it would have hit 64 bytes by chance."""

_thread = threading.local()


class Frame(NamedTuple):
    """What a JPEG's header says.

    Attributes:
        height, width: in pixels.
        position: of the height, in bytes from the start of the file.
        sequential: whether rows come one after the other, as in most files; in a progressive one they come at once.
    """

    height: int
    width: int
    position: int
    sequential: bool


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, first byte after it) of every segment of a JPEG's header; none of what is no JPEG."""
    position = 2 if content[:2] == b"\xff\xd8" else len(content)
    while position + 9 <= len(content) and content[position] == 0xFF:
        after = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        yield content[position + 1], position + 4, after
        position = after


def read_frame(content: bytes) -> Frame | None:
    """What a JPEG's header says; None for what is no JPEG."""
    for marker, first, _ in _segments(content):
        # Start of frame, in all its kinds; C4, C8 and CC are other markers.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at : at + 2], "big") for at in (first + 1, first + 3))
            return Frame(height, width, first + 1, marker in (0xC0, 0xC1))
    return None


def read_orientation(content: bytes, frame: Frame) -> int:
    """The orientation that a JPEG states in front of its frame: in EXIF, else in XMP, as Pillow reads it; 1 for none.

    Pillow takes a tenth of a millisecond for it, which is a tenth of the time that decoding takes.
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
    """EXIF is a TIFF file: a header, and a table of tags with 12 bytes an entry (tag, type, number of values, value)."""
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
    """How a stored image becomes upright: rows and columns exchanged, then mirrored.

    Attributes:
        exchanged: whether rows become columns.
        upside_down, mirrored: whether rows, and columns, are then put in the opposite order.
    """

    exchanged: bool
    upside_down: bool
    mirrored: bool

    def __call__(self, stored: UInt8[np.ndarray, "_ _ c"]) -> UInt8[np.ndarray, "_ _ c"]:
        """The upright image, or part of one. OpenCV moves pixels faster than NumPy."""
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
"""By orientation."""


class Picture:
    """An encoded image, upright, of which that part is decoded which is asked for.

    Args:
        example: its `content` is a file.
        channels: 3 for RGB, 1 for grey.

    Attributes:
        height, width: in pixels.

    Raises:
        UserError: names the image if it is no JPEG and damaged.
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
        """Some rows and columns; of a JPEG at a half, a quarter or an eighth of its size if both stay `smallest` or more.

        Returns:
            Pixels in memory that the next call in the same thread takes again.

        Raises:
            UserError: names the image if it is damaged.
        """
        if self.frame is None:
            return self._whole[top : top + rows, left : left + columns]
        divisor = 1
        while divisor < 8 and min(rows, columns) >= 2 * divisor * smallest:
            divisor *= 2
        # Where they lie in the stored image.
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
    """An encoded image as RGB or grey, as it is stored: its EXIF orientation is not applied.

    Args:
        example: its `content` is a file.
        channels: 3 or 1.
        divisor: of the size at which a JPEG is decoded: 1, 2, 4 or 8.
        rows: of the image that are needed, from its top; there may come more. Damage below is not noticed, except
            that the end is missing.
        frame: of the JPEG, where it has been read.

    Returns:
        Pixels in memory that the next call in the same thread takes again.

    Raises:
        UserError: names the image if it is damaged.
    """
    frame = frame or read_frame(example.content)
    if frame is None or frame.height * frame.width > MOST_PIXELS:
        return _decode_by_pillow(example, channels, divisor)
    content, height, width = example.content, -(-frame.height // divisor), -(-frame.width // divisor)
    # Where the end is missing, all of the image is decoded and the damage said.
    whole = not frame.sequential or not content.endswith(END_OF_IMAGE)
    if rows is not None and rows <= frame.height - FEWEST_ROWS and not whole:
        # libjpeg decodes as many rows as the header states, and jumps over the rest.
        content = content[: frame.position] + rows.to_bytes(2, "big") + content[frame.position + 2 :]
        height = -(-rows // divisor)
    needed = height * width * channels
    if getattr(_thread, "memory", np.empty(0)).size < needed:
        _thread.memory = np.empty(needed, np.uint8)
    # Rows are written from the top: as long as the last one ends with this, the memory holds an image decoded before.
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
            # The rows that were left out; those that were asked for are in place.
            return _thread.memory[:needed].reshape(height, width, channels)
        return _decode_by_pillow(example, channels, divisor)


def _decode_by_pillow(
    example: Example, channels: int, divisor: int, upright: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Pillow knows more kinds of images, forgives what does not matter, and says what is wrong."""
    image = read_image(example.name, channels, example.content, upright)
    if divisor > 1:
        image = image.reduce(divisor)
    return np.asarray(image).reshape(image.height, image.width, channels)
