"""Encoded images to pixels, and of a JPEG no more than is needed: at a fraction of its size, down to a row."""

import hashlib
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8

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


def read_frame(content: bytes) -> Frame | None:
    """The header of a JPEG; None for what is no JPEG."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(content) and content[position] == 0xFF:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        # Start of frame, in all its kinds; C4, C8 and CC are other markers.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at : at + 2], "big") for at in (position + 5, position + 7))
            return Frame(height, width, position + 5, marker in (0xC0, 0xC1))
        position += 2 + length
    return None


def decode(example: Example, channels: int, divisor: int = 1, rows: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """An encoded image as RGB or grey.

    Args:
        example: its `content` is a file.
        channels: 3 or 1.
        divisor: of the size at which a JPEG is decoded: 1, 2, 4 or 8.
        rows: of the image that are needed, from its top; there may come more. Damage below is not noticed, except
            that the end is missing.

    Returns:
        Pixels in memory that the next call in the same thread takes again.

    Raises:
        UserError: names the image if it is damaged.
    """
    frame = read_frame(example.content)
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


def _decode_by_pillow(example: Example, channels: int, divisor: int) -> UInt8[np.ndarray, "h w c"]:
    """Pillow knows more kinds of images, forgives what does not matter, and says what is wrong."""
    image = read_image(example.name, channels, example.content)
    if divisor > 1:
        image = image.reduce(divisor)
    return np.asarray(image).reshape(image.height, image.width, channels)
