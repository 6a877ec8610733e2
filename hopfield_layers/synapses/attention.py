"""Attention as an energy."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from .._conversion import as_shape, ShapeLike
from .._numerics.scores import Rows, Scores
from ..lagrangians import AbstractLagrangian, LSoftmax
from ..lagrangians.value_of_scores import as_mask, value_of_scores
from . import base
from .base import AbstractShaped, LagrangianLike, Scalar, token_shape, Weight


class AbstractAttention(AbstractShaped):
    """Attention between any two layers of tokens."""

    Wq: Float[Array, "dq num_heads zspace_dim"]
    Wk: Float[Array, "dk num_heads zspace_dim"]
    hidden_lagrangian: AbstractLagrangian
    mask: Bool[Array, "queries keys"] | None

    def _attention(self, gq: Array, gk: Array) -> Array:
        Q = jnp.einsum("nd,dhz->hnz", gq.reshape(token_shape(gq.shape)), self.Wq.astype(gq.dtype))
        K = jnp.einsum("nd,dhz->hnz", gk.reshape(token_shape(gk.shape)), self.Wk.astype(gk.dtype))

        def of_head(lagrangian: AbstractLagrangian, Q: Array, K: Array) -> Array:
            def of_query(q: Array, mask: Array | None) -> Array:
                return value_of_scores(lagrangian, Scores(Rows((K,), None, mask), (q,)))

            return jax.vmap(of_query)(Q, self.mask)

        return base.over_heads(of_head, self.hidden_lagrangian, Q, K)


class AttentionSynapse(AbstractAttention):
    """A = Σ_hq L_hid(S_hq), S_hqk = Σ_z Q_qhz K_khz, Q = g_q W_q, K = g_k W_k.

    The tokens run along all axes of a layer except the last; a layer of one axis is one token.
    L_hid acts along the keys k, for each head h and query q. With the softmax
    A = Σ_hq ln Σₖ exp(βS)/β, whose gradient with respect to Q is attention to the keys, with β
    instead of 1/√z.

    **Arguments:**

    - `shapes`: the shapes of the layer of queries and that of keys, `(*tokens, d)` each.
    - `key`, `stdinit`: a key of `jax.random`, to draw the weights from N(0, stdinit²).
    - `num_heads`, `zspace_dim`: the number of heads, and the length z of their queries and keys.
    - `hidden_lagrangian`: L_hid, by default [`hopfield_layers.LSoftmax`][]. Its scalar parameters
        may have one value per head, `(num_heads,)`.
    - `mask`: booleans `(queries, keys)`: False leaves the pair out. A query without keys adds 0.
        Booleans have no derivative: use `equinox.filter_grad`.
    - `Wq`, `Wk`: the weights, if no key is passed, `(d, num_heads, zspace_dim)` each. Their shapes
        give `num_heads` and `zspace_dim` if these are left out.

    **Raises:** `ValueError` for the same reasons as [`hopfield_layers.HiddenSynapse`][], and for a
    mask of another shape or dtype, or with a Lagrangian that can't leave a key out.

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
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax(), head[0])
        self.mask = as_mask(mask, self.hidden_lagrangian, (queries, keys), "queries by keys")

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
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax(), head[0])
        self.mask = as_mask(mask, self.hidden_lagrangian, (tokens, tokens), "queries by keys")

    def _alignment(self, *gs: Array) -> Array:
        return self._attention(*gs, *gs)
