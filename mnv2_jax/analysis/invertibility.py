"""When can ReLU(Bx) be inverted, and how often? (MobileNetV2, Appendix A)

x has n dimensions and B is m x n. Lemma 2: y = ReLU(Bx) determines x iff the rows of B with a non-zero y span all n
dimensions. Theorem 1: if the distribution of B is symmetric under a sign change of any row, this holds for an expected
fraction

    N / 2^m,  N = sum_{k=0}^{m-n} C(m, k)

of the volume. k is the number of rows that ReLU sets to zero, each with probability 1/2. The paper calls this the
fraction of collapsed space. By its own theorem it is the preserved fraction, and 1 - N / 2^m collapses.

The "only if" in Lemma 2 assumes that no element of Bx is exactly 0. The smallest exception is B = (1, -1)^T at x = 0:
y = (0, 0) has no non-zero element, yet no other x maps to it. Such x have volume 0, so Theorem 1 is unaffected.
"""

import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

RANK_TOLERANCE = 1e-6
"""Singular values below this fraction of the largest count as 0 (float32)."""


def preserved_fraction(n: int, m: int) -> Fraction:
    """Return N / 2^m of Theorem 1, exactly; 0 if m < n.

    Raises:
        ValueError: if n or m is below 1.
    """
    if n < 1 or m < 1:
        raise ValueError(f"a matrix must have at least one row and one column, got m={m} and n={n}")
    return Fraction(sum(math.comb(m, k) for k in range(m - n + 1)), 2**m)


BOUNDS: dict[str, Callable[[int, int], float]] = {
    "1 - m^(n+1) / (2^m n!)": lambda n, m: 1 - m ** (n + 1) / (2**m * math.factorial(n)),
    "1 - 2^((n+1) log2 m - m)": lambda n, m: 1 - m ** (n + 1) / 2**m,
    "1 - 2^(-m/2)": lambda n, m: 1 - 2 ** (-m / 2),
}
"""Lower bounds of N / 2^m in Theorem 1: the first two for every m >= n, the third, as stated, only for large m."""


def bounds_hold(n: int, m: int) -> tuple[bool, bool, bool]:
    """Return whether N / 2^m is at least each of `BOUNDS`, in integer arithmetic, without rounding."""
    # All in units of 2^-m; the third comparison is squared.
    collapsed = int(2**m * (1 - preserved_fraction(n, m)))
    power = m ** (n + 1)
    return collapsed * math.factorial(n) <= power, collapsed <= power, collapsed**2 <= 2**m


def third_follows(n: int, m: int) -> bool:
    """Return whether the second of `BOUNDS` is at least the third, as the theorem's chain requires (in integers)."""
    return m ** (2 * (n + 1)) <= 2**m


def holds_from(holds: Mapping[int, bool]) -> int | None:
    """Return the smallest m such that `holds` is true for m and all larger keys; None if false for the largest."""
    first = None
    for m in sorted(holds, reverse=True):
        if not holds[m]:
            break
        first = m
    return first


# --- Theorem 1 by sampling -----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("n", "rows", "samples"))
def count_preserved(key: Key[Array, ""], m: Int[Array, ""] | int, *, n: int, rows: int, samples: int) -> Int[Array, ""]:
    """Count the pairs of a Gaussian B and an x uniform in the unit ball for which ReLU(Bx) determines x.

    The criterion is Lemma 2's, the rank of the active rows; Theorem 1 is not used. Every x has its own B, so the samples
    are independent.

    Args:
        key: random key of the samples.
        m: number of rows of B, up to `rows`; may be traced, so one program serves all m.
        n: number of columns of B.
        rows: number of rows drawn; those after the first m are ignored.
        samples: number of pairs.
    """
    of_matrix, of_direction, of_radius = jax.random.split(key, 3)
    matrices = jax.random.normal(of_matrix, (samples, rows, n))
    direction = jax.random.normal(of_direction, (samples, n))
    radius = jax.random.uniform(of_radius, (samples, 1)) ** (1 / n)
    x = radius * direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    active = (jnp.einsum("smn,sn->sm", matrices, x) > 0) & (jnp.arange(rows) < m)
    rank = jnp.linalg.matrix_rank(jnp.where(active[:, :, None], matrices, 0), rtol=RANK_TOLERANCE)
    return jnp.sum(rank == n)


# --- Lemma 2 on examples, in float64 -------------------------------------------------------------------------


def relu_image(matrix: Float[np.ndarray, "m n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Return ReLU(Bx)."""
    return np.maximum(matrix @ x, 0)


def active_rows(image: Float[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
    """Return which elements of ReLU(Bx) are non-zero, the paper's T."""
    return image > 0


def is_determined(matrix: Float[np.ndarray, "m n"], image: Float[np.ndarray, " m"]) -> bool:
    """Return whether Lemma 2's condition holds: n of the rows of B with a non-zero image are linearly independent."""
    rows = matrix[active_rows(image)]
    return len(rows) >= matrix.shape[1] and int(np.linalg.matrix_rank(rows)) == matrix.shape[1]


def recover(matrix: Float[np.ndarray, "m n"], image: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Return the x with ReLU(Bx) = `image`, by least squares on the active rows.

    Raises:
        ValueError: if Lemma 2's condition does not hold.
    """
    if not is_determined(matrix, image):
        raise ValueError("the rows with a non-zero image do not determine x")
    active = active_rows(image)
    return np.linalg.lstsq(matrix[active], image[active])[0]


def another_solution(matrix: Float[np.ndarray, "m n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return another x with the same ReLU(Bx), if Lemma 2's condition does not hold.

    The step lies in the null space of the active rows, which it leaves unchanged. It goes half the way to where the
    first inactive row would become positive, and at most the length of x. The longer of both directions is taken.

    Raises:
        ValueError: if the condition holds, or an element of Bx is exactly 0, so that there may be no such step.
    """
    values = matrix @ x
    if is_determined(matrix, np.maximum(values, 0)):
        raise ValueError("the rows with a non-zero image determine x: there is no other solution")
    if not np.all(values):
        raise ValueError("an element of Bx is 0, where ReLU has its kink: there may be no other solution")
    rows = matrix[values > 0]
    rank = int(np.linalg.matrix_rank(rows)) if len(rows) else 0
    null = np.linalg.svd(rows, full_matrices=True)[2][rank] if len(rows) else np.eye(matrix.shape[1])[0]
    ways = []
    for direction in (null, -null):
        slope = matrix @ direction
        rising = (values < 0) & (slope > 0)
        room = float(np.min(-values[rising] / slope[rising])) if rising.any() else np.inf
        ways.append(min(room / 2, float(np.linalg.norm(x))) * direction)
    return x + max(ways, key=lambda way: float(np.linalg.norm(way)))
