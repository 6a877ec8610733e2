"""Derivatives by central differences, with bounds of their errors.

Automatic differentiation applies a custom derivative rule even if it is wrong. Differences don't,
so they decide. Everything is computed in float64.
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
# The first two steps serve only to measure how fast the differences converge.
_ALL_STEPS = 2.0 ** -np.arange(14.0, 39.0, 4.0)
STEPS = _ALL_STEPS[2:]
_HALVINGS = 40
# These programs run a few dozen times: without optimization they compile in a third of the time.
# The second option is only for these releases of JAX, as XLA refuses options that it doesn't know.
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
    """A direction in each array of the tree, and some in all arrays at once, with their names.

    `values` are the tree's entries as one vector. The directions are in proportion to them, so that
    a step doesn't leave the domain of a parameter.
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
    """D(h) = (f(h) − f(−h))/2h of f(h) = fn(at + hv), and its spread, for each h along axis 0.

    The spread is how far f′(0) may be from D(h), apart from rounding. `noise` is h times what
    rounding may change in D(h).

    - If f is convex or concave between −h and h, f′(0) lies between (f(0) − f(−h))/h and
      (f(h) − f(0))/h. Their mean is D(h), and half of their distance is allowed.
    - At a kink that distance doesn't vanish with h, and f′(0) may be the slope on either side of
      each term with a kink. The spread is ∞ there, as terms of opposite signs may cancel in the
      distance.
    - Where D changes from one h to the next by more than rounding, as for |t|ᵖ sign(t) at 0, and
      these changes shrink by a factor r each, the remaining ones add up to c/(r − 1) with the last
      change c. The spread is ∞ where D diverges.
    """
    # One call of fn for all of them, as each call would be compiled anew.
    shifts = jnp.concatenate([_ALL_STEPS, -_ALL_STEPS, jnp.zeros(1)])
    values = jax.lax.map(lambda h: fn(at + h * direction), shifts)
    center = values[-1]
    ups, downs = jnp.split(values[:-1], 2)
    h = jnp.expand_dims(_ALL_STEPS, tuple(range(1, ups.ndim)))
    differences, bends = (ups - downs) / (2 * h), jnp.abs(ups - 2 * center + downs) / (2 * h)
    rounded = noise / h[1:] + noise / h[:-1]
    changes = jnp.abs(jnp.diff(differences, axis=0))
    # With rounding the changes may be as far apart as these.
    before, last = (changes - rounded)[:-1], (changes + rounded)[1:]
    series = jnp.where(before > last, last**2 / (before - last), jnp.inf)
    spread = bends[2:] + jnp.where(changes[1:] > rounded[1:], series, 0)
    # Between larger steps a kink is seen more clearly, as rounding changes less there. Where a
    # small part of what is allowed for rounding looks like a kink, nothing is decided.
    is_kink = jnp.cumsum(bends[1:] > bends[:-1] / 2 + rounded / 32, axis=0) > 0
    return differences[2:], jnp.where(is_kink[1:], jnp.inf, spread)


def decided(
    slope: Array, differences: Array, spread: Array, noise: Array | float
) -> tuple[Array, Array]:
    """The difference that decides whether f′(0) is this slope, and its tolerance.

    A disagreement M at the first step counts if it is still there at smaller ones, which resolve
    finer features of f. They do as long as rounding can't hide it: if f′(0) is off by at least
    M − n₀, where n = noise/h, a step with 2n ≤ M − n₀ sees at least n of that.
    """
    steps = STEPS.reshape(-1, *[1] * (differences.ndim - 1))
    noises = jnp.broadcast_to(noise / steps, differences.shape)
    missed = jnp.abs(differences[0] - slope) - spread[0]
    counts = 2 * noises + noises[0] <= missed
    # The steps become smaller: the last one that counts.
    index = jnp.sum(counts, axis=0, keepdims=True)
    chosen = lambda each: jnp.take_along_axis(each, jnp.maximum(index - 1, 0), axis=0)[0]
    return chosen(differences), chosen(spread + noises)


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
    results that are counted there. `center` are all results at the values. These too may have a row
    for each direction.

    Rounding f by δ changes D(h) by at most δ/h and its spread by 2δ/h. The tolerance is δ/h, where
    δ = 64 ε × sizes has that factor to spare. With the first h, 2⁻²², that is 6·10⁻⁸ of the sizes.
    """

    def along(row):
        values, center, direction, slopes, is_counted, cancelled = row
        own = jnp.where(is_counted, center, 0)
        # A derivative in another direction may be NaN, and 0 · NaN too.
        terms = jnp.where(direction == 0, 0, slopes * direction)
        noise = rounding(size_by(values, own, slopes), cancelled)
        noise += rounding(jnp.nansum(jnp.abs(terms))) * STEPS[0]  # of results a step away
        found = difference(fn, values, direction, noise)
        found = (jnp.sum(jnp.where(is_counted, each, 0), axis=1) for each in found)
        return jnp.sum(terms), *decided(jnp.sum(terms), *found, noise)

    values = jnp.broadcast_to(values, directions.shape)
    center = jnp.broadcast_to(center, is_counted.shape)
    cancelled = jnp.broadcast_to(cancelled, len(directions))
    rows = (values, center, directions, slopes, is_counted, cancelled)
    slopes, differences, tolerances = jax.lax.map(along, rows)
    # Kinks may cancel along one direction, but hardly along all of them.
    tolerances += jnp.where(jnp.any(jnp.isinf(tolerances)), jnp.inf, 0)
    each = zip(names, slopes, differences, tolerances, strict=True)
    return [Measured(ad, best, tolerance, {}, subject=name) for name, ad, best, tolerance in each]


def jump(fn: Function, start: Array, end: Array, size: Function | None = None) -> Measured:
    """A scalar function doesn't jump on the straight line between two points.

    The line is halved again and again, and the half over which fn changes more is kept. The change
    over the last part must be the one that the slopes at its ends explain. `size` is the size of
    terms that cancel in fn.
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
