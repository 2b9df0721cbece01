"""Appendix A: Theorem 1 against samples, and both directions of Lemma 2."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
import scipy.stats

from mnv2_jax.analysis.invertibility import (
    BOUNDS,
    another_solution,
    bounds_hold,
    count_preserved,
    holds_from,
    is_determined,
    preserved_fraction,
    recover,
    relu_image,
    third_follows,
)


def test_fractions_that_a_person_can_count():
    # One dimension, two channels: x is lost only if both are cut off, which is one sign pattern of four.
    assert preserved_fraction(1, 2) == Fraction(3, 4)
    # Two dimensions, three channels: two or three must be active, which is four patterns of eight.
    assert preserved_fraction(2, 3) == Fraction(1, 2)
    assert preserved_fraction(3, 3) == Fraction(1, 8)
    assert preserved_fraction(3, 2) == 0
    for n in range(1, 9):
        assert preserved_fraction(n, 2 * n - 1) == Fraction(1, 2)
    with pytest.raises(ValueError, match="got m=1 and n=0"):
        preserved_fraction(0, 1)


def test_a_count_over_all_sign_patterns():
    for n, m in itertools.product((1, 2, 4), (1, 3, 6)):
        kept = sum(sum(signs) >= n for signs in itertools.product((0, 1), repeat=m))
        assert preserved_fraction(n, m) == Fraction(kept, 2**m)


def test_samples_agree_and_would_tell_a_wrong_formula():
    points = [(1, 2), (1, 5), (2, 3), (2, 8), (2, 2), (1, 3)]
    caught = 0
    for n, m in points:
        count = int(count_preserved(jax.random.key(10 * n + m), m, n=n, rows=8, samples=5000))
        interval = scipy.stats.binomtest(count, 5000).proportion_ci(1 - 0.01 / len(points), method="exact")
        assert interval.low <= preserved_fraction(n, m) <= interval.high, (n, m)
        assert not interval.low <= preserved_fraction(n + 1, m) <= interval.high, (n, m)
        # The paper's text calls it the collapsed fraction. The samples reject that, except at 1/2, where both agree.
        caught += not interval.low <= 1 - preserved_fraction(n, m) <= interval.high
    assert caught == len(points) - 1


def test_rows_behind_the_last_are_left_out():
    key = jax.random.key(0)
    assert count_preserved(key, 1, n=2, rows=4, samples=500) == 0
    assert 0 < count_preserved(key, 2, n=2, rows=4, samples=500) < 250


def test_bounds_in_integers_agree_with_those_in_floats():
    for n, m in itertools.product((1, 2, 3, 5), range(1, 41)):
        exact = float(preserved_fraction(n, m))
        for bound, holds in zip(BOUNDS.values(), bounds_hold(n, m), strict=True):
            assert holds == (exact >= bound(n, m) - 1e-12), (n, m)


def test_from_which_width_on_the_bounds_hold():
    for n in (1, 2, 3, 5, 8):
        # The first two hold for all m >= n; below, nothing is preserved.
        assert all(bounds_hold(n, m)[:2] == (True, True) for m in range(n, 200))
    assert [holds_from({m: bounds_hold(n, m)[2] for m in range(1, 200)}) for n in (1, 2, 3, 5, 8)] == [1, 6, 14, 30, 57]
    # (n + 1) log2 m <= m / 2, with equality at m = 16 and n = 1.
    assert [holds_from({m: third_follows(n, m) for m in range(1, 200)}) for n in (1, 2, 8)] == [16, 30, 126]
    assert holds_from({1: True, 2: False}) is None


def test_lemma_2_where_x_is_determined():
    random, tried = np.random.default_rng(0), 0
    for _ in range(100):
        matrix, x = random.standard_normal((8, 3)), random.standard_normal(3)
        image = relu_image(matrix, x)
        if is_determined(matrix, image):
            np.testing.assert_allclose(recover(matrix, image), x, rtol=0, atol=1e-9)
            with pytest.raises(ValueError, match="there is no other"):
                another_solution(matrix, x)
            tried += 1
    assert 60 < tried < 100


def test_lemma_2_where_x_is_not_determined():
    random, tried = np.random.default_rng(1), 0
    for _ in range(100):
        matrix, x = random.standard_normal((4, 3)), random.standard_normal(3)
        image = relu_image(matrix, x)
        if not is_determined(matrix, image):
            other = another_solution(matrix, x)
            np.testing.assert_allclose(relu_image(matrix, other), image, rtol=0, atol=1e-12)
            assert np.linalg.norm(other - x) > 1e-3
            with pytest.raises(ValueError, match="do not determine x"):
                recover(matrix, image)
            tried += 1
    assert 50 < tried < 100


def test_lemma_2_asks_for_independent_rows_not_for_many():
    matrix, x = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, -1.0]]), np.array([1.0, 1.0])
    image = relu_image(matrix, x)
    assert np.count_nonzero(image) == 3
    assert not is_determined(matrix, image)
    other = another_solution(matrix, x)
    assert other[0] == 1
    assert other[1] > 0
    assert other[1] != 1


def test_the_exception_to_lemma_2_has_no_volume():
    """Both elements of Bx are exactly 0. No other x has that image, although no row is active."""
    matrix = np.array([[1.0], [-1.0]])
    assert not is_determined(matrix, relu_image(matrix, np.zeros(1)))
    assert all(relu_image(matrix, np.array([x])).any() for x in (-1e-9, 1e-9))
    with pytest.raises(ValueError, match="an element of Bx is 0"):
        another_solution(matrix, np.zeros(1))
