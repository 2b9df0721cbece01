import pytest

from mnv2_jax import unit_strides_for
from mnv2_jax.models.strides import strides_and_dilations

TABLE = [2, 1, 2, 1, 2, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("resolution", "expected"), [(28, 2), (32, 2), (48, 1), (64, 1), (65, 0), (96, 0), (224, 0), (1, 5)]
)
def test_unit_strides_for_small_images(resolution, expected):
    assert unit_strides_for(resolution) == expected


@pytest.mark.parametrize(("source", "expected"), [(28, 2), (15, 2), (14, 1), (8, 1), (7, 0), (1, 0)])
def test_images_that_were_enlarged_need_fewer(source, expected):
    assert unit_strides_for(28, source) == expected


def test_no_resolution_no_answer():
    with pytest.raises(ValueError, match="positive"):
        unit_strides_for(0)


def test_the_table_as_it_is():
    assert strides_and_dilations(TABLE) == strides_and_dilations(TABLE, output_stride=32) == [(s, 1) for s in TABLE]


def test_unit_strides_take_the_first():
    strides = [stride for stride, _ in strides_and_dilations(TABLE, unit_strides=2)]
    assert strides == [1, 1, 1, 1, 2, 1, 2, 2, 1]


def test_output_stride_turns_the_last_into_dilation():
    moves = strides_and_dilations(TABLE, output_stride=8)
    assert [stride for stride, _ in moves] == [2, 1, 2, 1, 2, 1, 1, 1, 1]
    assert [dilation for _, dilation in moves] == [1, 1, 1, 1, 1, 1, 1, 2, 4]


def test_output_strides_that_there_are():
    with pytest.raises(ValueError, match=r"one of \(8, 16, 32\)"):
        strides_and_dilations(TABLE, output_stride=12)
