"""The laws of a Lagrangian."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from .._conversion import as_float
from ..lagrangians import AbstractLagrangian
from ..synapses.base import LagrangianLike
from .kinds import checked_lagrangian
from .verdict import (
    abs_product,
    broken_by_errors,
    check,
    dtypes,
    finite,
    Laws,
    Measured,
    rounding,
    Violation,
)


def assert_lagrangian(
    lagrangian: LagrangianLike, x: Shaped[ArrayLike, "*state"], y: Shaped[ArrayLike, "*state"]
) -> None:
    """L is convex, g = ∂L/∂x, E = Σ x·g − L, L(y) + E(x) − Σ g(x)·y ≥ 0, and none is NaN.

    Checks the laws of `hopfield_layers.testing.LAWS` from "scalar" to "Fenchel–Young" in this order
    and in the dtype of x. The tolerance of a sum is 64 ε times the sum of the sizes of its terms, 1
    for each unit, and the change of the terms when the argument is rounded. Where these overflow
    the law is undecided.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `x`, `y`: two states of one shape and dtype, of a few dozen units: H is formed.

    **Raises:** [`hopfield_layers.testing.Violation`][]; `ValueError` if x and y differ in shape or
    dtype; `TypeError` for something that is not a Lagrangian.

    Examples:
        >>> x, y = jnp.array([0.5, -1.0]), jnp.array([2.0, 0.0])
        >>> hl.testing.assert_lagrangian(hl.LTanh(), x, y)
        >>> hl.testing.assert_lagrangian(lambda x: -jnp.sum(x**2), x, y)
        Traceback (most recent call last):
        ...
        hopfield_layers.testing.verdict.Violation: convex: ½L(x) + ½L(y) ≥ L(½x + ½y), does not ...
          -2.625 ≥ -1.8125 is missed by 0.812; rounding explains 8.96e-05.
        ...
    """
    lagrangian, x, y = checked_lagrangian(lagrangian), as_float(x), as_float(y)
    got, other = (f"{state.dtype}{list(state.shape)}" for state in (x, y))
    if got != other:
        raise ValueError(f"Expected x and y of one shape and dtype, got {got} and {other}.")
    laws = lagrangian_laws(lagrangian, x, y) | jit_laws(lagrangian, x)
    check(laws, {"Lagrangian": lagrangian, "x": x, "y": y})


def lagrangian_laws(lagrangian: AbstractLagrangian, x: Array, y: Array) -> Laws:
    """`measure` under jit, or a [`Violation`][] if it can't be evaluated."""
    with broken_by_errors():
        return eqx.filter_jit(measure)(lagrangian, x, y)


def jit_laws(lagrangian: AbstractLagrangian, x: Array) -> Laws:
    """The law of jit at x, for which L, g and E are evaluated without jit too."""
    measured = []
    functions = _functions(lagrangian)
    for jitted in lagrangian_laws(lagrangian, x, x)["vmap"]:
        result = functions[jitted.subject](x)
        terms = {jitted.subject: result, "by jit": jitted.right}
        measured.append(Measured(result, jitted.right, jitted.tolerance, terms))
    return {"jit": measured}


def dtype_laws(lagrangian: AbstractLagrangian, shape: tuple[int, ...]) -> Laws:
    """The laws of the shapes and the dtypes of L, g and E."""
    for dtype in dtypes():
        with broken_by_errors():
            _check_results(lagrangian, jax.ShapeDtypeStruct(shape, dtype))
    return {law: [Measured(0.0, 0.0, 1.0, {})] for law in ("scalar", "dtype")}


def _functions(lagrangian: AbstractLagrangian) -> dict[str, Callable[[Array], Array]]:
    return {"L(x)": lagrangian, "g(x)": lagrangian.activation, "E(x)": lagrangian.energy}


def _check_results(lagrangian: AbstractLagrangian, x: Array | jax.ShapeDtypeStruct) -> None:
    """Raises a [`Violation`][] if L, g or E have other shapes or dtypes than they should."""
    for name, fn in _functions(lagrangian).items():
        result, shape = jax.eval_shape(fn, x), x.shape if name == "g(x)" else ()
        if result.shape != shape:
            text = f"{name} has shape {result.shape} for x of shape {x.shape}, expected {shape}."
            raise Violation("scalar", text)
        if result.dtype != x.dtype:
            raise Violation("dtype", f"{name} is {result.dtype} for x in {x.dtype}.")


def measure(lagrangian: AbstractLagrangian, x: Array, y: Array) -> Laws:
    """Every law but that of jit at (x, y)."""

    def size(a, b):
        return jnp.sum(abs_product(a, b))

    _check_results(lagrangian, x)
    value, slope = jax.value_and_grad(lagrangian)(x)
    g, hessian_vector = jax.linearize(lagrangian.activation, x)
    energy = lagrangian.energy(x)
    # One program for the four states takes a fraction of the time to compile.
    middle = x / 2 + y / 2
    states = jnp.stack([x, y, middle, jnp.zeros_like(x)])
    by_vmap = values, gs, _ = [jax.vmap(fn)(states) for fn in _functions(lagrangian).values()]
    (_, value_y, value_middle, value_0), (_, g_y, g_middle, g_0) = values, gs
    # Where L leaves the range its derivative is meaningless.
    gradient = jnp.where(jnp.isfinite(value), slope, g)
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    hessian = jax.vmap(hessian_vector)(basis)  # row j is ∂g/∂xⱼ
    # In units of ε what rounding x does to g; a unit at 0 isn't rounded.
    rounding_effect = jnp.sum(abs_product(x.reshape(-1, *(1,) * x.ndim), hessian), axis=0)
    product, product_y = size(x, g), jnp.sum(g * y)
    # A function whose values are small may yet be the difference of terms of size 1 per unit, as
    # ln(1 + eᵗ) − ln 2 is near 0; and its derivative, as eᵗ − 1.
    tolerance = rounding(x.size, product, value, energy, size(x, rounding_effect))
    # For a convex L, L(0) + g(0)·x ≤ L(x) ≤ L(0) + g(x)·x.
    in_range = jnp.isfinite(4 * (product + jnp.abs(value_0) + size(x, g_0)))
    out_of_range = in_range & ~(jnp.isfinite(value) & jnp.isfinite(energy))
    sizes = (value, value_y, value_middle, product, size(y, g_y), size(middle, g_middle))
    convexity = rounding(x.size, *sizes)
    fenchel = tolerance + rounding(value_y, size(y, g_y), size(y, g), size(y, rounding_effect))
    terms = {"L(x)": value, "g(x)": g, "E(x)": energy}
    tolerances = (tolerance, rounding(g, rounding_effect), tolerance)
    finite_terms = terms | {"∂L/∂x": gradient, "Hx": hessian_vector(x)}
    gradient_terms = {"g(x)": g, "∂L/∂x": gradient}
    convex_terms = {"L(x)": value, "L(y)": value_y, "L(½x + ½y)": value_middle}
    fenchel_terms = {"L(y)": value_y, "E(x)": energy, "Σ g(x)·y": product_y}
    average, gap = value / 2 + value_y / 2, value_y + energy - product_y
    return {
        "vmap": [
            Measured(batch[0], alone, tol, {"alone": alone, "by vmap": batch[0]}, subject=name)
            for (name, alone), batch, tol in zip(terms.items(), by_vmap, tolerances, strict=True)
        ],
        "finite": [finite(finite_terms, out_of_range + ~jnp.isfinite(value_0))],
        "gradient": [Measured(g, gradient, rounding(1, g, rounding_effect), gradient_terms)],
        "coupling": [_coupling(lagrangian, hessian, basis)],
        "Legendre": [Measured(energy, jnp.sum(x * g) - value, tolerance, terms)],
        "convex": [Measured(average, value_middle, convexity, convex_terms, True)],
        "Fenchel–Young": [Measured(gap, 0.0, fenchel, fenchel_terms, True)],
    }


def _coupling(lagrangian: AbstractLagrangian, hessian: Array, basis: Array) -> Measured:
    """The law that row j of H is 0 at the units that no declared axis couples with unit j."""
    ndim = basis.ndim - 1
    axes = tuple(axis % ndim - ndim for axis in lagrangian.coupled_axes(ndim))
    coupled = jnp.any(basis != 0, axis=axes, keepdims=True)
    sizes = jnp.nan_to_num(jnp.abs(hessian), nan=0, posinf=jnp.inf)  # NaN is left to "finite"
    wrong = jnp.sum(jnp.where(coupled, 0, sizes), axis=0)
    tolerance = rounding(1, jnp.sum(sizes, axis=0))
    return Measured(wrong, jnp.zeros_like(wrong), tolerance, {"Σⱼ |∂gᵢ/∂xⱼ|": wrong})
