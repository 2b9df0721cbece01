import matplotlib.pyplot as plt
import pytest

from mnv2_jax.analysis.drawing import headline


@pytest.mark.parametrize("words", [3, 60])
def test_a_headline_has_room_above_the_panels_whatever_its_length(words):
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    axes.set_title("A panel")
    headline(figure, "found " * words, "what is shown " * words)
    figure.canvas.draw()
    width, height = figure.bbox.size
    boxes = [text.get_window_extent() for text in figure.texts]
    assert boxes[0].y1 <= height
    assert boxes[1].y1 <= boxes[0].y0
    assert axes.title.get_window_extent().y1 <= boxes[1].y0
    assert max(box.x1 for box in boxes) <= width
    plt.close(figure)
