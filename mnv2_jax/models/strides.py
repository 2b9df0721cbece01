"""Strides and dilations of a network, and how to keep more resolution for small images and dense prediction."""

from collections.abc import Sequence

STRIDED_LAYERS = 5
"""Number of layers with stride 2 in MobileNetV1 and V2: the stem and four blocks. 224 pixels become 7."""

OUTPUT_STRIDES = (8, 16, 32)


def unit_strides_for(resolution: int, source_resolution: int | None = None) -> int:
    """Return the number of leading stride-2 layers that should take stride 1 for images of `resolution` pixels.

    This is the smallest number that leaves a last feature map of at least 3 pixels, as the paper's smallest images
    (96 pixels) do: 2 for 28 and 32 pixels (a last feature map of 4 pixels), 1 for 48 and 64, 0 from 65 pixels on.

    Images enlarged from `source_resolution` pixels need one less per whole factor of two, since striding them loses no
    detail.

    Raises:
        ValueError: if `resolution` is not positive.
    """
    if resolution <= 0:
        raise ValueError(f"the resolution must be positive, got {resolution}")
    wide_enough = (n for n in range(STRIDED_LAYERS) if -(-resolution // 2 ** (STRIDED_LAYERS - n)) >= 3)
    enlargement = max(1, resolution // source_resolution) if source_resolution else 1
    return max(0, next(wide_enough, STRIDED_LAYERS) - (enlargement.bit_length() - 1))


def check_output_stride(output_stride: int | None) -> None:
    """Check that an output stride is None or one of `OUTPUT_STRIDES`.

    Raises:
        ValueError: if it is not; lists the valid ones.
    """
    if output_stride not in (None, *OUTPUT_STRIDES):
        raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES} or None, got {output_stride}")


def strides_and_dilations(
    strides: Sequence[int], unit_strides: int = 0, output_stride: int | None = None
) -> list[tuple[int, int]]:
    """Return the stride and dilation of each layer, from the strides of the table.

    Args:
        strides: of the layers, in order.
        unit_strides: this many strided layers, counted from the input, take stride 1. Nothing is dilated for them.
        output_stride: once the product of the strides reaches this, later strided layers take stride 1, and the layers
            after them are dilated by the omitted strides so that their receptive field is unchanged (Sec. 6.3;
            tensorflow/models, research/slim/nets/mobilenet/mobilenet.py). None and 32 change nothing.

    Raises:
        ValueError: for an output stride that is not in `OUTPUT_STRIDES`.
    """
    check_output_stride(output_stride)
    result, total, dilation = [], 1, 1
    for stride in strides:
        if stride > 1 and unit_strides > 0:
            unit_strides -= 1
            stride = 1
        if total == output_stride:
            # The layer sees the same input with or without its stride, so only later layers are dilated by it.
            result.append((1, dilation))
            dilation *= stride
        else:
            result.append((stride, 1))
            total *= stride
    return result
