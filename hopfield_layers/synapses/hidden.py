"""Synapses through hidden units, whose Lagrangian makes them nonlinear."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._conversion import as_float, as_shape, ShapeLike
from ..lagrangians import AbstractLagrangian, LRelu, LSoftmax
from . import base
from .base import AbstractShaped, LagrangianLike, Scalar, token_shape, Weight
from .blocks import hidden_value, row_values


class HiddenSynapse(AbstractShaped):
    """A = L_hid(h), h_μ = Σₖ Σᵢ gᵏᵢ Wᵏ_iμ, each activation flattened: a dense associative memory.

    The hidden units have no state: each is at its minimum of the energy. The columns of Wᵏ are
    patterns of the layer k; with a softmax as L_hid this is the modern Hopfield network. A and
    ∂A/∂g of a large batch are evaluated in blocks of samples, whose h together take no more room
    than the weights or 2²³ numbers.

    **Arguments:**

    - `shapes`: the shapes of the layers, in the order of the activations.
    - `nhid`: the number of hidden units.
    - `key`, `stdinit`: a key of `jax.random`, to draw the weights from N(0, stdinit²).
    - `hidden_lagrangian`: L_hid, by default [`hopfield_layers.LRelu`][], or a plain convex
        callable. It acts on the hidden units as on a state of one axis.
    - `Ws`: the weights, if no key is passed, a tuple with one array `(units, nhid)` per layer.

    **Raises:** `ValueError` for both a key and weights or neither, weights of another shape, or a
    Lagrangian that acts along an axis which a state of one axis doesn't have.

    Source: Krotov & Hopfield, "Dense associative memory for pattern recognition" (NeurIPS 2016);
    Ramsauer et al., "Hopfield networks is all you need" (ICLR 2021), arXiv:2008.02217.

    Examples:
        >>> patterns = jnp.array([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]])
        >>> memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=5.0))
        >>> print(jax.grad(memory.alignment)(jnp.array([0.9, 0.0, -0.2])).round(3))  # the first
        [ 1.  1. -1.]
    """

    Ws: tuple[Float[Array, "_ nhid"], ...]
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        nhid: int,
        *,
        key: PRNGKeyArray | None = None,
        stdinit: Scalar = 0.02,
        hidden_lagrangian: LagrangianLike | None = None,
        Ws: Sequence[Weight] | None = None,
    ):
        self.shapes = base.as_shapes(shapes)
        arrays = (None,) * len(self.shapes) if Ws is None else tuple(Ws)
        if len(arrays) != len(self.shapes):
            raise ValueError(f"Expected Ws for {len(self.shapes)} layers, got {len(arrays)}.")
        (nhid,) = as_shape(nhid)
        sizes = [(math.prod(shape), nhid) for shape in self.shapes]
        expected = {f"Ws[{i}]": pair for i, pair in enumerate(zip(arrays, sizes, strict=True))}
        self.Ws = tuple(base.weights(key, stdinit, **expected))
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LRelu())

    @classmethod
    def from_patterns(
        cls, patterns: Weight | tuple[Weight, ...], hidden_lagrangian: LagrangianLike
    ) -> "HiddenSynapse":
        """Makes a memory of K patterns, one per hidden unit.

        **Arguments:**

        - `patterns`: an array `(K, *shape)`, or a tuple of one such array per layer.
        - `hidden_lagrangian`: L_hid, of the K hidden units.

        **Raises:** `ValueError` for an array without an axis of patterns, or different K.
        """
        arrays = [as_float(a) for a in (patterns if isinstance(patterns, tuple) else (patterns,))]
        if any(a.ndim == 0 for a in arrays) or len({a.shape[:1] for a in arrays}) != 1:
            raise ValueError(
                "Expected patterns of shape (K, *shape), the same K for all layers, got "
                f"{[a.shape for a in arrays]}."
            )
        shapes = [a.shape[1:] for a in arrays]
        Ws = [a.reshape(len(a), math.prod(a.shape[1:])).T for a in arrays]
        return cls(shapes, len(arrays[0]), hidden_lagrangian=hidden_lagrangian, Ws=Ws)

    def _alignment(self, *gs: Array) -> Array:
        Ws = tuple(W.astype(gs[0].dtype) for W in self.Ws)
        return hidden_value(self.hidden_lagrangian, Ws, tuple(g.ravel() for g in gs))


class HiddenTensorSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σ W_yzij… g¹ᵢ g²ⱼ …, each activation flattened.

    L_hid acts on the hidden units z of each head y. Where [`hopfield_layers.HiddenSynapse`][] adds
    the layers up, this multiplies them.

    **Arguments and errors:** as for a `HiddenSynapse`, but for

    - `num_heads`: the number of heads, of `nhid` hidden units each.
    - `W`: the weights, if no key is passed, `(num_heads, nhid, *units)` with one axis per layer.
        They decide the number of heads if `num_heads` is left out.

    Examples:
        >>> synapse = hl.HiddenTensorSynapse((2, 2), nhid=1, W=jnp.ones((1, 1, 2, 2)))
        >>> print(synapse.alignment(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])))  # ½·3²
        4.5
    """

    W: Float[Array, "num_heads nhid *units"]
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        nhid: int,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        stdinit: Scalar = 0.02,
        hidden_lagrangian: LagrangianLike | None = None,
        W: Weight | None = None,
    ):
        self.shapes = base.as_shapes(shapes)
        shape = as_shape((*base.head_shape(W, 0, num_heads), nhid, *map(math.prod, self.shapes)))
        (self.W,) = base.weights(key, stdinit, W=(W, shape))
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LRelu())

    def _alignment(self, *gs: Array) -> Array:
        h = self.W.astype(gs[0].dtype)
        for g in reversed(gs):
            h = jnp.tensordot(h, g.ravel(), 1)
        return jnp.sum(row_values(self.hidden_lagrangian, h))


class MixerSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σₙ Σ W_yzab g¹ₙₐ g²ₙᵦ: two layers of n tokens, token by token.

    L_hid acts on the hidden units z of each head y.

    **Arguments and errors:** as for an [`hopfield_layers.AttentionSynapse`][] without mask, but for

    - `shapes`: `(*tokens, d1)` and `(*tokens, d2)`, with the same number of tokens.
    - `num_heads`, `zspace_dim`: the number of heads, and of hidden units of each head.
    - `W`: the weights, `(num_heads, zspace_dim, d1, d2)`, instead of `Wq` and `Wk`.

    Examples:
        >>> synapse = hl.MixerSynapse([(5, 8), (5, 4)], key=jax.random.key(0), zspace_dim=3)
        >>> print(synapse.W.shape, synapse.energy(jnp.ones((5, 8)), jnp.ones((5, 4))).shape)
        (1, 3, 8, 4) ()
    """

    W: Float[Array, "num_heads zspace_dim d1 d2"]
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: Scalar = 0.02,
        hidden_lagrangian: LagrangianLike | None = None,
        W: Weight | None = None,
    ):
        self.shapes = base.as_shapes(shapes, 2)
        (n1, d1), (n2, d2) = map(token_shape, self.shapes)
        if n1 != n2:
            raise ValueError(f"Expected two layers of the same tokens, got {self.shapes}.")
        shape = (*base.head_shape(W, 0, num_heads, zspace_dim), d1, d2)
        (self.W,) = base.weights(key, stdinit, W=(W, shape))
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax())

    def _alignment(self, *gs: Array) -> Array:
        g1, g2 = (g.reshape(token_shape(g.shape)) for g in gs)
        h = jnp.tensordot(self.W.astype(g1.dtype), g1.T @ g2, 2)
        return jnp.sum(row_values(self.hidden_lagrangian, h))
