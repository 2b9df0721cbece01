"""Confusion matrices: per-class results, and the figure."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mnv2_jax.analysis.confusion import MOST_COUNTED, MOST_NAMED, by_class, draw_confusion, largest_confusions

NAMES = ("bird", "cat", "dog")
MATRIX = np.array([[9.0, 3, 1], [0, 0, 0], [12, 1, 27]])


def test_each_class_has_its_accuracy_and_what_it_is_taken_for():
    bird, cat, dog = by_class(MATRIX, NAMES)
    assert bird == {
        **{"class": 0, "name": "bird", "images": 13, "correct": 9, "accuracy": 9 / 13},
        **{"taken_for": "cat", "taken_for_images": 3},
    }
    assert (cat["images"], cat["accuracy"], cat["taken_for"]) == (0, None, None)
    assert (dog["correct"], dog["taken_for"]) == (27, "bird")


def test_the_largest_confusions_come_first():
    assert largest_confusions(MATRIX, NAMES, most=2) == [
        {"true": "dog", "predicted": "bird", "images": 12, "of": 40},
        {"true": "bird", "predicted": "cat", "images": 3, "of": 13},
    ]
    assert len(largest_confusions(MATRIX, NAMES)) == 4
    assert largest_confusions(np.eye(3), NAMES) == []


def texts(figure):
    axes, beside, _ = figure.axes
    return [text.get_text() for text in (*axes.texts, *axes.get_yticklabels(), *beside.texts)]


@pytest.mark.parametrize("count", [3, MOST_COUNTED + 1, MOST_NAMED + 1])
def test_a_picture_names_its_classes_where_there_is_room(count):
    matrix = np.eye(count) * 7
    matrix[0, 1] = 1
    figure = draw_confusion(matrix, [f"$kind_{index}" for index in range(count)], "Confusion matrix")
    said = texts(figure)
    assert ("7" in said) == (count <= MOST_COUNTED)
    assert ("$kind_0 (8)" in said) == (count <= MOST_NAMED)
    assert "$kind_0\n    predicted as $kind_1\n    1 of 8 images (12 %)" in said
    figure.canvas.draw()  # a $ in a class name does not start a formula
    plt.close(figure)
