"""Synapses that are linear in the activation of each layer."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import as_shape
from .base import AbstractShaped, as_shapes, Shapes, sizes, weights


class DenseSynapse(AbstractShaped):
    """A = Σ W_ij… g¹ᵢ g²ⱼ …, each activation flattened: every unit with every other.

    Any number of layers; for two, A = g¹ᵀ W g².

    **Arguments:**

    - `shapes`: the shapes of the layers.
    - `key`: a key of `jax.random`, to draw the weights.
    - `stdinit`: the standard deviation of the weights.
    - `W`: the weights instead of a key, with one axis per layer, as long as it has units.

    **Raises:** `ValueError` for both a key and weights or neither, or weights of another shape.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> synapse = hl.DenseSynapse((2, 3), W=jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    >>> print(synapse.alignment(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0, 1.0])))
    5.0

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    W: Array

    def __init__(
        self,
        shapes: Any,
        *,
        key: PRNGKeyArray | None = None,
        stdinit: ArrayLike = 0.02,
        W: ArrayLike | None = None,
    ):
        self.shapes = as_shapes(shapes)
        (self.W,) = weights(key, stdinit, W=(W, sizes(self.shapes)))

    def _alignment(self, *gs):
        A = self.W.astype(gs[0].dtype)
        for g in gs:
            # A product of matrices, which needs no transpose of W for its derivative.
            rest = A.shape[1:]
            A = (g.ravel() @ A.reshape(g.size, math.prod(rest))).reshape(rest)
        return A


class BiasSynapse(AbstractShaped):
    """A = Σ b·g: a constant input b to a layer.

    **Arguments:**

    - `shape`: the shape of the layer.
    - `key`: a key of `jax.random`, to draw b from N(0, 0.02²).
    - `b`: the input instead of a key, of the layer's shape.

    **Raises:** `ValueError` for both a key and b or neither, or b of another shape.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.BiasSynapse(2, b=jnp.array([1.0, 2.0])).alignment(jnp.array([3.0, 1.0])))
    5.0

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    b: Array

    def __init__(self, shape: Any, *, key: PRNGKeyArray | None = None, b: ArrayLike | None = None):
        self.shapes = (as_shape(shape),)
        (self.b,) = weights(key, 0.02, b=(b, self.shapes[0]))

    def _alignment(self, *gs):
        (g,) = gs
        return jnp.sum(self.b.astype(g.dtype) * g)
