"""Synapses through hidden units, whose Lagrangian makes them nonlinear."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._arrays import as_float, as_shape
from ..lagrangians import AbstractLagrangian, as_lagrangian, LRelu, LSoftmax
from .base import AbstractShaped, as_shapes, heads, Shapes, sizes, weights
from .blocks import hidden_value
from .rows import row_values


class HiddenSynapse(AbstractShaped):
    """A = L_hid(h), h_μ = Σₖ Σᵢ gᵏᵢ Wᵏ_iμ, each activation flattened: a dense associative memory.

    The hidden units have no state of their own: each is at its minimum of the energy. The columns
    of Wᵏ are patterns of the layer k; with a softmax as L_hid this is the modern Hopfield network.
    A and ∂A/∂g of a batch are evaluated in blocks of samples, whose h together take no more room
    than the weights or 2²³ numbers.

    **Arguments:**

    - `shapes`: the shapes of the layers.
    - `nhid`: the number of hidden units.
    - `key`: a key of `jax.random`, to draw the weights.
    - `stdinit`: the standard deviation of the weights.
    - `hidden_lagrangian`: L_hid, a [`hopfield_layers.AbstractLagrangian`][] or a plain convex
        callable. It acts on the hidden units as on a state of one axis. By default
        [`hopfield_layers.LRelu`][].
    - `Ws`: the weights instead of a key, a tuple with one array `(units, nhid)` per layer.

    **Raises:** `ValueError` for both a key and weights or neither, or weights of another shape.

    Source: Krotov & Hopfield, "Dense associative memory for pattern recognition" (NeurIPS 2016);
    Ramsauer et al., "Hopfield networks is all you need" (ICLR 2021), arXiv:2008.02217.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> import jax.numpy as jnp
    >>> patterns = jnp.array([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]])
    >>> memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=5.0))
    >>> print(jax.grad(memory.alignment)(jnp.array([0.9, 0.0, -0.2])).round(3))  # the first
    [ 1.  1. -1.]

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    Ws: tuple[Array, ...]
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Any,
        nhid: int,
        *,
        key: PRNGKeyArray | None = None,
        stdinit: ArrayLike = 0.02,
        hidden_lagrangian: Any = None,
        Ws: Any = None,
    ):
        self.shapes = as_shapes(shapes)
        given = (None,) * len(self.shapes) if Ws is None else tuple(Ws)
        if len(given) != len(self.shapes):
            raise ValueError(f"Expected Ws for {len(self.shapes)} layers, got {len(given)}.")
        (nhid,) = as_shape(nhid)
        wanted = {
            f"Ws[{i}]": (W, (size, nhid))
            for i, (W, size) in enumerate(zip(given, sizes(self.shapes), strict=True))
        }
        self.Ws = tuple(weights(key, stdinit, **wanted))
        hidden_lagrangian = LRelu() if hidden_lagrangian is None else hidden_lagrangian
        self.hidden_lagrangian = as_lagrangian(hidden_lagrangian)

    @classmethod
    def from_patterns(cls, patterns: PyTree, hidden_lagrangian: Any) -> "HiddenSynapse":
        """A memory of given patterns, one per hidden unit.

        **Arguments:**

        - `patterns`: K patterns of one layer, an array `(K, *shape)`; or a tuple of such arrays,
            one per layer: the parts of the same K patterns.
        - `hidden_lagrangian`: as above.

        **Returns:**

        A [`hopfield_layers.HiddenSynapse`][] with K hidden units.

        **Raises:** `ValueError` for arrays without patterns' axis, or of different numbers of them.
        """
        parts = patterns if isinstance(patterns, tuple) else (patterns,)
        arrays = [as_float(part) for part in parts]
        if any(a.ndim == 0 for a in arrays) or len({a.shape[:1] for a in arrays}) != 1:
            raise ValueError(
                "Expected patterns of shape (K, *shape), the same K for all layers, got "
                f"{[a.shape for a in arrays]}."
            )
        shapes = tuple(a.shape[1:] for a in arrays)
        Ws = [a.reshape(len(a), math.prod(a.shape[1:])).T for a in arrays]
        return cls(shapes, len(arrays[0]), hidden_lagrangian=hidden_lagrangian, Ws=Ws)

    def _alignment(self, *gs):
        return hidden_value(self.hidden_lagrangian, self.Ws, gs)


class HiddenTensorSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σ W_yzij… g¹ᵢ g²ⱼ …, each activation flattened.

    The heads y have hidden units z of their own, on which L_hid acts head by head. Where
    [`hopfield_layers.HiddenSynapse`][] adds the layers up, this multiplies them.

    **Arguments:**

    - `shapes`: the shapes of the layers.
    - `nhid`: the number of hidden units of each head.
    - `key`: a key of `jax.random`, to draw the weights.
    - `num_heads`: the number of heads.
    - `stdinit`: the standard deviation of the weights.
    - `hidden_lagrangian`: L_hid, a [`hopfield_layers.AbstractLagrangian`][] or a plain convex
        callable. It acts on a head's units as on a state of one axis. By default
        [`hopfield_layers.LRelu`][].
    - `W`: the weights instead of a key, `(num_heads, nhid, *units)` with one axis per layer and
        their own number of heads.

    **Raises:** `ValueError` for both a key and weights or neither, or weights of another shape.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> synapse = hl.HiddenTensorSynapse((2, 2), nhid=1, W=jnp.ones((1, 1, 2, 2)))
    >>> print(synapse.alignment(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])))  # ½·3²
    4.5

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    W: Array
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Any,
        nhid: int,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        stdinit: ArrayLike = 0.02,
        hidden_lagrangian: Any = None,
        W: ArrayLike | None = None,
    ):
        self.shapes = as_shapes(shapes)
        hidden = heads((num_heads, nhid), W, (0,))
        (self.W,) = weights(key, stdinit, W=(W, (*hidden, *sizes(self.shapes))))
        hidden_lagrangian = LRelu() if hidden_lagrangian is None else hidden_lagrangian
        self.hidden_lagrangian = as_lagrangian(hidden_lagrangian)

    def _alignment(self, *gs):
        h = self.W.astype(gs[0].dtype)
        for g in reversed(gs):
            h = jnp.tensordot(h, g.ravel(), 1)
        return jnp.sum(row_values(self.hidden_lagrangian, h))


class MixerSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σₙ Σ W_yzab g¹ₙₐ g²ₙᵦ: two layers of n tokens, token by token.

    The tokens run along all axes of a layer but the last; a layer of one axis is one token. L_hid
    acts on the units z of each head y.

    **Arguments:**

    - `shapes`: the shapes of the two layers, `(*tokens, d1)` and `(*tokens, d2)`.
    - `key`: a key of `jax.random`, to draw the weights.
    - `num_heads`: the number of heads.
    - `zspace_dim`: the number of hidden units of each head.
    - `stdinit`: the standard deviation of the weights.
    - `hidden_lagrangian`: L_hid, a [`hopfield_layers.AbstractLagrangian`][] or a plain convex
        callable. It acts on a head's units as on a state of one axis. By default
        [`hopfield_layers.LSoftmax`][].
    - `W`: the weights instead of a key, `(num_heads, zspace_dim, d1, d2)`, with their own numbers
        of heads and units.

    **Raises:** `ValueError` for both a key and weights or neither, weights of another shape, or
    layers with different tokens.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> import jax.numpy as jnp
    >>> synapse = hl.MixerSynapse([(5, 8), (5, 4)], key=jax.random.key(0), zspace_dim=3)
    >>> print(synapse.W.shape, synapse.energy(jnp.ones((5, 8)), jnp.ones((5, 4))).shape)
    (1, 3, 8, 4) ()

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    W: Array
    hidden_lagrangian: AbstractLagrangian

    def __init__(
        self,
        shapes: Any,
        *,
        key: PRNGKeyArray | None = None,
        num_heads: int = 1,
        zspace_dim: int = 64,
        stdinit: ArrayLike = 0.02,
        hidden_lagrangian: Any = None,
        W: ArrayLike | None = None,
    ):
        self.shapes = as_shapes(shapes, 2)
        (n1, d1), (n2, d2) = (tokens(shape) for shape in self.shapes)
        if n1 != n2:
            raise ValueError(f"Expected two layers of the same tokens, got {self.shapes}.")
        hidden = heads((num_heads, zspace_dim), W, (0, 1))
        (self.W,) = weights(key, stdinit, W=(W, (*hidden, d1, d2)))
        hidden_lagrangian = LSoftmax() if hidden_lagrangian is None else hidden_lagrangian
        self.hidden_lagrangian = as_lagrangian(hidden_lagrangian)

    def _alignment(self, *gs):
        g1, g2 = (g.reshape(tokens(g.shape)) for g in gs)
        h = jnp.tensordot(self.W.astype(g1.dtype), g1.T @ g2, 2)
        return jnp.sum(row_values(self.hidden_lagrangian, h))


def tokens(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many tokens a layer has, and the units of each."""
    if not shape:
        raise ValueError("Expected a layer of tokens, of one axis at least, got shape ().")
    return math.prod(shape[:-1]), shape[-1]
