"""The figure of `paper_tables.py`: both networks layer by layer, in channels and in memory."""

from collections.abc import Callable, Container, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnv2_jax.ablation.figures import COLORS
from mnv2_jax.models.cost import LayerCost, units


def draw(v1: Sequence[LayerCost], v2: Sequence[LayerCost], value_bytes: int) -> Figure:
    """Channels and memory of what each convolution outputs, in running order.

    Args:
        v1, v2: the layers of both networks, the classifier last.
        value_bytes: bytes of a value in memory.
    """

    def kilobytes(layer: LayerCost) -> float:
        height, width, channels = layer.output_shape
        return height * width * channels * value_bytes / 1000

    figure, (channels, sizes) = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
    draw_outputs(channels, v1, v2, lambda layer: layer.output_shape[-1], legend="upper left")
    draw_outputs(sizes, v1, v2, kilobytes, legend="upper right")
    channels.set_title("Channels that each convolution puts out (width 1.0)", loc="left")
    channels.set_ylabel("channels")
    sizes.set_title("Memory that they take (fp16, one image of 224 pixels)", loc="left")
    sizes.set(ylabel="KB", xlabel="convolution, in running order")
    return figure


def draw_outputs(
    panel: Axes, v1: Sequence[LayerCost], v2: Sequence[LayerCost], measure: Callable[[LayerCost], float], legend: str
) -> None:
    """Draw a measure of every convolution's output: V1 as one line, V2 by what an output is to its block."""
    blue, orange = COLORS[:2]
    blocks = [unit for unit in units(v2) if len(unit.layers) > 1]
    leaving = {block.layers[-1].name for block in blocks}
    inside = {layer.name for block in blocks for layer in block.layers} - leaving
    outside = {unit.name for unit in units(v2)}

    def points(layers: Sequence[LayerCost], chosen: Container[str] | None = None) -> tuple[list[int], list[float]]:
        positions, values = [], []
        for position, layer in enumerate(layers[:-1], start=1):  # the classifier is no convolution
            if chosen is None or layer.name in chosen:
                positions.append(position)
                values.append(measure(layer))
        return positions, values

    panel.plot(*points(v2), color=orange, linewidth=0.8, alpha=0.45)
    for label, (positions, values), form, style in (
        ("MobileNetV1", points(v1), "-s", {"color": blue, "markersize": 4.5}),
        ("MobileNetV2, bottlenecks", points(v2, leaving), "-o", {"color": orange, "linewidth": 2.2}),
        ("MobileNetV2, inside the blocks", points(v2, inside), "o", {"color": orange, "markerfacecolor": "white"}),
        ("MobileNetV2, first and last convolution", points(v2, outside), "D", {"color": "black", "markersize": 4.5}),
    ):
        panel.plot(positions, values, form, label=f"{label}: at most {max(values):.0f}", **style)
    panel.set(xlim=(0, None), ylim=(0, None))
    panel.legend(loc=legend, framealpha=1, edgecolor="none")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.7)
    panel.set_axisbelow(True)
