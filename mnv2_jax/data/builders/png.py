"""PNG encoding for builders.

TFDS needs TensorFlow to store an image array, but not to store a file object that is already encoded.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def encode_png(image: UInt8[np.ndarray, "h w 1"]) -> io.BytesIO:
    """Encode a greyscale image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
