"""Where a network loses resolution, and how it keeps more of it: for small images, and for dense prediction."""

from collections.abc import Sequence

STRIDED_LAYERS = 5
"""Layers with stride 2, in MobileNetV1 as in V2: the stem and four blocks. A 224-pixel image ends as 7 pixels."""

OUTPUT_STRIDES = (8, 16, 32)


def unit_strides_for(resolution: int, source_resolution: int | None = None) -> int:
    """How many of the first stride-2 layers should take stride 1 for images of `resolution` pixels.

    The fewest that leave a last feature map at least 3 pixels wide, which is what the paper's smallest images
    (96 pixels) have: 2 for 28 and 32 pixels (a last map of 4 pixels), 1 for 48 and 64, 0 from 65 pixels on.

    Images that were enlarged from `source_resolution` pixels need one less for every whole factor of two: they have no
    detail that the strides given back would lose.

    Raises:
        ValueError: if `resolution` is not positive.
    """
    if resolution <= 0:
        raise ValueError(f"the resolution must be positive, got {resolution}")
    wide_enough = (n for n in range(STRIDED_LAYERS) if -(-resolution // 2 ** (STRIDED_LAYERS - n)) >= 3)
    enlargement = max(1, resolution // source_resolution) if source_resolution else 1
    return max(0, next(wide_enough, STRIDED_LAYERS) - (enlargement.bit_length() - 1))


def check_output_stride(output_stride: int | None) -> None:
    """Refuse what is none of `OUTPUT_STRIDES`, nor None.

    Raises:
        ValueError: says which there are.
    """
    if output_stride not in (None, *OUTPUT_STRIDES):
        raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES} or None, got {output_stride}")


def strides_and_dilations(
    strides: Sequence[int], unit_strides: int = 0, output_stride: int | None = None
) -> list[tuple[int, int]]:
    """The stride and the dilation of each layer, from the strides of the table.

    Args:
        strides: of the layers in their order.
        unit_strides: the first so many strided layers take stride 1, and nothing else changes.
        output_stride: once the strides so far multiply to this, later strided layers take stride 1, and the
            layers behind them are dilated by what was not strided, so that they see the same neighbourhood
            (Sec. 6.3; tensorflow/models, research/slim/nets/mobilenet/mobilenet.py). None or 32 change nothing.

    Raises:
        ValueError: for an output stride that is none of `OUTPUT_STRIDES`.
    """
    check_output_stride(output_stride)
    result, total, dilation = [], 1, 1
    for stride in strides:
        if stride > 1 and unit_strides > 0:
            unit_strides -= 1
            stride = 1
        if total == output_stride:
            # A strided layer itself still looks at its input's neighbourhood: only what follows is dilated.
            result.append((1, dilation))
            dilation *= stride
        else:
            result.append((stride, 1))
            total *= stride
    return result
