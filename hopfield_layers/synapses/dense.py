"""Synapses that are linear in the activation of each layer."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._conversion import as_shape, ShapeLike
from .base import AbstractShaped, as_shapes, Scalar, Weight, weights


class DenseSynapse(AbstractShaped):
    """A = Σ W_ij… g¹ᵢ g²ⱼ …, each activation flattened, with a weight for every tuple of units.

    For two layers A = g¹ᵀ W g². Connected to one layer twice, `[(("x", "x"), "W")]`, A = gᵀ W g:
    the antisymmetric part of W adds nothing, and a symmetric W adds −∂A/∂g = −2 W g to the drive.
    To store the rows of P in N units by Hebb's rule, take W = PᵀP/(2N) without its diagonal, which
    is half of Hebb's matrix, as below.

    **Arguments:**

    - `shapes`: the shapes of the layers, in the order of the activations.
    - `key`, `stdinit`: a key of `jax.random`, to draw the weights from N(0, stdinit²).
    - `W`: the weights, if no key is passed, of shape `(units of layer 1, …)`.

    **Raises:** `ValueError` for both a key and weights or neither, or weights of another shape.

    Examples:
        >>> synapse = hl.DenseSynapse((2, 3), W=jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        >>> print(synapse.alignment(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0, 1.0])))
        5.0
        >>> P = jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
        >>> W = P.T @ P / (2 * 6)
        >>> hebb = hl.DenseSynapse((6, 6), W=W - jnp.diag(jnp.diag(W)))
        >>> ham = hl.HAM({"x": hl.TanhLayer(6, beta=5.0)}, {"W": hebb}, [(("x", "x"), "W")])
        >>> x0 = P[0].at[0].set(-1.0)  # the first pattern with its first unit flipped
        >>> print(jnp.sign(hl.relax(ham, {"x": x0}).x["x"]))
        [ 1.  1.  1. -1. -1. -1.]
    """

    W: Float[Array, "..."]

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        *,
        key: PRNGKeyArray | None = None,
        stdinit: Scalar = 0.02,
        W: Weight | None = None,
    ):
        self.shapes = as_shapes(shapes)
        (self.W,) = weights(key, stdinit, W=(W, tuple(map(math.prod, self.shapes))))

    def _alignment(self, *gs: Array) -> Array:
        A = self.W.astype(gs[0].dtype)
        for g in gs:
            # A product of matrices, because its derivative needs no transpose of W.
            remaining = A.shape[1:]
            A = (g.ravel() @ A.reshape(g.size, math.prod(remaining))).reshape(remaining)
        return A


class BiasSynapse(AbstractShaped):
    """A = Σ b·g: a constant input b to a layer, which is a trainable threshold of its units.

    The bias of a [`hopfield_layers.Layer`][] is not a threshold: it shifts the state, but not the
    activation, at which the layer rests. Arguments and errors are those of a
    [`hopfield_layers.DenseSynapse`][] with one `shape`, that of b; a key draws b from N(0, 0.02²).

    Examples:
        >>> print(hl.BiasSynapse(2, b=jnp.array([1.0, 2.0])).alignment(jnp.array([3.0, 1.0])))
        5.0
    """

    b: Float[Array, "..."]

    def __init__(
        self, shape: ShapeLike, *, key: PRNGKeyArray | None = None, b: Weight | None = None
    ):
        self.shapes = (as_shape(shape),)
        (self.b,) = weights(key, 0.02, b=(b, self.shapes[0]))

    def _alignment(self, *gs: Array) -> Array:
        return jnp.sum(self.b.astype(gs[0].dtype) * gs[0])
