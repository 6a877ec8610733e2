"""Conversion and checks of what users pass in."""

import math
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array


# Training may drive a parameter that must be positive to zero or below. It then acts as this.
SMALLEST = 1e-30


def as_float(x: Any) -> Array:
    """`x` as a real floating array: integers and booleans get the default float dtype.

    **Raises:** `TypeError` for a complex array or something that is no array.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(x.dtype)  # without the weak type of a Python scalar
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        return x.astype(float)
    raise TypeError(f"Expected real numbers, got {x.dtype}{list(x.shape)}.")


def widened(x: Array) -> Array:
    """`x` in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of non-negative ints; one size is `(size,)`."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    try:
        checked = tuple(operator.index(size) for size in sizes)
    except TypeError:
        checked = None
    if checked is None or any(size < 0 or isinstance(size, bool) for size in sizes):
        raise ValueError(f"Expected a size or a tuple of sizes, integers ≥ 0, got {shape!r}.")
    return checked


def as_state(x: Any, shape: tuple[int, ...], of: str = "") -> Array:
    """`x` as a floating array of shape `(*batch, *shape)`, or a `ValueError` that states both."""
    x = as_float(x)
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        expected = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"Expected a state{of} of shape ({expected}), got {x.shape}.")
    return x


def spread(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """`x`, broadcast to `shape`, or a `ValueError` that states both."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError as error:
        message = f"{name} has shape {x.shape}, which does not broadcast to {shape}."
        raise ValueError(message) from error


def check_range(owner: Any, name: str, value: ArrayLike, above: float = -math.inf) -> None:
    """Raises a `ValueError` unless `value`, where it is known, is finite and above the bound."""
    if isinstance(value, Tracer):
        return
    array = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(array) & (array > above)):
        bound = "" if math.isinf(above) else f" and greater than {above:g}"
        owner = type(owner).__name__
        raise ValueError(f"{owner}: {name} must be finite{bound}, got {array}.")
