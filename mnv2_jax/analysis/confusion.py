"""Confusion matrices: per-class accuracy, the largest confusions, and a figure.

A confusion matrix has one row per true class and one column per predicted class. Its cells count images.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnv2_jax.wording import counted

MOST_NAMED, MOST_COUNTED = 100, 20
"""Up to these numbers of classes the figure names the classes, and writes the counts into the cells."""
LARGEST = 8
"""Number of confusions that the figure names."""


def by_class(confusion: Num[np.ndarray, "n n"], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return, per class: the number of images, the number correct, and the class that it is most often mistaken for.

    "accuracy" is None for a class without images, and "taken_for" for a class without mistakes.
    """
    found = []
    for index, name in enumerate(names):
        row = confusion[index].astype(int)
        images, correct = int(row.sum()), int(row[index])
        wrong = row.copy()
        wrong[index] = 0
        other = int(wrong.argmax())
        found.append(
            {
                "class": index,
                "name": name,
                "images": images,
                "correct": correct,
                "accuracy": correct / images if images else None,
                "taken_for": names[other] if wrong[other] else None,
                "taken_for_images": int(wrong[other]),
            }
        )
    return found


def largest_confusions(
    confusion: Num[np.ndarray, "n n"], names: Sequence[str], most: int = LARGEST
) -> list[dict[str, Any]]:
    """Return the (true, predicted) pairs with the most errors, with the number of images of the true class."""
    wrong = confusion * (1 - np.eye(len(confusion)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(cell), len(confusion)) for cell in order]
    return [
        {
            "true": names[row],
            "predicted": names[column],
            "images": int(wrong[row, column]),
            "of": int(confusion[row].sum()),
        }
        for row, column in pairs
        if wrong[row, column]
    ]


def draw_confusion(confusion: Num[np.ndarray, "n n"], names: Sequence[str], title: str) -> Figure:
    """Draw the matrix, each row as fractions of its class, and list the largest confusions beside it."""
    count, images = len(names), confusion.sum(axis=1)
    side = float(np.clip(count * (0.12 if count > MOST_COUNTED else 0.45), 4.5, 11))
    figure, (axes, beside) = plt.subplots(
        1, 2, figsize=(side + 4.8, side + 1.2), width_ratios=(side + 1.6, 3.2), layout="constrained"
    )
    shares = confusion / np.maximum(images, 1)[:, None]
    # With many classes, cells of single images would be too pale to see on a linear scale.
    norm = PowerNorm(1 if count <= MOST_COUNTED else 0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(1), shrink=0.6, aspect=30, anchor=(0, 1))
    bar.set_label("fraction of the class's images")
    axes.set(anchor="NW", xlabel="predicted as", ylabel="class" if count > MOST_NAMED else "class (images)")
    if count <= MOST_NAMED:
        _name_classes(axes, names, images.astype(int).tolist())
    if count <= MOST_COUNTED:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, f"{int(confusion[row, column]):,}", ha="center", va="center", color=color, fontsize=9
            )
    _name_confusions(beside, largest_confusions(confusion, names))
    figure.suptitle(title, fontsize=12, parse_math=False)
    figure.draw_without_rendering()  # the layout needs a second pass, or labels beside square axes are cut off
    return figure


def _name_classes(axes: Axes, names: Sequence[str], images: Sequence[int]) -> None:
    size = 9 if len(names) <= 30 else 6
    rows = [f"{_short(name)} ({count:,})" for name, count in zip(names, images, strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=size, parse_math=False)
    axes.set_xticks(range(len(names)), list(map(_short, names)), fontsize=size, rotation=90, parse_math=False)


def _name_confusions(axes: Axes, largest: Sequence[dict[str, Any]]) -> None:
    heading = "Largest confusions" if largest else "No image is misclassified."
    axes.text(0, 1, heading, va="top", fontsize=10, weight="bold")
    lines = [
        f"{_short(each['true'])}\n    predicted as {_short(each['predicted'])}\n    {each['images']:,} of "
        f"{counted(each['of'], 'image')} ({100 * each['images'] / each['of']:.0f} %)"
        for each in largest
    ]
    axes.annotate(
        "\n".join(lines), (0, 1), (0, -20), textcoords="offset points", va="top", fontsize=9, parse_math=False
    )
    axes.axis("off")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:11]}…{name[-10:]}"  # names of breeds and species differ at the end
