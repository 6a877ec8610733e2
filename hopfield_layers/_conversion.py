"""Conversion and checks of users' arguments."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import cast, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree


# `SupportsIndex` and not `int`, so that NumPy's integers are sizes as well.
ShapeLike = SupportsIndex | Sequence[SupportsIndex]
_T = TypeVar("_T")


def as_float(x: ArrayLike) -> Array:
    """`x` as a real floating array, or a `TypeError`; integers get the default float dtype."""
    if isinstance(x, dict):  # NumPy would interpret it as a dtype
        raise TypeError("Expected an array, got a dict.")
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(x.dtype)  # without the weak type of a Python scalar
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        return x.astype(float)
    raise TypeError(f"Expected real numbers, got {x.dtype}{list(x.shape)}.")


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype that the formulas are evaluated in: `dtype`, or float32 if that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Array) -> Array:
    """`x` in float32 at least."""
    return x.astype(wide_dtype(x.dtype))


def as_shape(shape: ShapeLike) -> tuple[int, ...]:
    """`shape` as a tuple of non-negative ints; one size is `(size,)`."""
    sizes = shape if isinstance(shape, tuple | list) else (cast(SupportsIndex, shape),)
    try:
        checked = tuple(map(operator.index, sizes))
    except TypeError:
        checked = (-1,)
    if min(checked, default=0) < 0 or any(isinstance(size, bool) for size in sizes):
        raise ValueError(f"Expected a size or a tuple of sizes, integers ≥ 0, got {shape!r}.")
    return checked


def as_state(x: ArrayLike, shape: tuple[int, ...], owner: str = "") -> Array:
    """`x` as a floating array of shape `(*batch, *shape)`, or a `ValueError` that states both."""
    x = as_float(x)
    check_last_axes(x.shape, shape, f"a state{owner}")
    return x


def check_last_axes(sizes: tuple[int, ...], shape: tuple[int, ...], kind: str) -> None:
    """Raises a `ValueError` unless `sizes` are `(*batch, *shape)`."""
    if sizes[max(len(sizes) - len(shape), 0) :] != shape:
        expected = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"Expected {kind} of shape ({expected}), got {sizes}.")


def broadcast(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """`x`, broadcast to `shape`, or a `ValueError` that states both."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError as error:
        message = f"{name} has shape {x.shape}, which does not broadcast to {shape}."
        raise ValueError(message) from error


def check_range(owner: object, name: str, value: ArrayLike, above: float = -math.inf) -> None:
    """Raises a `ValueError` unless `value`, where it is known, is finite and above the bound."""
    if isinstance(value, Tracer):
        return
    array = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(array) & (array > above)):
        bound = "" if math.isinf(above) else f" and greater than {above:g}"
        raise ValueError(f"{type(owner).__name__}: {name} must be finite{bound}, got {array}.")


def over_samples(fn: Callable[[PyTree], _T], x: PyTree, num_batch_axes: int) -> _T:
    """Applies `fn`, a function of one sample, to every sample along the leading axes of `x`."""
    for _ in range(num_batch_axes):
        fn = jax.vmap(fn)
    return fn(x)
