"""Convolutional synapses."""

import math
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import as_shape
from .base import AbstractShaped, as_shapes, Shapes, weights


class ConvSynapse(AbstractShaped):
    """A = Σ g² ⊙ pool(conv(g¹; kernel)), for layers `(*space, channels)`.

    The number of axes of the layers makes it a convolution in one dimension, two or three. As in
    all of deep learning the kernel is not flipped.

    **Arguments:**

    - `shapes`: the shapes of the two layers. The second is that of the result.
    - `kernel_size`: the size of the kernel along each axis of space, or one size for all.
    - `key`: a key of `jax.random`, to draw the kernel.
    - `strides`: the strides of the convolution along each axis of space, or one for all.
    - `padding`: `"SAME"`, `"VALID"`, `"SAME_LOWER"`, or a pair `(low, high)` per axis of space.
    - `pool`: None, `"avg"` or `"max"`: how to pool the result, without padding.
    - `pool_window`: the size of the windows along each axis of space, or one for all. By default 2.
    - `pool_strides`: their strides, likewise. By default the size of the windows.
    - `stdinit`: the standard deviation of the kernel.
    - `kernel`: the kernel instead of a key, `(*kernel_size, channels in, channels out)`.

    **Raises:** `ValueError` for both a key and a kernel or neither, a kernel of another shape, a
    second layer that hasn't the shape of the result, or windows without pooling.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> kernel = jnp.ones((2, 2, 1, 1))
    >>> synapse = hl.ConvSynapse([(4, 4, 1), (2, 2, 1)], 2, strides=2, kernel=kernel)
    >>> print(synapse.alignment(jnp.ones((4, 4, 1)), jnp.ones((2, 2, 1))))
    16.0

    ```
    """

    shapes: Shapes = eqx.field(static=True)
    kernel: Array
    strides: tuple[int, ...] = eqx.field(static=True)
    padding: str | tuple[tuple[int, int], ...] = eqx.field(static=True)
    pool: str | None = eqx.field(static=True)
    pool_window: tuple[int, ...] | None = eqx.field(static=True)
    pool_strides: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        shapes: Any,
        kernel_size: Any,
        *,
        key: PRNGKeyArray | None = None,
        strides: Any = 1,
        padding: Any = "SAME",
        pool: str | None = None,
        pool_window: Any = None,
        pool_strides: Any = None,
        stdinit: ArrayLike = 0.02,
        kernel: ArrayLike | None = None,
    ):
        self.shapes = as_shapes(shapes, 2)
        first, second = self.shapes
        if not len(first) == len(second) >= 2:
            raise ValueError(f"Expected two layers of shapes (*space, channels), got {shapes}.")
        space = len(first) - 1
        self.strides = _per_axis("strides", strides, space)
        self.padding = _as_padding(padding, space)
        if pool not in (None, "avg", "max"):
            raise ValueError(f'Expected pool to be None, "avg" or "max", got {pool!r}.')
        self.pool = pool
        if pool is None:
            if pool_window is not None or pool_strides is not None:
                raise ValueError('A pool_window or pool_strides need pool="avg" or pool="max".')
            self.pool_window = self.pool_strides = None
        else:
            window = 2 if pool_window is None else pool_window
            self.pool_window = _per_axis("pool_window", window, space)
            pool_strides = self.pool_window if pool_strides is None else pool_strides
            self.pool_strides = _per_axis("pool_strides", pool_strides, space)
        size = _per_axis("kernel_size", kernel_size, space)
        (self.kernel,) = weights(key, stdinit, kernel=(kernel, (*size, first[-1], second[-1])))

    def __check_init__(self):
        first, second = self.shapes
        got = jax.eval_shape(self._pooled, jax.ShapeDtypeStruct(first, self.kernel.dtype)).shape
        if got != second:
            raise ValueError(
                f"Expected a second layer of the shape {got} of the result, got {second}."
            )

    def _alignment(self, *gs):
        g1, g2 = gs
        return jnp.sum(g2 * self._pooled(g1))

    def _pooled(self, g: Array) -> Array:
        """pool(conv(g; kernel))."""
        axes = tuple(range(1, g.ndim))
        numbers = lax.ConvDimensionNumbers(
            lhs_spec=(0, g.ndim, *axes),
            rhs_spec=(g.ndim, g.ndim - 1, *range(g.ndim - 1)),
            out_spec=(0, g.ndim, *axes),
        )
        kernel = self.kernel.astype(g.dtype)
        (out,) = lax.conv_general_dilated(
            g[None], kernel, self.strides, self.padding, dimension_numbers=numbers
        )
        if self.pool_window is None or self.pool_strides is None:
            return out
        least, reduce = (-np.inf, lax.max) if self.pool == "max" else (0.0, lax.add)
        window, strides = (*self.pool_window, 1), (*self.pool_strides, 1)
        start = np.asarray(least, out.dtype)
        out = lax.reduce_window(out, start, reduce, window, strides, "VALID")
        return out if self.pool == "max" else out / math.prod(window)


def _per_axis(name: str, sizes: Any, space: int) -> tuple[int, ...]:
    """`sizes` as positive numbers, one for each axis of space."""
    per_axis = as_shape(sizes)
    per_axis = per_axis if isinstance(sizes, tuple | list) else per_axis * space
    if len(per_axis) != space or 0 in per_axis:
        raise ValueError(f"Expected {name} of {space} sizes greater than 0, got {sizes!r}.")
    return per_axis


def _as_padding(padding: Any, space: int) -> str | tuple[tuple[int, int], ...]:
    """`padding`, hashable, or an error if lax wouldn't know it."""
    if padding in ("SAME", "VALID", "SAME_LOWER"):
        return padding
    pairs = list(padding) if isinstance(padding, tuple | list) else []
    if len(pairs) != space or any(np.shape(pair) != (2,) for pair in pairs):
        raise ValueError(
            f'Expected padding "SAME", "VALID", "SAME_LOWER" or {space} pairs, got {padding!r}.'
        )
    return tuple((operator.index(low), operator.index(high)) for low, high in pairs)
