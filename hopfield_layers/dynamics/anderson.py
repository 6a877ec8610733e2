"""Anderson acceleration of a fixed-point iteration x ← x + f(x).

The rows of ΔF are the last changes of f, and the rows of ΔS those of the points x + f. The next
point is

    x + f − Σ γᵢ ΔSᵢ,  γ = argmin ‖f − Σ γᵢ ΔFᵢ‖,

where a linear f would be as small as a combination of these rows can make it. γ is computed from
the Gram matrix of the normalized rows; each change adds one row to it. Source: Walker & Ni,
"Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .sums_of_vectors import products


class History(NamedTuple):
    """The latest changes, in no particular order.

    Each row is an array of its own. With matrices XLA on CPUs would repeat a row in memory for its
    products with all others, and batches of 1024 states of a chain of five layers would take 1.5
    times as long.
    """

    df: tuple[Float[Array, " n"], ...]
    ds: tuple[Float[Array, " n"], ...]
    gram: Float[Array, "history history"]  # ΔF ΔFᵀ
    is_used: Bool[Array, " history"]
    oldest: Int[Array, ""]  # the row that the next change replaces


def no_history(room: int, x: Float[Array, " n"]) -> History:
    """An empty history, with room for `room` changes."""
    rows, gram = (jnp.zeros_like(x),) * room, jnp.zeros((room, room), x.dtype)
    return History(rows, rows, gram, jnp.zeros(room, bool), jnp.zeros((), jnp.int32))


def pushed(
    history: History, is_new: Bool[Array, ""], df: Float[Array, " n"], ds: Float[Array, " n"]
) -> History:
    """The history with one more change if `is_new`, and otherwise an empty history."""
    room = len(history.gram)
    if room == 0:
        return history
    is_row = (jnp.arange(room) == history.oldest) & is_new
    dfs, dss = (
        tuple(jnp.where(is_row[i], new, row) for i, row in enumerate(rows))
        for rows, new in ((history.df, df), (history.ds, ds))
    )
    new_row = products(dfs, df)
    gram = jnp.where(is_row, new_row[:, None], history.gram)
    gram = jnp.where(is_row[:, None], new_row, gram)
    is_used = (history.is_used | is_row) & is_new
    return History(dfs, dss, gram, is_used, (history.oldest + 1) % room)


def extrapolated(history: History, f: Float[Array, " n"], s: Float[Array, " n"]) -> Array:
    """The point to which Anderson's method goes from f and s = x + f."""
    if len(history.gram) == 0:
        return s
    is_used = history.is_used
    # Masks, which XLA fuses with the arithmetic: `jnp.diagonal` and `jnp.diag` are gathers.
    on_diagonal = np.eye(len(history.gram), dtype=bool)
    sizes = jnp.sqrt(jnp.sum(jnp.where(on_diagonal, history.gram, 0), axis=1))
    scale = jnp.where(is_used & (sizes > 0), 1 / jnp.where(sizes > 0, sizes, 1), 0)
    # Leaves out the part of the normalized matrix that is below rounding.
    shift = jnp.where(scale > 0, 10 * float(jnp.finfo(f.dtype).eps), 1).astype(f.dtype)
    # Rows that are not in use may have overflowed.
    both = is_used[:, None] & is_used
    gram = jnp.where(both, scale[:, None] * history.gram * scale, 0)
    gram = gram + jnp.where(on_diagonal, shift, 0)
    right = jnp.where(is_used, scale * products(history.df, f), 0)
    weights = scale * _solution(gram, right)
    terms = zip(is_used, weights, history.ds, strict=True)
    return s - sum(jnp.where(used, weight * row, 0) for used, weight, row in terms)


def _solution(matrix: Array, b: Array) -> Array:
    """x with matrix x = b, by Gauss–Jordan elimination.

    A positive definite matrix needs no pivoting. Under `vmap` this is elementwise work on the whole
    batch, whereas LAPACK would be called once for each sample.
    """
    rows = jnp.concatenate([matrix, b[:, None]], axis=1)
    for i in range(len(b)):
        # Dividing all entries fuses with the rest; dividing one row would be a kernel of its own.
        others = np.arange(len(b))[:, None] != i
        rows = jnp.where(others, rows - rows[:, i, None] * rows[i] / rows[i, i], rows)
    diagonal = jnp.sum(jnp.where(np.eye(len(b), dtype=bool), rows[:, :-1], 0), axis=1)
    return rows[:, -1] / diagonal
