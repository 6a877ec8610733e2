"""Convolutional synapses."""

import math
import operator
import string
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._conversion import as_shape, ShapeLike
from .base import AbstractShaped, as_shapes, Scalar, Weight, weights


Padding = Literal["SAME", "VALID", "SAME_LOWER"] | Sequence[Sequence[int]]
Pairs = tuple[tuple[int, int], ...]


class ConvSynapse(AbstractShaped):
    """A = Σ g² ⊙ pool(conv(g¹; kernel)), for layers `(*space, channels)`.

    The kernel is not flipped. Sizes and strides are one number per axis of space, or one for all.

    **Arguments:**

    - `shapes`: the shapes of the two layers. The second is that of the result.
    - `kernel_size`, `strides`: the size of the kernel, and the strides of the convolution.
    - `key`, `stdinit`: as for [`hopfield_layers.DenseSynapse`][].
    - `padding`: `"SAME"`, `"VALID"`, `"SAME_LOWER"`, or a pair `(low, high)` per axis of space.
    - `pool`: how to pool the result, without padding: None, `"avg"` or `"max"`.
    - `pool_window`, `pool_strides`: the size of the windows, by default 2, and their strides, by
        default their size.
    - `kernel`: the kernel, if no key is passed, `(*kernel_size, channels in, channels out)`.

    **Raises:** `ValueError` for both a key and a kernel or neither, a kernel of another shape, a
    second layer that doesn't have the shape of the result, or windows without pooling.

    Examples:
        >>> kernel = jnp.ones((2, 2, 1, 1))
        >>> synapse = hl.ConvSynapse([(4, 4, 1), (2, 2, 1)], 2, strides=2, kernel=kernel)
        >>> print(synapse.alignment(jnp.ones((4, 4, 1)), jnp.ones((2, 2, 1))))
        16.0
    """

    kernel: Float[Array, "*kernel_size channels_in channels_out"]
    strides: tuple[int, ...] = eqx.field(static=True)
    padding: str | Pairs = eqx.field(static=True)
    pool: str | None = eqx.field(static=True)
    pool_window: tuple[int, ...] | None = eqx.field(static=True)
    pool_strides: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        shapes: Sequence[ShapeLike],
        kernel_size: ShapeLike,
        *,
        key: PRNGKeyArray | None = None,
        strides: ShapeLike = 1,
        padding: Padding = "SAME",
        pool: Literal["avg", "max"] | None = None,
        pool_window: ShapeLike | None = None,
        pool_strides: ShapeLike | None = None,
        stdinit: Scalar = 0.02,
        kernel: Weight | None = None,
    ):
        self.shapes = as_shapes(shapes, 2)
        first, second = self.shapes
        if not len(first) == len(second) >= 2:
            raise ValueError(f"Expected two layers of shapes (*space, channels), got {shapes}.")
        num_axes = len(first) - 1
        self.strides = _per_axis("strides", strides, num_axes)
        self.padding = _as_padding(padding, num_axes)
        if pool not in (None, "avg", "max"):
            raise ValueError(f'Expected pool to be None, "avg" or "max", got {pool!r}.')
        if pool is None and not (pool_window is None and pool_strides is None):
            raise ValueError('A pool_window or pool_strides need pool="avg" or pool="max".')
        self.pool, self.pool_window, self.pool_strides = pool, None, None
        if pool is not None:
            window = 2 if pool_window is None else pool_window
            strides = window if pool_strides is None else pool_strides
            self.pool_window = _per_axis("pool_window", window, num_axes)
            self.pool_strides = _per_axis("pool_strides", strides, num_axes)
        shape = (*_per_axis("kernel_size", kernel_size, num_axes), first[-1], second[-1])
        (self.kernel,) = weights(key, stdinit, kernel=(kernel, shape))
        result = jax.eval_shape(self._pooled, jax.ShapeDtypeStruct(first, self.kernel.dtype)).shape
        if result != second:
            raise ValueError(
                f"Expected a second layer of the shape {result} of the result, got {second}."
            )

    def _alignment(self, *gs: Array) -> Array:
        g1, g2 = gs
        return jnp.sum(g2 * self._pooled(g1))

    def _pooled(self, g: Array) -> Array:
        """pool(conv(g; kernel))."""
        space = string.ascii_lowercase[: g.ndim - 1]
        layouts = (f"N{space}C", f"{space}IO", f"N{space}C")
        (out,) = lax.conv_general_dilated(
            g[None], self.kernel.astype(g.dtype), self.strides, self.padding, None, None, layouts
        )
        if self.pool_window is None or self.pool_strides is None:
            return out
        reduce, initial = (lax.max, -np.inf) if self.pool == "max" else (lax.add, 0.0)
        # Only with a concrete NumPy scalar does JAX recognise a reduction it can differentiate.
        initial = np.asarray(initial, out.dtype)
        window, strides = (*self.pool_window, 1), (*self.pool_strides, 1)
        out = lax.reduce_window(out, initial, reduce, window, strides, "VALID")
        return out if self.pool == "max" else out / math.prod(window)


def _per_axis(name: str, sizes: ShapeLike, num_axes: int) -> tuple[int, ...]:
    """`sizes` as positive numbers, one for each axis of space."""
    per_axis = as_shape(sizes) if isinstance(sizes, tuple | list) else as_shape(sizes) * num_axes
    if len(per_axis) != num_axes or 0 in per_axis:
        raise ValueError(f"Expected {name} of {num_axes} sizes greater than 0, got {sizes!r}.")
    return per_axis


def _as_padding(padding: Padding, num_axes: int) -> str | Pairs:
    """`padding` in hashable form, or an error if `jax.lax` doesn't know it."""
    if isinstance(padding, str) and padding in ("SAME", "VALID", "SAME_LOWER"):
        return padding
    try:
        pairs = tuple((operator.index(low), operator.index(high)) for low, high in padding)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != num_axes:
        names = '"SAME", "VALID", "SAME_LOWER"'
        raise ValueError(f"Expected padding {names} or {num_axes} pairs, got {padding!r}.")
    return pairs
