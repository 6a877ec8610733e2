"""Synapses through hidden units, whose Lagrangian makes them nonlinear."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from .._conversion import as_float, as_shape, ShapeLike
from .._numerics.scores import Rows, Scores
from ..lagrangians import AbstractLagrangian, LRelu, LSoftmax
from ..lagrangians.value_of_scores import as_mask, row_value, value_of_scores
from . import base
from .base import AbstractShaped, LagrangianLike, Scalar, token_shape, Weight


class HiddenSynapse(AbstractShaped):
    """A = L_hid(h), h_μ = Σₖ ξᵏ_μ·gᵏ + b_μ: a dense associative memory of the patterns ξ.

    The hidden units have no state of their own: they are at the minimum of the energy, given the
    layers. With a softmax as L_hid this is the modern Hopfield network. With b_μ = −‖ξ_μ‖²/2, a
    softmax and a layer of identity units it is the Euclidean memory, whose energy with the layer's
    is E = −ln Σ exp(−β‖x − ξ_μ‖²/2)/β.

    A and its derivatives are evaluated for a block of patterns at a time. Besides the patterns, a
    batch needs memory for a few blocks of scores; the gradient with respect to the patterns needs
    one more array of their size. Entmax and sparsemax read the patterns several times. All h are
    formed at once if L_hid is a plain callable, or if it couples the hidden units and is not a
    softmax, ghostmax, entmax or sparsemax.

    Patterns that are divided among devices, by `jax.device_put` before `from_patterns`, stay where
    they are: each device evaluates its own, and one reduction, of the state's size and a few
    numbers per sample, merges the results. Entmax and sparsemax need one more reduction for each
    pass in the search for their threshold.

    **Arguments:**

    - `shapes`: the shapes of the layers, in the order of the activations.
    - `nhid`: the number of hidden units.
    - `key`, `stdinit`: a key of `jax.random`, to draw the patterns from N(0, stdinit²).
    - `hidden_lagrangian`: L_hid, by default [`hopfield_layers.LRelu`][], or a plain convex
        callable. It acts on the hidden units as on a state of one axis.
    - `Ws`: the patterns as columns, if no key is passed, a tuple with one array `(units, nhid)` per
        layer. The attribute `Ws` has this layout too; the attribute `patterns` has the stored one.
    - `patterns`: instead of `Ws`, the patterns as rows, a tuple with one array `(nhid, *shape)` per
        layer. The dtypes bfloat16, float16, float8 and 8-bit integers are kept, and each block is
        widened when it is used. The gradient of the patterns is rounded to their dtype, and in
        float8 overflows to NaN: widen the patterns to train them. Integers have no gradient.
    - `bias`: b, `(nhid,)`.
    - `mask`: booleans `(nhid,)`: False leaves a hidden unit out, whatever its pattern is. If all
        are False the alignment is 0. Booleans have no derivative: use `equinox.filter_grad`.

    **Raises:** `ValueError` for none or more than one of a key, Ws and patterns; for arrays of
    another shape; for a mask that is not boolean, or whose Lagrangian can't leave a unit out; and
    for a Lagrangian that acts along an axis which a state of one axis doesn't have.

    Source: Krotov & Hopfield, "Dense associative memory for pattern recognition" (NeurIPS 2016);
    Ramsauer et al., "Hopfield networks is all you need" (ICLR 2021), arXiv:2008.02217.

    Examples:
        >>> patterns = jnp.array([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]])
        >>> memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=5.0))
        >>> print(jax.grad(memory.alignment)(jnp.array([0.9, 0.0, -0.2])).round(3))  # the first
        [ 1.  1. -1.]

        A memory with free slots. Writing into one of them compiles nothing:

        >>> import equinox as eqx
        >>> free = jnp.zeros(4, bool)
        >>> memory = hl.HiddenSynapse.from_patterns(
        ...     jnp.zeros((4, 3)), hl.LSoftmax(beta=5.0), mask=free
        ... )
        >>> for slot, pattern in enumerate(patterns):
        ...     filled = (memory.patterns[0].at[slot].set(pattern),), memory.mask.at[slot].set(True)
        ...     memory = eqx.tree_at(lambda m: (m.patterns, m.mask), memory, filled)
        >>> print(jax.grad(memory.alignment)(jnp.array([0.9, 0.0, -0.2])).round(3))
        [ 1.  1. -1.]
    """

    patterns: tuple[Shaped[Array, "nhid ..."], ...]
    bias: Float[Array, " nhid"] | None
    mask: Bool[Array, " nhid"] | None
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
        patterns: Sequence[Weight] | None = None,
        bias: Weight | None = None,
        mask: Weight | None = None,
    ):
        self.shapes = base.as_shapes(shapes)
        (nhid,) = as_shape(nhid)
        if patterns is None:
            columns = self._columns(Ws, nhid, key, stdinit)
            pairs = zip(columns, self.shapes, strict=True)
            self.patterns = tuple(W.T.reshape(nhid, *shape) for W, shape in pairs)
        elif key is not None or Ws is not None:
            raise ValueError("Expected one of a key, Ws and patterns, got patterns and another.")
        else:
            if not isinstance(patterns, tuple | list):
                raise ValueError(
                    f"Expected a tuple of patterns, one array per layer, got {patterns!r}."
                )
            self.patterns = tuple(map(_as_patterns, patterns))
            expected = tuple((nhid, *shape) for shape in self.shapes)
            if (got := tuple(p.shape for p in self.patterns)) != expected:
                raise ValueError(f"Expected patterns of shapes {expected}, got {got}.")
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LRelu())
        self.bias = None if bias is None else as_float(bias)
        if self.bias is not None and self.bias.shape != (nhid,):
            raise ValueError(f"Expected a bias of shape {(nhid,)}, got {self.bias.shape}.")
        self.mask = as_mask(mask, self.hidden_lagrangian, (nhid,), "the hidden units")

    def _columns(self, Ws, nhid, key, stdinit) -> list[Array]:
        """The patterns as columns, given or drawn."""
        arrays = (None,) * len(self.shapes) if Ws is None else tuple(Ws)
        if len(arrays) != len(self.shapes):
            raise ValueError(f"Expected Ws for {len(self.shapes)} layers, got {len(arrays)}.")
        sizes = [(math.prod(shape), nhid) for shape in self.shapes]
        expected = {f"Ws[{i}]": pair for i, pair in enumerate(zip(arrays, sizes, strict=True))}
        return base.weights(key, stdinit, **expected)

    @classmethod
    def from_patterns(
        cls,
        patterns: Weight | tuple[Weight, ...],
        hidden_lagrangian: LagrangianLike,
        *,
        bias: Weight | None = None,
        mask: Weight | None = None,
    ) -> "HiddenSynapse":
        """Makes a memory of K patterns, one per hidden unit, without copying JAX's arrays.

        **Arguments:**

        - `patterns`: an array `(K, *shape)`, or a tuple of one such array per layer.
        - `hidden_lagrangian`, `bias`, `mask`: as for a [`hopfield_layers.HiddenSynapse`][].

        **Raises:** `ValueError` for an array without an axis of patterns, or for unequal K.
        """
        arrays = [
            _as_patterns(a) for a in (patterns if isinstance(patterns, tuple) else (patterns,))
        ]
        if any(a.ndim == 0 for a in arrays) or len({a.shape[:1] for a in arrays}) != 1:
            raise ValueError(
                "Expected patterns of shape (K, *shape), the same K for all layers, got "
                f"{[a.shape for a in arrays]}."
            )
        shapes = [a.shape[1:] for a in arrays]
        options = {"hidden_lagrangian": hidden_lagrangian, "bias": bias, "mask": mask}
        return cls(shapes, len(arrays[0]), patterns=arrays, **options)

    @property
    def Ws(self) -> tuple[Shaped[Array, "_ nhid"], ...]:
        """The patterns as columns, one array per layer."""
        return tuple(
            jnp.asarray(p).reshape(len(p), math.prod(p.shape[1:])).T for p in self.patterns
        )

    def _alignment(self, *gs: Array) -> Array:
        rows = Rows(self.patterns, self.bias, self.mask, has_free_slots=True)
        return value_of_scores(self.hidden_lagrangian, Scores(rows, tuple(g.ravel() for g in gs)))


def _as_patterns(x: Weight) -> Array:
    """`x` as an array, whose dtype is kept if it is a floating one or an integer of 8 bits."""
    # `jnp.asarray` makes a temporary second copy of a NumPy array.
    array = jax.device_put(x) if isinstance(x, np.ndarray) else jnp.asarray(x)
    return array if array.dtype in (jnp.int8, jnp.uint8) else as_float(array)


class HiddenTensorSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σ W_yzij… g¹ᵢ g²ⱼ …, each activation flattened.

    L_hid acts on the hidden units z of each head y. Layers enter h as a product, whereas in a
    [`hopfield_layers.HiddenSynapse`][] they enter as a sum.

    **Arguments and errors:** as for a `HiddenSynapse`, except

    - `num_heads`: the number of heads, of `nhid` hidden units each.
    - `W`: the weights, if no key is passed, `(num_heads, nhid, *units)` with one axis per layer.
        Its shape gives the number of heads if `num_heads` is left out.

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
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LRelu(), shape[0])

    def _alignment(self, *gs: Array) -> Array:
        h = self.W.astype(gs[0].dtype)
        for g in reversed(gs):
            h = jnp.tensordot(h, g.ravel(), 1)
        return base.over_heads(row_value, self.hidden_lagrangian, h)


class MixerSynapse(AbstractShaped):
    """A = Σ_y L_hid(h_y), h_yz = Σₙ Σ W_yzab g¹ₙₐ g²ₙᵦ: two layers of tokens n, summed over tokens.

    L_hid acts on the hidden units z of each head y.

    **Arguments and errors:** as for [`hopfield_layers.AttentionSynapse`][] without a mask, except

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
        self.hidden_lagrangian = base.row_lagrangian(hidden_lagrangian, LSoftmax(), shape[0])

    def _alignment(self, *gs: Array) -> Array:
        g1, g2 = (g.reshape(token_shape(g.shape)) for g in gs)
        h = jnp.tensordot(self.W.astype(g1.dtype), g1.T @ g2, 2)
        return base.over_heads(row_value, self.hidden_lagrangian, h)
