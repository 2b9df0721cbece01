"""PNG encoding for builders.

From an encoded file object TFDS prepares an image without TensorFlow; from an array it would need it.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def encode_png(image: UInt8[np.ndarray, "h w 1"]) -> io.BytesIO:
    """A grey image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
