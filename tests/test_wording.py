"""Numbers in messages."""

import pytest

from mnv2_jax.wording import counted


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "class", "2 classes"),
        (1, "class", "1 class"),
        (3, "batch", "3 batches"),
        (1209, "damaged image", "1,209 damaged images"),
    ],
)
def test_a_count_agrees_with_its_noun(number, noun, expected):
    assert counted(number, noun) == expected
