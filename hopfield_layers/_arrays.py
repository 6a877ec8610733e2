"""Conversion and checks of what users pass in."""

import math
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
