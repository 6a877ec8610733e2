"""Attention as an energy."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import as_shape
from ..lagrangians import (
    AbstractLagrangian,
    as_lagrangian,
    LEntmax,
    LGhostmax,
    LSoftmax,
    LSparsemax,
)
from .base import AbstractShaped, as_shapes, heads, Shapes, weights
from .hidden import tokens
from .rows import row_values, unit_values


_SIMPLEX = (LSoftmax, LGhostmax, LSparsemax, LEntmax)


class _AbstractAttention(AbstractShaped):
    Wq: eqx.AbstractVar[Array]
    Wk: eqx.AbstractVar[Array]
    hidden_lagrangian: eqx.AbstractVar[AbstractLagrangian]
    mask: eqx.AbstractVar[Array | None]

    def _aligned(self, gq: Array, gk: Array) -> Array:
        """Σ_hq L_hid(S_hq)."""
        lagrangian, mask = self.hidden_lagrangian, self.mask
        Q, K = (
            jnp.einsum("nd,dhz->hnz", g.reshape(tokens(g.shape)), W.astype(g.dtype))
            for g, W in ((gq, self.Wq), (gk, self.Wk))
        )
        S = jnp.einsum("hqz,hkz->hqk", Q, K)
        if mask is None:
            return jnp.sum(row_values(lagrangian, S))
        if not isinstance(lagrangian, _SIMPLEX):
            values = unit_values(lagrangian, jnp.where(mask, S, 0))
            return jnp.sum(jnp.where(mask, values, 0))
        # Far below all scores, but such that no difference leaves the range.
        attends = jnp.any(mask, axis=-1, keepdims=True)
        least = jnp.where(attends, -(float(jnp.finfo(S.dtype).max) ** 0.9), 0)
        values = row_values(lagrangian, jnp.where(mask, S, least.astype(S.dtype)))
        return jnp.sum(jnp.where(attends[:, 0], values, 0))


class AttentionSynapse(_AbstractAttention):
    """A = Σ_hq L_hid(S_hq), S_hqk = Σ_z Q_qhz K_khz, Q = g_q W_q, K = g_k W_k.

    The tokens run along all axes of a layer but the last; a layer of one axis is one token. L_hid
    acts on the keys k, for each head h and query q. With the softmax, A = Σ_hq ln Σₖ exp(βS)/β,
    whose gradient is attention and its counterpart from the keys' side. There is no 1/√z; β is
    there for that.

    **Arguments:**

    - `shapes`: the shapes of the layer of queries and that of keys, `(*tokens, d)` each.
    - `key`: a key of `jax.random`, to draw the weights.
    - `num_heads`: the number of heads.
    - `zspace_dim`: the length of a head's queries and keys.
    - `stdinit`: the standard deviation of the weights.
    - `hidden_lagrangian`: L_hid, a [`hopfield_layers.AbstractLagrangian`][] or a plain convex
        callable. It acts on a query's keys as on a state of one axis. By default
        [`hopfield_layers.LSoftmax`][].
    - `mask`: booleans `(queries, keys)`: False leaves the pair out. A query without keys adds 0.
        As it isn't differentiable, take `equinox.filter_grad` for derivatives of the weights.
    - `Wq`, `Wk`: the weights instead of a key, `(d, num_heads, zspace_dim)` each, with their own
        numbers of heads and units.

    **Raises:** `ValueError` for both a key and weights or neither, weights or a mask of another
    shape or dtype, or a Lagrangian that can't leave a key out.

    Source: Hoover et al., "Energy transformer" (NeurIPS 2023), arXiv:2302.07253.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> import jax.numpy as jnp
    >>> causal = jnp.tril(jnp.ones((5, 5), bool))
    >>> synapse = hl.AttentionSynapse([(5, 8), (5, 4)], key=jax.random.key(0), mask=causal)
    >>> to_keys = jax.grad(synapse.alignment)(jnp.zeros((5, 8)), jnp.ones((5, 4)))
    >>> print(to_keys.shape)
    (5, 8)

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    Wq: Array
    Wk: Array
    hidden_lagrangian: AbstractLagrangian
    mask: Array | None

    def __init__(
        self,
        shapes: Any,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: ArrayLike = 0.02,
        hidden_lagrangian: Any = None,
        mask: ArrayLike | None = None,
        Wq: ArrayLike | None = None,
        Wk: ArrayLike | None = None,
    ):
        self.shapes = as_shapes(shapes, 2)
        head = heads((num_heads, zspace_dim), Wq, (1, 2))
        self.Wq, self.Wk = _projections(self.shapes, head, key, stdinit, Wq, Wk)
        hidden_lagrangian = LSoftmax() if hidden_lagrangian is None else hidden_lagrangian
        self.hidden_lagrangian = as_lagrangian(hidden_lagrangian)
        self.mask = _as_mask(mask, self.shapes, self.hidden_lagrangian)

    def _alignment(self, *gs):
        return self._aligned(*gs)


class SelfAttentionSynapse(_AbstractAttention):
    """[`hopfield_layers.AttentionSynapse`][] of a layer with itself.

    **Arguments:**

    - `shape`: the shape of the layer, `(*tokens, d)`.
    - `key`: a key of `jax.random`, to draw the weights.
    - `num_heads`: the number of heads.
    - `zspace_dim`: the length of a head's queries and keys.
    - `stdinit`: the standard deviation of the weights.
    - `hidden_lagrangian`: L_hid, as there. By default [`hopfield_layers.LSoftmax`][].
    - `mask`: booleans `(queries, keys)`: False leaves the pair out. A query without keys adds 0.
        As it isn't differentiable, take `equinox.filter_grad` for derivatives of the weights.
    - `Wq`, `Wk`: the weights instead of a key, `(d, num_heads, zspace_dim)` each, with their own
        numbers of heads and units.

    **Raises:** `ValueError` as there.

    Source: Hoover et al., "Energy transformer" (NeurIPS 2023), arXiv:2302.07253.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> synapse = hl.SelfAttentionSynapse(
    ...     (4, 1), zspace_dim=1, Wq=jnp.ones((1, 1, 1)), Wk=jnp.ones((1, 1, 1))
    ... )
    >>> print(synapse.alignment(jnp.zeros((4, 1))))  # 4 ln 4
    5.5451775

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    Wq: Array
    Wk: Array
    hidden_lagrangian: AbstractLagrangian
    mask: Array | None

    def __init__(
        self,
        shape: Any,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: ArrayLike = 0.02,
        hidden_lagrangian: Any = None,
        mask: ArrayLike | None = None,
        Wq: ArrayLike | None = None,
        Wk: ArrayLike | None = None,
    ):
        self.shapes = (as_shape(shape),)
        pair, head = self.shapes * 2, heads((num_heads, zspace_dim), Wq, (1, 2))
        self.Wq, self.Wk = _projections(pair, head, key, stdinit, Wq, Wk)
        hidden_lagrangian = LSoftmax() if hidden_lagrangian is None else hidden_lagrangian
        self.hidden_lagrangian = as_lagrangian(hidden_lagrangian)
        self.mask = _as_mask(mask, pair, self.hidden_lagrangian)

    def _alignment(self, *gs):
        return self._aligned(*gs, *gs)


def _projections(
    shapes: Shapes, head: tuple[int, ...], key: Any, stdinit: Any, Wq: Any, Wk: Any
) -> list[Array]:
    (_, dq), (_, dk) = map(tokens, shapes)
    return weights(key, stdinit, Wq=(Wq, (dq, *head)), Wk=(Wk, (dk, *head)))


def _as_mask(mask: Any, shapes: Shapes, lagrangian: AbstractLagrangian) -> Array | None:
    """`mask`, or an error if it has no place here."""
    if mask is None:
        return None
    mask, expected = jnp.asarray(mask), tuple(tokens(shape)[0] for shape in shapes)
    if mask.dtype != bool or mask.shape != expected:
        raise ValueError(
            f"Expected a boolean mask of shape {expected}, queries by keys, got "
            f"{mask.dtype}{list(mask.shape)}."
        )
    if not isinstance(lagrangian, _SIMPLEX) and lagrangian.coupled_axes(1):
        raise ValueError(
            "A mask needs a Lagrangian that can leave a key out: one with a term per key, or one "
            f"whose activations are 0 far below the largest score; {lagrangian!r} has neither."
        )
    return mask
