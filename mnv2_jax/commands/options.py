"""What several commands check of their flags."""

from mnv2_jax.errors import UserError

LARGEST_RESOLUTION = 4096


def check_resolution(resolution: int) -> None:
    """Refuse images that no machine's memory holds the feature maps of.

    Raises:
        UserError: outside of 1 to `LARGEST_RESOLUTION` pixels.
    """
    if not 0 < resolution <= LARGEST_RESOLUTION:
        raise UserError(f"--resolution must be from 1 to {LARGEST_RESOLUTION} pixels, got {resolution}")
