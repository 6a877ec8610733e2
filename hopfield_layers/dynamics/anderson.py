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

    rows: tuple[Float[Array, "2 n"], ...]  # row i of ΔF and row i of ΔS
    gram: Float[Array, "history history"]  # ΔF ΔFᵀ
    num_changes: Int[Array, ""]  # since it was empty, with those replaced since

    @property
    def dfs(self) -> tuple[Float[Array, " n"], ...]:
        return tuple(df for df, _ in self.rows)


def no_history(room: int, x: Float[Array, " n"]) -> History:
    """An empty history, with room for `room` changes."""
    rows = (jnp.zeros((2, *x.shape), x.dtype),) * room
    return History(rows, jnp.zeros((room, room), x.dtype), jnp.zeros((), jnp.int32))


def pushed(
    history: History, is_new: Bool[Array, ""], df: Float[Array, " n"], ds: Float[Array, " n"]
) -> History:
    """The history with one more change if `is_new`, and otherwise an empty history."""
    room = len(history.gram)
    if room == 0:
        return history
    is_row = (np.arange(room) == history.num_changes % room) & is_new
    new = jnp.stack([df, ds])
    rows = tuple(jnp.where(is_row[i], new, row) for i, row in enumerate(history.rows))
    history = history._replace(rows=rows)
    new_row = products(history.dfs, df)
    gram = jnp.where(is_row, new_row[:, None], history.gram)
    gram = jnp.where(is_row[:, None], new_row, gram)
    return History(rows, gram, jnp.where(is_new, history.num_changes + 1, 0))


def extrapolated(history: History, f: Float[Array, " n"], s: Float[Array, " n"]) -> Array:
    """The point to which Anderson's method goes from f and s = x + f."""
    if len(history.gram) == 0:
        return s
    is_used = np.arange(len(history.gram)) < history.num_changes
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
    right = jnp.where(is_used, scale * products(history.dfs, f), 0)
    weights = scale * _solution(gram, right)
    terms = zip(is_used, weights, history.rows, strict=True)
    return s - sum(jnp.where(used, weight * ds, 0) for used, weight, (_, ds) in terms)


def _solution(matrix: Array, b: Array) -> Array:
    """x with matrix x = b, by Gauss–Jordan elimination.

    A positive definite matrix needs no pivoting; where rounding makes a pivot 0, the candidate is
    not finite and is rejected. Under `vmap` this is elementwise work on the whole batch, whereas
    LAPACK would be called once for each sample.
    """
    rows = jnp.concatenate([matrix, b[:, None]], axis=1)
    for i in range(len(b)):
        # XLA fuses a division of entries by entries with the rest. It would replace a division by
        # one number by a product with the inverse of this number, which is a kernel of its own.
        others = np.broadcast_to(np.arange(len(b))[:, None] != i, rows.shape)
        divisors = jnp.where(others, rows[i, i], 1)
        rows = rows - jnp.where(others, rows[:, i, None] * rows[i], 0) / divisors
    diagonal = jnp.sum(jnp.where(np.eye(len(b), dtype=bool), rows[:, :-1], 0), axis=1)
    return rows[:, -1] / diagonal
