"""Derivatives by central differences, and what these may be off by.

A law that compares with them doesn't trust automatic differentiation, which follows a custom rule
wherever it leads. All of it is computed in float64.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .verdict import Measured, rounding


_P = ParamSpec("_P")
_T = TypeVar("_T")
Function = Callable[[Array], Array]
STEPS = 2.0 ** -np.arange(7.0, 12.0)
_HALVINGS = 40
# These programs run a few dozen times: without optimization they compile in a third of the time.
# The second option is for these releases of JAX alone, as XLA refuses one that it doesn't know.
_OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if (0, 10) <= jax.__version_info__ < (0, 11):
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False


def filter_jit(fn: Callable[_P, _T]) -> Callable[_P, _T]:
    """Equinox's jit, without optimization."""
    # The overloads of filter_jit leave out the keywords that it passes on to jax.jit.
    return eqx.filter_jit(fn, compiler_options=_OPTIONS)  # pyright: ignore[reportCallIssue]


def in_float64(tree: _T) -> _T:
    """The tree with its floating arrays in float64, to be called under `jax.enable_x64`."""
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), arrays), static)


def directions_of(tree: PyTree, values: Array, num_random: int = 0) -> tuple[list[str], Array]:
    """A direction in each array of the tree, whose entries are `values`, and some through all.

    In proportion to the values, so that a step doesn't leave the domain of a parameter.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sizes = [leaf.size for _, leaf in leaves]
    masks = np.repeat(np.eye(len(leaves)), sizes, axis=1)[np.array(sizes, int) > 0]
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if leaf.size]
    scale = jnp.where(values == 0, 1, jnp.abs(values))
    random = np.random.default_rng(0).normal(size=(num_random, len(values)))
    entries = np.concatenate([masks * np.cos(np.arange(len(values)) / 2), random])
    return names + [f"random direction {i}" for i in range(num_random)], scale * entries


def difference(
    fn: Function, at: Array, direction: Array, noise: Array | float = 0.0
) -> tuple[Array, Array]:
    """dfn(at + hv)/dh at h = 0 for each result, extrapolated to fourth order, and its error.

    D(h) = (f(h) − f(−h))/2h is f′ + c h² + O(h⁴). Its values at h and h/2 are extrapolated to
    (4D(h/2) − D(h))/3, which is without c. The error is the sum of three estimates:

    - what the extrapolation changes if h is halved, 15 times the remaining error of order h⁴;
    - the change of slope κ at a kink, by which (f(h) − 2f(0) + f(−h))/h doesn't vanish with h: D
      is off by κ/2 from the slope on either side;
    - where the changes of D from one h to the next fall by a ratio r < 4, as beside a power, the
      rest of their geometric series, of which the last is 1/(r − 1).

    Beside several kinks, or steep softmaxes, these may cancel at one h where the errors don't: the
    error is 4 times their sum over three of them. Sums of up to 14 kinked terms of either sign, at
    random distances, then stay within a third of it.

    Where r ≤ 1 and the changes are above the noise, D diverges, and the error is ∞. A jump is left
    to `jump`.
    """
    # One program for all of them: each that calls fn is compiled anew.
    shifts = jnp.concatenate([STEPS, -STEPS, jnp.zeros(1)])
    *shifted, center = jax.lax.map(lambda h: fn(at + h * direction), shifts)
    ups, downs = jnp.stack(shifted[: STEPS.size]), jnp.stack(shifted[STEPS.size :])
    h = jnp.expand_dims(STEPS, tuple(range(1, ups.ndim)))
    differences, bends = (ups - downs) / (2 * h), (ups - 2 * center + downs) / h
    extrapolated = (4 * differences[1:] - differences[:-1]) / 3
    changes = jnp.abs(jnp.diff(differences, axis=0))
    before, last = changes[:-1], changes[1:]
    ratio = before / jnp.where(last == 0, 1, last)  # 4 where the error falls as h²
    series = jnp.where(ratio < 3.5, last / jnp.maximum(ratio - 1, 2.0**-12), 0)
    diverges = (ratio[-1] < 1.01) & (last[-1] > noise)
    bent = jnp.abs(2 * bends[2:] - bends[1:-1])
    errors = jnp.abs(jnp.diff(extrapolated, axis=0)) + bent + series
    return extrapolated[-1], jnp.where(diverges, jnp.inf, 4 * jnp.sum(errors, axis=0))


def value_and_size(fn: Function, values: Array) -> tuple[Array, Array]:
    """A scalar function, and the size of its terms as its value and its slopes show it."""
    value, slopes = jax.value_and_grad(fn)(values)
    return value, size_by(values, value, slopes)


def size_by(values: Array, results: Array, slopes: Array) -> Array:
    """The size of the terms of results at `values`, with the slopes of their sum.

    Σ|f|, what rounding the arguments changes, Σ|θ ∂f/∂θ|, and 1 for each argument, as f may be a
    difference of terms of size 1 such as ln(1 + eˣ) − ln 2.
    """
    # Rounding the arguments changes the results too; a derivative that is NaN explains nothing.
    effect = jnp.nan_to_num(jnp.abs(values * slopes), nan=0, posinf=jnp.inf)
    return jnp.sum(jnp.abs(results)) + jnp.sum(effect) + values.size


def compared(
    fn: Function, values: Array, names: list[str], directions: Array, cancelled: Array | float = 0.0
) -> list[Measured]:
    """The derivative of the sum of fn's results along each direction, against its difference.

    `cancelled` is the size of terms that cancel in fn.
    """
    center, pull = jax.vjp(fn, values)
    (slopes,) = pull(jnp.ones_like(center))
    rows = jnp.broadcast_to(slopes, directions.shape)
    is_counted = jnp.ones((len(directions), center.size), bool)
    return compared_slopes(fn, values, names, directions, center, rows, is_counted, cancelled)


def compared_slopes(
    fn: Function,
    values: Array,
    names: list[str],
    directions: Array,
    center: Array,
    slopes: Array,
    is_counted: Array,
    cancelled: Array | float = 0.0,
) -> list[Measured]:
    """`compared` with slopes that are known, a row for each direction: those of the sum of the
    results that are counted there. `center` are all results at the values.

    Rounding f by δ changes the extrapolated difference by at most 1.5 δ/h, with the least h. The
    tolerance is δ/h, where δ = 64 ε × sizes has that factor to spare, plus the error of the
    difference. With h = 2⁻¹¹ that is 3·10⁻¹¹ of the sizes.
    """

    def along(row):
        direction, slopes, is_counted = row
        own = jnp.where(is_counted, center, 0)
        # A derivative in another direction may be NaN, and 0 · NaN too.
        terms = jnp.where(direction == 0, 0, slopes * direction)
        noise = rounding(size_by(values, own, slopes), cancelled) / STEPS[-1]
        noise += rounding(jnp.nansum(jnp.abs(terms)))  # of results a step away
        best, error = difference(fn, values, direction, noise)
        best, error = (jnp.sum(jnp.where(is_counted, each, 0)) for each in (best, error))
        return jnp.sum(terms), best, error + noise

    numbers = jax.lax.map(along, (directions, slopes, is_counted))
    each = zip(names, *numbers, strict=True)
    return [Measured(ad, best, tolerance, {}, subject=name) for name, ad, best, tolerance in each]


def jump(fn: Function, start: Array, end: Array, size: Function | None = None) -> Measured:
    """A scalar function doesn't jump between two points: its change over ever shorter parts of the
    way there, always the half over which it changes more, is that of its slopes at the ends.

    `size` is that of terms which cancel in fn.
    """

    def halve(_, ends):
        a, b, at_a, at_b = ends
        middle = a / 2 + b / 2
        value = fn(middle)
        left = jnp.abs(value - at_a) > jnp.abs(at_b - value)
        halves = (a, middle, at_a, value), (middle, b, value, at_b)
        return jax.tree.map(lambda *ends: jnp.where(left, *ends), *halves)

    first = (start, end, fn(start), fn(end))
    a, b, at_a, at_b = jax.lax.fori_loop(0, _HALVINGS, halve, first)
    slopes = jax.lax.map(jax.grad(fn), jnp.stack([a, b]))
    # Twice the sum is the change of a square root over a part that begins at its cusp.
    by_slopes = 2 * jnp.sum(jnp.abs(slopes * (b - a)))
    cancelled = 0.0 if size is None else size(b)
    rounded = rounding(at_a, at_b, cancelled, jnp.sum(jnp.abs(slopes * b)), a.size)
    return Measured(at_b, at_a, by_slopes + rounded, {"from": a, "to": b})
