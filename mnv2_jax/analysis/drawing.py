"""Style of the figures of the analyses: a headline with the finding, details below it, and plain axes."""

import textwrap
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FINDING: dict[str, Any] = {"fontsize": 13, "weight": "bold", "color": "black"}
DETAILS: dict[str, Any] = {"fontsize": 10.5, "color": "0.25"}
LETTERS = 0.58, 0.56
"""Mean letter widths of `FINDING` and `DETAILS` relative to the font size, rather too large than too small."""


def headline(figure: "Figure", finding: str, details: str) -> None:
    """Write the finding in bold above a figure, and the details below it.

    The figure must have a constrained layout, which makes room for them.
    """
    width, height = 72 * figure.get_size_inches()  # in points
    top = 4.0
    for text, style, letter in zip((finding, details), (FINDING, DETAILS), LETTERS, strict=True):
        size = style["fontsize"]
        lines = textwrap.wrap(text, int(0.97 * width / (letter * size)), break_on_hyphens=False)
        figure.text(0.012, 1 - top / height, "\n".join(lines), va="top", linespacing=1.25, **style)
        top += 1.3 * size * len(lines) + 3
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (top + 3) / height))  # type: ignore[union-attr, call-arg]


def tidy(axes: "Axes", grid: Literal["both", "x", "y"] = "y") -> None:
    """Hide the top and right spines, and draw a light grid below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
