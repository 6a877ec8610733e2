"""The laws of a Lagrangian."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arrays import as_float
from ..lagrangians import AbstractLagrangian, as_lagrangian
from .verdict import check, LAWS, Laws, Measured, rounding, Violation


def assert_lagrangian(lagrangian: Any, x: ArrayLike, y: ArrayLike) -> None:
    """L is convex, g = ∂L/∂x, E = Σ x·g − L, L(y) + E(x) − Σ g(x)·y ≥ 0, and none is NaN.

    Checked in this order, in the dtype of x: L and E are scalars and g has the shape of x; dtypes
    are kept; jit and vmap change nothing; no NaN, no overflow of what is in range; g = ∂L/∂x; E is
    the Legendre transform; L is convex between x and y; the Fenchel–Young inequality. A sum is
    right up to 64 ε of the sizes of its terms, of 1 for each unit, and of what rounding its
    argument does to them; where these overflow nothing is said.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `x`, `y`: two states of one shape and dtype, without batch axes, of a few dozen units at most:
        H is formed.

    **Raises:** `AssertionError` with the law's name, its formula with the numbers, the worst unit,
    and the size of the violation and of its tolerance. `ValueError` if x and y differ in shape or
    dtype.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import assert_lagrangian
    >>> x, y = jnp.array([0.5, -1.0]), jnp.array([2.0, 0.0])
    >>> assert_lagrangian(hl.LTanh(), x, y)
    >>> assert_lagrangian(lambda x: -jnp.sum(x**2), x, y)
    Traceback (most recent call last):
    ...
    hopfield_layers.testing.verdict.Violation: convex: ½L(x) + ½L(y) ≥ L(½x + ½y), does not hold.
      -2.625 ≥ -1.8125 is missed by 0.812; rounding explains 8.96e-05.
    ...

    ```
    """
    lagrangian, x, y = as_lagrangian(lagrangian), as_float(x), as_float(y)
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(
            f"Expected x and y of one shape and dtype, got {x.dtype}{list(x.shape)} and "
            f"{y.dtype}{list(y.shape)}."
        )
    where = {"Lagrangian": lagrangian, "x": x, "y": y}
    check(lagrangian_laws(lagrangian, x, y) | jit_laws(lagrangian, x), where)


def lagrangian_laws(lagrangian: AbstractLagrangian, x: Array, y: Array) -> Laws:
    """Every law at (x, y), or a [`Violation`][] if they can't be evaluated."""
    return _evaluated(_measured, lagrangian, x, y)


def _evaluated(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, or a [`Violation`][] if it can't be evaluated."""
    try:
        return fn(*args)
    except Violation:
        raise
    except Exception as error:
        # What a callable's wrapper says if that returns no scalar.
        law = "scalar" if str(error).startswith("A Lagrangian returns a real scalar") else "jit"
        text = f"{LAWS[law]}: under jit that raises {type(error).__name__}: {error}"
        raise Violation(law, text) from error


@eqx.filter_jit
def _measured(lagrangian: AbstractLagrangian, x: Array, y: Array) -> Laws:
    return measure(lagrangian, x, y)


def jit_laws(lagrangian: AbstractLagrangian, x: Array) -> Laws:
    """The law of jit at x, which takes evaluations without it."""
    compiled = lagrangian_laws(lagrangian, x, x)["vmap"]
    results = {
        "L(x)": lagrangian(x),
        "g(x)": lagrangian.activation(x),
        "E(x)": lagrangian.energy(x),
    }
    parts = zip(results.items(), compiled, strict=True)
    return {
        "jit": [
            Measured(now, part.right, part.tolerance, {name: now, "by jit": part.right})
            for (name, now), part in parts
        ]
    }


DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, float)


def check_dtypes(lagrangian: AbstractLagrangian, shape: tuple[int, ...]) -> None:
    """Raises a [`Violation`][] if L, g or E don't keep each of JAX's dtypes."""
    for dtype in DTYPES:
        x = jax.ShapeDtypeStruct(shape, jnp.result_type(dtype))
        results = [
            _evaluated(jax.eval_shape, fn, x)
            for fn in (lagrangian, lagrangian.activation, lagrangian.energy)
        ]
        _well_formed(x, *results)


def _well_formed(x: Any, value: Any, g: Any, energy: Any) -> None:
    """Raises a [`Violation`][] if these have other shapes or dtypes than L, g and E."""
    for name, result, shape in (("L(x)", value, ()), ("g(x)", g, x.shape), ("E(x)", energy, ())):
        if result.shape != shape:
            text = f"{name} has shape {result.shape} for x of shape {x.shape}, expected {shape}."
            raise Violation("scalar", text)
        if result.dtype != x.dtype:
            raise Violation("dtype", f"{name} is {result.dtype} for x in {x.dtype}.")


def measure(lagrangian: AbstractLagrangian, x: Array, y: Array) -> Laws:
    """Every law at (x, y), each of one or more parts."""
    fns = (lagrangian, lagrangian.activation, lagrangian.energy)
    _well_formed(x, *(jax.eval_shape(fn, x) for fn in fns))
    value, slope = jax.value_and_grad(lagrangian)(x)
    g, times = jax.linearize(lagrangian.activation, x)
    energy = lagrangian.energy(x)
    # One program for all, which takes a fraction of the time to compile.
    middle = x / 2 + y / 2
    points = jnp.stack([x, y, middle, jnp.zeros_like(x)])
    by_vmap = values, gs, _ = [jax.vmap(fn)(points) for fn in fns]
    (_, value_y, value_middle, value_0), (_, g_y, g_middle, g_0) = values, gs
    # Where L leaves the range its derivative says nothing.
    gradient = jnp.where(jnp.isfinite(value), slope, g)
    curvature, moved = _curvature(times, x)
    product = _size(x, g)
    # A function whose values are small may yet be the difference of terms of size 1 per unit, as
    # ln(1 + eᵗ) − ln 2 is near 0; and its derivative, as eᵗ − 1.
    tolerance = rounding(x.size, product, value, energy, _size(x, moved))
    terms = {"L(x)": value, "g(x)": g, "E(x)": energy}
    of_gradient = rounding(g, moved, jnp.ones_like(g))

    # For a convex L, L(0) + g(0)·x ≤ L(x) ≤ L(0) + g(x)·x.
    in_range = jnp.isfinite(4 * (product + jnp.abs(value_0) + _size(x, g_0)))
    beyond = in_range & ~(jnp.isfinite(value) & jnp.isfinite(energy))
    nans = [jnp.isnan(each) for each in (value, g, energy, gradient, curvature)]
    bad = sum(each.astype(x.dtype) for each in nans) + beyond + ~jnp.isfinite(value_0)
    tolerances = (tolerance, rounding(g, moved), tolerance)
    average = value / 2 + value_y / 2
    gap = value_y + energy - jnp.sum(g * y)
    return {
        "finite": [
            Measured(bad, 0 * bad, 0 * bad + 0.5, terms | {"∂L/∂x": gradient, "Hx": curvature})
        ],
        "gradient": [Measured(g, gradient, of_gradient, {"g(x)": g, "∂L/∂x": gradient})],
        "Legendre": [Measured(energy, jnp.sum(x * g) - value, tolerance, terms)],
        "convex": [
            Measured(
                average,
                value_middle,
                rounding(x.size, value, value_y, value_middle, product, _size(y, g_y))
                + rounding(_size(middle, g_middle)),
                {"L(x)": value, "L(y)": value_y, "L(½x + ½y)": value_middle},
                inequality=True,
            )
        ],
        "Fenchel–Young": [
            Measured(
                gap,
                jnp.zeros_like(gap),
                tolerance + rounding(value_y, _size(y, g_y), _size(y, g), _size(y, moved)),
                {"L(y)": value_y, "E(x)": energy, "Σ g(x)·y": jnp.sum(g * y)},
                inequality=True,
            )
        ],
        "vmap": [
            Measured(left[0], right, tolerance, {"alone": right, "by vmap": left[0]}, of=name)
            for name, left, right, tolerance in zip(
                ("L(x)", "g(x)", "E(x)"), by_vmap, (value, g, energy), tolerances, strict=True
            )
        ],
    }


def _size(a: Array, b: Array) -> Array:
    """Σ |a b|, where 0 · ∞ = 0."""
    return jnp.sum(jnp.where(a == 0, 0, jnp.abs(a * b)))


def _curvature(times: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """H x, and Σⱼ |Hᵢⱼ xⱼ|: in units of ε what rounding x does to g."""
    hessian = jax.vmap(times)(jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape))
    # A unit at 0 isn't rounded.
    columns = hessian.reshape(x.size, x.size) * x.reshape(-1, 1)
    moved = jnp.where(x.reshape(-1, 1) == 0, 0, jnp.abs(columns))
    return times(x), jnp.sum(moved, axis=0).reshape(x.shape)
