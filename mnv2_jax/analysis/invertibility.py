"""When can ReLU(Bx) be inverted, and how often? (MobileNetV2, Appendix A)

x has n dimensions and B is m x n. Lemma 2: y = ReLU(Bx) determines x iff the rows of B with a non-zero y span all n
dimensions. Theorem 1: where the distribution of B is symmetric under a change of sign of any row, that is so for a fraction

    N / 2^m,  N = sum_{k=0}^{m-n} C(m, k)

of the volume, on average: k is the number of rows that ReLU sets to zero, each with probability 1/2. The paper calls this
the fraction of collapsed space; by its own theorem it is what is preserved, and 1 - N / 2^m is what collapses.

"Only if" in Lemma 2 supposes that no element of Bx is exactly 0. B = (1, -1)^T at x = 0 is the smallest exception: y = (0, 0)
has no non-zero element, and no other x has it. Such x have volume 0, so Theorem 1 is untouched.
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
"""Of float32, against the largest singular value: what is below it counts as 0."""


def preserved_fraction(n: int, m: int) -> Fraction:
    """N / 2^m of Theorem 1, exactly; 0 where m < n.

    Raises:
        ValueError: if n or m is below 1.
    """
    if n < 1 or m < 1:
        raise ValueError(f"a matrix has one row and one column at least, got m={m} and n={n}")
    return Fraction(sum(math.comb(m, k) for k in range(m - n + 1)), 2**m)


BOUNDS: dict[str, Callable[[int, int], float]] = {
    "1 - m^(n+1) / (2^m n!)": lambda n, m: 1 - m ** (n + 1) / (2**m * math.factorial(n)),
    "1 - 2^((n+1) log2 m - m)": lambda n, m: 1 - m ** (n + 1) / 2**m,
    "1 - 2^(-m/2)": lambda n, m: 1 - 2 ** (-m / 2),
}
"""What Theorem 1 puts below N / 2^m: the first two for every m >= n, the third one, as it says itself, for large m only."""


def bounds_hold(n: int, m: int) -> tuple[bool, bool, bool]:
    """Whether N / 2^m is not below each of `BOUNDS`; in integers, so without rounding."""
    # All in units of 2^-m; the third one squared.
    collapsed = int(2**m * (1 - preserved_fraction(n, m)))
    power = m ** (n + 1)
    return collapsed * math.factorial(n) <= power, collapsed <= power, collapsed**2 <= 2**m


def third_follows(n: int, m: int) -> bool:
    """Whether the second of `BOUNDS` is not below the third, so that the theorem's chain is unbroken; in integers."""
    return m ** (2 * (n + 1)) <= 2**m


def holds_from(holds: Mapping[int, bool]) -> int | None:
    """The m from which on something holds for every larger one that is there; None if not even for the largest."""
    first = None
    for m in sorted(holds, reverse=True):
        if not holds[m]:
            break
        first = m
    return first


# --- Theorem 1 by sampling -----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("n", "rows", "samples"))
def count_preserved(key: Key[Array, ""], m: Int[Array, ""] | int, *, n: int, rows: int, samples: int) -> Int[Array, ""]:
    """Of `samples` pairs of a Gaussian B and an x uniform in the unit ball, those where ReLU(Bx) determines x.

    That is decided as in Lemma 2, by the rank of the rows that are active; nothing of Theorem 1 is in it. Every x has a B
    of its own, so the samples are independent.

    Args:
        key: of the samples.
        m: rows of B, up to `rows`: one program serves them all.
        n: columns of B.
        rows: drawn; those behind the first m are left out.
        samples: how many.
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
    """ReLU(Bx)."""
    return np.maximum(matrix @ x, 0)


def active_rows(image: Float[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
    """The non-zero elements of ReLU(Bx), the paper's T."""
    return image > 0


def is_determined(matrix: Float[np.ndarray, "m n"], image: Float[np.ndarray, " m"]) -> bool:
    """Lemma 2's condition: n of the rows of B with a non-zero image are linearly independent."""
    rows = matrix[active_rows(image)]
    return len(rows) >= matrix.shape[1] and int(np.linalg.matrix_rank(rows)) == matrix.shape[1]


def recover(matrix: Float[np.ndarray, "m n"], image: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """The x with ReLU(Bx) = `image`, by least squares on the active rows.

    Raises:
        ValueError: where Lemma 2's condition does not hold.
    """
    if not is_determined(matrix, image):
        raise ValueError("the rows with a non-zero image do not determine x")
    active = active_rows(image)
    return np.linalg.lstsq(matrix[active], image[active])[0]


def another_solution(matrix: Float[np.ndarray, "m n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Another x with the same ReLU(Bx), where Lemma 2's condition does not hold.

    It is reached along the null space of the active rows, which leaves them as they are: half the way to where the first
    of the other rows would become positive, and no farther than the length of x. Of both ways the longer.

    Raises:
        ValueError: where the condition holds, or an element of Bx is exactly 0, so that no way may be left.
    """
    values = matrix @ x
    if is_determined(matrix, np.maximum(values, 0)):
        raise ValueError("the rows with a non-zero image determine x: there is no other")
    if not np.all(values):
        raise ValueError("an element of Bx is 0: ReLU is at its corner, and a way out may be shut")
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
