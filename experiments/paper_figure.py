"""The figure of `paper_tables.py`: channels and memory of both networks, layer by layer."""

from collections.abc import Callable, Container, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper_numbers import PEAK_MEMORY

from mnv2_jax.ablation.figures import COLORS
from mnv2_jax.analysis.drawing import headline, tidy
from mnv2_jax.models.cost import LayerCost, units


def draw(v1: Sequence[LayerCost], v2: Sequence[LayerCost], value_bytes: int) -> Figure:
    """Draw channels and memory of each convolution's output, in execution order.

    Args:
        v1, v2: the layers of both networks, the classifier last.
        value_bytes: bytes per value.
    """

    def kilobytes(layer: LayerCost) -> float:
        height, width, channels = layer.output_shape
        return height * width * channels * value_bytes / 1000

    figure, (channels, sizes) = plt.subplots(2, 1, figsize=(11, 9), sharex=True, layout="constrained")
    draw_outputs(channels, v1, v2, lambda layer: layer.output_shape[-1], "channels", legend="upper left")
    first, second = draw_outputs(sizes, v1, v2, kilobytes, "KB", legend="upper right")
    channels.set_title("Output channels of each convolution", loc="left", fontsize=11)
    sizes.set_title(f"Memory of each output, {8 * value_bytes} bits per value, one image", loc="left", fontsize=11)
    sizes.set_xlabel("convolution, from the first to the last")
    published = " and ".join(PEAK_MEMORY["largest tensor between blocks"])
    headline(
        figure,
        f"Between blocks MobileNetV1 keeps {first:,.0f} KB and MobileNetV2 {second:,.0f} KB (the paper: {published})",
        "Computed from the networks at width 1.0 and 224 pixels, as for Table 3 of the paper. Inside its blocks MobileNetV2 "
        "is wide and takes more, but these outputs need not be kept whole (Sec. 5.1).",
    )
    return figure


def draw_outputs(
    panel: Axes,
    v1: Sequence[LayerCost],
    v2: Sequence[LayerCost],
    measure: Callable[[LayerCost], float],
    unit: str,
    legend: str,
) -> tuple[float, float]:
    """Draw a measure of each convolution's output: V1 as one line, V2 by whether it is a bottleneck, inside a block, or
    outside of all blocks.

    Returns:
        The maximum over V1's outputs, and over V2's bottlenecks.
    """
    blue, orange = COLORS[:2]
    blocks = [unit for unit in units(v2) if len(unit.layers) > 1]
    leaving = {block.layers[-1].name for block in blocks}
    inside = {layer.name for block in blocks for layer in block.layers} - leaving
    outside = {unit.name for unit in units(v2)}

    def points(layers: Sequence[LayerCost], chosen: Container[str] | None = None) -> tuple[list[int], list[float]]:
        positions, values = [], []
        for position, layer in enumerate(layers[:-1], start=1):  # without the classifier
            if chosen is None or layer.name in chosen:
                positions.append(position)
                values.append(measure(layer))
        return positions, values

    panel.plot(*points(v2), color=orange, linewidth=0.8, alpha=0.45)
    for label, (positions, values), form, style in (
        ("MobileNetV1", points(v1), "-s", {"color": blue, "markersize": 4.5}),
        ("MobileNetV2, bottlenecks", points(v2, leaving), "-o", {"color": orange, "linewidth": 2.2}),
        ("MobileNetV2, inside the blocks", points(v2, inside), "o", {"color": orange, "markerfacecolor": "white"}),
        ("MobileNetV2, first and last", points(v2, outside), "D", {"color": "black", "markersize": 4.5}),
    ):
        panel.plot(positions, values, form, label=f"{label}: at most {max(values):,.0f} {unit}", **style)
    # Leave room for the legend.
    panel.set(xlim=(0, None), ylim=(0, 1.25 * panel.get_ylim()[1]), ylabel=unit)
    panel.legend(loc=legend, framealpha=1, edgecolor="none")
    tidy(panel)
    return max(points(v1)[1]), max(points(v2, leaving)[1])
