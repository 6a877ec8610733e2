"""Attention as an energy."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from .._conversion import as_shape, ShapeLike
from ..lagrangians import AbstractLagrangian, LEntmax, LGhostmax, LSoftmax, LSparsemax
from . import base
from .base import AbstractShaped, LagrangianLike, Scalar, token_shape, Weight
from .blocks import row_values


# Lagrangians to which a unit far below the largest of its row adds nothing.
_IGNORING_LOW_SCORES = (LSoftmax, LGhostmax, LSparsemax, LEntmax)


class AbstractAttention(AbstractShaped):
    """Attention between any two layers of tokens."""

    Wq: Float[Array, "dq num_heads zspace_dim"]
    Wk: Float[Array, "dk num_heads zspace_dim"]
    hidden_lagrangian: AbstractLagrangian
    mask: Bool[Array, "queries keys"] | None

    def _attention(self, gq: Array, gk: Array) -> Array:
        lagrangian, mask = self.hidden_lagrangian, self.mask
        Q = jnp.einsum("nd,dhz->hnz", gq.reshape(token_shape(gq.shape)), self.Wq.astype(gq.dtype))
        K = jnp.einsum("nd,dhz->hnz", gk.reshape(token_shape(gk.shape)), self.Wk.astype(gk.dtype))
        S = jnp.einsum("hqz,hkz->hqk", Q, K)
        if mask is None:
            return jnp.sum(row_values(lagrangian, S))
        if not lagrangian.coupled_axes(1):
            S, mask = S[..., None], mask[..., None]  # each score is a row of one unit
        # A masked score is far below all others, yet no difference of scores leaves the range.
        has_keys = jnp.any(mask, axis=-1, keepdims=True)
        lowest = jnp.where(has_keys, -(float(jnp.finfo(S.dtype).max) ** 0.9), 0)
        values = row_values(lagrangian, jnp.where(mask, S, lowest.astype(S.dtype)))
        return jnp.sum(jnp.where(has_keys[..., 0], values, 0))


class AttentionSynapse(AbstractAttention):
    """A = Σ_hq L_hid(S_hq), S_hqk = Σ_z Q_qhz K_khz, Q = g_q W_q, K = g_k W_k.

    The tokens run along all axes of a layer but the last; a layer of one axis is one token. L_hid
    acts on the keys k, for each head h and query q. With the softmax, A = Σ_hq ln Σₖ exp(βS)/β,
    whose gradient with respect to the queries is attention, with β in the place of 1/√z.

    **Arguments:**

    - `shapes`: the shapes of the layer of queries and that of keys, `(*tokens, d)` each.
    - `key`, `stdinit`: a key of `jax.random`, to draw the weights from N(0, stdinit²).
    - `num_heads`, `zspace_dim`: the number of heads, and the length of each one's queries and keys.
    - `hidden_lagrangian`: L_hid, by default [`hopfield_layers.LSoftmax`][].
    - `mask`: booleans `(queries, keys)`: False leaves the pair out. A query without keys adds 0.
        Booleans have no derivative, so `equinox.filter_grad` must leave them out.
    - `Wq`, `Wk`: the weights, if no key is passed, `(d, num_heads, zspace_dim)` each. They decide
        the number of heads and the length that are left out.

    **Raises:** `ValueError` as [`hopfield_layers.HiddenSynapse`][] does, and for a mask of another
    shape or dtype, or with a Lagrangian that can't leave a key out.

    Source: Hoover et al., "Energy transformer" (NeurIPS 2023), arXiv:2302.07253.

    Examples:
        >>> causal = jnp.tril(jnp.ones((5, 5), bool))
        >>> synapse = hl.AttentionSynapse([(5, 8), (5, 4)], key=jax.random.key(0), mask=causal)
        >>> print(jax.grad(synapse.alignment)(jnp.zeros((5, 8)), jnp.ones((5, 4))).shape)
        (5, 8)
    """

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: Scalar = 0.02,
        hidden_lagrangian: LagrangianLike | None = None,
        mask: Shaped[ArrayLike, "..."] | None = None,
        Wq: Weight | None = None,
        Wk: Weight | None = None,
    ):
        self.shapes = base.as_shapes(shapes, 2)
        (queries, dq), (keys, dk) = map(token_shape, self.shapes)
        head = base.head_shape(Wq, 1, num_heads, zspace_dim)
        self.Wq, self.Wk = base.weights(key, stdinit, Wq=(Wq, (dq, *head)), Wk=(Wk, (dk, *head)))
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax())
        self.mask = _as_mask(mask, (queries, keys), self.hidden_lagrangian)

    def _alignment(self, *gs: Array) -> Array:
        return self._attention(*gs)


class SelfAttentionSynapse(AbstractAttention):
    """A of an [`hopfield_layers.AttentionSynapse`][] with g_q = g_k: a layer attends to itself.

    Arguments and errors are those of an `AttentionSynapse`, with one shape `(*tokens, d)`.

    Examples:
        >>> W = jnp.ones((1, 1, 1))
        >>> synapse = hl.SelfAttentionSynapse((4, 1), Wq=W, Wk=W)
        >>> print(synapse.alignment(jnp.zeros((4, 1))))  # 4 ln 4
        5.5451775
    """

    def __init__(
        self,
        shape: ShapeLike,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: Scalar = 0.02,
        hidden_lagrangian: LagrangianLike | None = None,
        mask: Shaped[ArrayLike, "..."] | None = None,
        Wq: Weight | None = None,
        Wk: Weight | None = None,
    ):
        self.shapes = (as_shape(shape),)
        tokens, d = token_shape(self.shapes[0])
        head = base.head_shape(Wq, 1, num_heads, zspace_dim)
        self.Wq, self.Wk = base.weights(key, stdinit, Wq=(Wq, (d, *head)), Wk=(Wk, (d, *head)))
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax())
        self.mask = _as_mask(mask, (tokens, tokens), self.hidden_lagrangian)

    def _alignment(self, *gs: Array) -> Array:
        return self._attention(*gs, *gs)


def _as_mask(mask: ArrayLike | None, shape: tuple[int, int], lagrangian: AbstractLagrangian):
    """`mask` as an array, or an error if its shape, its dtype or the Lagrangian rule it out."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != shape:
        got = f"{mask.dtype}{list(mask.shape)}"
        raise ValueError(f"Expected a boolean mask of shape {shape}, queries by keys, got {got}.")
    if not isinstance(lagrangian, _IGNORING_LOW_SCORES) and lagrangian.coupled_axes(1):
        raise ValueError(
            "A mask needs a Lagrangian that can leave a key out: one with a term per key, or one "
            f"whose activations are 0 far below the largest score; {lagrangian!r} has neither."
        )
    return mask
