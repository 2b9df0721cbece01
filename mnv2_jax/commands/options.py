"""What several commands check of their flags."""

from mnv2_jax.errors import UserError
from mnv2_jax.models.strides import STRIDED_LAYERS

LARGEST_RESOLUTION = 4096


def check_resolution(resolution: int) -> None:
    """Refuse images that no machine's memory holds the feature maps of.

    Raises:
        UserError: outside of 1 to `LARGEST_RESOLUTION` pixels.
    """
    if not 0 < resolution <= LARGEST_RESOLUTION:
        raise UserError(f"--resolution must be from 1 to {LARGEST_RESOLUTION} pixels, got {resolution}")


def check_unit_strides(unit_strides: int) -> None:
    """Refuse more or fewer unit strides than a network has strides.

    Raises:
        UserError: names the flag.
    """
    if not 0 <= unit_strides <= STRIDED_LAYERS:
        raise UserError(f"--unit-strides must be from 0 to {STRIDED_LAYERS}, got {unit_strides}")
