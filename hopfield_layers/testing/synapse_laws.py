"""The laws of a synapse, of its alignment A = −E_s and the derivatives ∂A/∂g."""

import functools as ft
from operator import attrgetter

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from .._trees import entries
from ..network import HAM
from ..synapses.base import HasEnergy
from .differences import (
    compared,
    directions_of,
    filter_jit,
    in_float64,
    jump,
    size_by,
    value_and_size,
)
from .verdict import broken_by_errors, dtypes, Laws, Measured, rounding, Violation


Activations = tuple[Array, ...]


class Joined(eqx.Module):
    """A synapse as a function of the layers that it joins, each of them once."""

    synapse: HasEnergy
    indices: tuple[int, ...] = eqx.field(static=True)

    def energy(self, *gs: Array) -> Array:
        """−A."""
        return self.synapse.energy(*(gs[i] for i in self.indices))


class AllJoined(eqx.Module):
    """The synapses of a network as one function of its layers, in the order of their names."""

    ham: HAM

    def energy(self, *gs: Array) -> Array:
        """E_s."""
        by_name = dict(zip(sorted(self.ham.layers), gs, strict=True))
        return sum(self.ham._connection_energies(by_name).values(), jnp.zeros(()))


def dtype_laws(synapse: HasEnergy, shapes: tuple[tuple[int, ...], ...]) -> Laws:
    """The laws of the shape and the dtype of E_s."""
    for dtype in dtypes():
        cast = jax.tree.map(ft.partial(_like, dtype=dtype), synapse)
        gs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        with broken_by_errors():
            energy = eqx.filter_eval_shape(lambda synapse, gs: synapse.energy(*gs), cast, gs)
        is_array = isinstance(energy, jax.ShapeDtypeStruct)
        got = f"{energy.dtype}{list(energy.shape)}" if is_array else repr(energy)
        if not is_array or energy.shape or not jnp.issubdtype(energy.dtype, jnp.floating):
            raise Violation("scalar", f"E_s(g) is {got}, expected a real scalar.")
        # Sums in a wider dtype than 16 bits are welcome.
        if energy.dtype not in (dtype, jnp.promote_types(dtype, jnp.float32)):
            raise Violation("dtype", f"E_s(g) is {got} for activations in {dtype}.")
    return {law: [Measured(0.0, 0.0, 1.0, {})] for law in ("scalar", "dtype")}


def _like(leaf, dtype):
    return jax.ShapeDtypeStruct(leaf.shape, dtype) if eqx.is_inexact_array(leaf) else leaf


def synapse_laws(synapse: HasEnergy, gs: Activations, others: Activations) -> Laws:
    """Every law but that of jit at the activations `gs`, and on the way from there to others."""
    with broken_by_errors():
        results = _results(synapse, gs)
        most = float(jnp.finfo(jnp.result_type(*gs)).max)
        with jax.enable_x64(True):
            wide = in_float64((synapse, gs, others, results))
            return _measured(*wide, jnp.asarray(most))


def repeated_laws(synapse: HasEnergy, gs: Activations, others: Activations) -> Laws:
    """The law of jit: A is the same without jit, and again after A of other activations."""
    with jax.enable_x64(True), broken_by_errors():
        synapse, gs, others = in_float64((synapse, gs, others))
        jitted, tolerance = _by_jit(synapse, gs)
        first, _, again = (-synapse.energy(*each) for each in (gs, others, gs))
    named = {"A(g)": first, "A(g) once more": again}
    return {
        "jit": [
            Measured(A, jitted, tolerance, {"by jit": jitted}, subject=name)
            for name, A in named.items()
        ]
    }


def properties(synapse: HasEnergy, gs: Activations, others: Activations) -> Laws:
    """The properties that are no laws, between these activations."""
    with jax.enable_x64(True), broken_by_errors():
        return {"block updates": _convex_between(*in_float64((synapse, gs, others)))}


@eqx.filter_jit
def _results(synapse: HasEnergy, gs: Activations):
    """A and ∂A/∂g."""
    return jax.value_and_grad(lambda gs: -synapse.energy(*gs))(gs)


class _Flat:
    """A synapse as a function of one vector, of its parameters and of the activations."""

    def __init__(self, synapse: HasEnergy, gs: Activations):
        self.parameters, self.static = eqx.partition(synapse, eqx.is_inexact_array)
        self.values, self.unravel = ravel_pytree((self.parameters, gs))
        self.is_activation = jnp.arange(self.values.size) >= self.values.size - sum(
            g.size for g in gs
        )

    def __call__(self, values: Array) -> Array:
        parameters, gs = self.unravel(values)
        return -eqx.combine(parameters, self.static).energy(*gs)

    def slopes(self, values: Array) -> Array:
        """∂A/∂g, and 0 for the parameters."""
        return jnp.where(self.is_activation, jax.grad(self)(values), 0)


@eqx.filter_jit
def _by_jit(synapse: HasEnergy, gs: Activations) -> tuple[Array, Array]:
    """A, and what rounding may change in it."""
    A = _Flat(synapse, gs)
    value, size = value_and_size(A, A.values)
    return value, rounding(size)


@filter_jit
def _measured(synapse, gs: Activations, others: Activations, results, most: Array) -> Laws:
    A = _Flat(synapse, gs)
    names, directions = directions_of((A.parameters, gs), A.values, num_random=2)
    count = len(names) - 2 - sum(g.size > 0 for g in gs)
    *directions, v, w = jnp.where(A.is_activation, directions, 0).at[:count].set(directions[:count])
    names = [f"θ = {'g' if n[:3] == '[1]' else 'synapse'}{n[3:]}" for n in names[:-2]]
    slopes = compared(
        lambda x: A(x)[None], A.values, [*names, "random"], jnp.stack([*directions, v])
    )

    def second(pair):
        return compared(lambda x: pair[0] * A.slopes(x), A.values, ["∂A/∂g"], pair[1][None])[0]

    # vᵀ S w and wᵀ S v, with S = ∂²A/∂g².
    both = jax.lax.map(second, (jnp.stack([v, w]), jnp.stack([w, v])))
    # A first step at |g| = 2⁹ changes a product of two activations, a score, by 1/8. Differences of
    # larger steps don't show how the slopes of a softmax change with it.
    largest = jnp.max(jnp.abs(A.values) * A.is_activation)
    unresolved = jnp.where(largest > 2**9, jnp.inf, 0.0)
    both = eqx.tree_at(attrgetter("tolerance"), both, both.tolerance + unresolved)
    vw, wv = (entries(both, i) for i in range(2))
    end, _ = ravel_pytree((A.parameters, others))
    laws = {
        "finite": [_finite(A, results, most)],
        "vmap": _vmap(A, end, v),
        "symmetric": [Measured(vw.right, wv.right, vw.tolerance + wv.tolerance, {})],
        "gradient": slopes[count:],
        "continuous": [jump(A, A.values, end)],
        "gradients": [*slopes[:count], vw, wv],
        "block updates": _convex(A, gs, others),
    }
    if hasattr(synapse, "alignment"):
        terms = {"A(g)": synapse.alignment(*gs)}
        value, size = value_and_size(A, A.values)
        laws["sign"] = [Measured(-value, -terms["A(g)"], rounding(size), terms)]
    mask = getattr(synapse, "mask", None)
    if isinstance(mask, Array) and mask.dtype == bool and mask.shape == _tokens(gs):
        laws["mask"] = _masked(synapse, mask, gs, others)
    return laws


def _finite(A: _Flat, results, most: Array) -> Measured:
    """The law that A and ∂A/∂g are finite where float64 gives moderate values at g or next to it.

    A value that overflows is large next to g too, whereas a NaN at one point is not. Likewise, A
    must be large just before it becomes ∞ on the way from 0 to g.
    """
    near = 2.0**-30 * (1 + jnp.abs(A.values)) * A.is_activation
    around = A.values + jnp.outer(jnp.array([0, 1, -1]), near)

    def results_at(x):
        value, slopes = jax.value_and_grad(A)(x)
        return jnp.append(jnp.where(A.is_activation, slopes, 0), value)

    rows = jax.lax.map(results_at, around)
    # The square root leaves room for terms that cancel.
    is_moderate = jnp.any(jnp.all(jnp.abs(rows) < jnp.sqrt(most), axis=1))
    values, _ = ravel_pytree(results)
    wrong = jnp.sum(~jnp.isfinite(values)) + jnp.sum(~jnp.isfinite(rows[0]))

    def on_the_way(exponent):
        return jnp.abs(A(jnp.where(A.is_activation, 2.0**exponent * A.values, A.values)))

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        is_finite = jnp.isfinite(on_the_way(middle))
        return jnp.where(is_finite, jnp.array([middle, ends[1]]), jnp.array([ends[0], middle]))

    edge, _ = jax.lax.fori_loop(0, 60, halve, jnp.array([-1020.0, 0.0]))
    jumps = ~jnp.isfinite(rows[0, -1]) & (on_the_way(edge) < jnp.finfo(float).max ** 0.5)
    terms = {"A(g)": results[0], "∂A/∂g": results[1]}
    return Measured(jnp.where(is_moderate, wrong, 0) + jumps, 0.0, 0.5, terms)


def _vmap(A: _Flat, end: Array, v: Array) -> list[Measured]:
    """A and ∂A/∂g of a sample between two others are those of it alone."""

    def results_at(x):
        value, slopes = jax.value_and_grad(A)(x)
        return jnp.stack([value, jnp.sum(jnp.where(A.is_activation, v * slopes, 0))])

    alone, pull = jax.vjp(results_at, A.values)
    by_vmap = jax.vmap(results_at)(jnp.stack([end, A.values, end]))[1]
    measured = []
    for i, name in enumerate(("A(g)", "∂A/∂g")):
        (slopes,) = pull(jnp.eye(2)[i])
        tolerance = rounding(size_by(A.values, alone[i], slopes))
        terms = {"alone": alone[i], "by vmap": by_vmap[i]}
        measured.append(Measured(by_vmap[i], alone[i], tolerance, terms, subject=name))
    return measured


@filter_jit
def _convex_between(synapse: HasEnergy, gs: Activations, others: Activations) -> list[Measured]:
    return _convex(_Flat(synapse, gs), gs, others)


def _convex(A: _Flat, gs: Activations, others: Activations) -> list[Measured]:
    """½A(g) + ½A(g′) ≥ A(½g + ½g′) for g and g′ that differ in one layer."""
    ways = [
        (*gs[:i], each, *gs[i + 1 :])
        for i, (g, other) in enumerate(zip(gs, others, strict=True))
        for each in (g, other, g / 2 + other / 2)
    ]
    states = jnp.stack([ravel_pytree((A.parameters, way))[0] for way in ways])
    values, sizes = jax.lax.map(ft.partial(value_and_size, A), states)
    measured = []
    for i, (triple, size) in enumerate(
        zip(values.reshape(-1, 3), sizes.reshape(-1, 3), strict=True)
    ):
        a, b, middle = triple
        terms = {"A(g)": a, "A(g′)": b, "A(½g + ½g′)": middle}
        average, noise = a / 2 + b / 2, rounding(jnp.sum(size))
        measured.append(Measured(average, middle, noise, terms, True, f"layer {i}"))
    return measured


def _tokens(gs: Activations) -> tuple[int, int]:
    """The numbers of queries and keys."""
    (queries, _), (keys, _) = (
        g.reshape(-1, g.shape[-1] if g.ndim else 1).shape for g in (gs[0], gs[-1])
    )
    return queries, keys


def _masked(synapse, mask: Bool[Array, "q k"], gs: Activations, others) -> list[Measured]:
    """A and ∂A/∂g don't depend on a key that the mask leaves out of every query."""

    def without(key):
        hidden = mask.at[:, key].set(False)
        if len(gs) == 1:  # where the key is a query too
            hidden = hidden.at[key].set(False)
        masked = eqx.tree_at(attrgetter("mask"), synapse, hidden)
        tokens, changed = (each[-1].reshape(mask.shape[1], -1) for each in (gs, others))
        tokens = tokens.at[key].set(1e3 + changed[key]).reshape(gs[-1].shape)
        value, slopes = jax.value_and_grad(lambda gs: -masked.energy(*gs))(gs)
        changed, new_slopes = jax.value_and_grad(lambda gs: -masked.energy(*gs))((*gs[:-1], tokens))
        own = slopes[-1].reshape(mask.shape[1], -1)[key]
        slopes, new_slopes = (ravel_pytree(each)[0] for each in (slopes, new_slopes))
        return value, changed, slopes, new_slopes, own

    value, changed, slopes, new_slopes, own = jax.lax.map(without, jnp.arange(mask.shape[1]))
    size = rounding(jnp.max(jnp.abs(slopes)), 1.0)
    return [
        Measured(changed, value, rounding(value, 1.0), {}, subject="A(g) with another masked key"),
        Measured(
            new_slopes,
            slopes,
            jnp.broadcast_to(size, slopes.shape),
            {},
            subject="∂A/∂g with another masked key",
        ),
        Measured(
            own,
            jnp.zeros_like(own),
            jnp.broadcast_to(size, own.shape),
            {},
            subject="∂A/∂g of a masked key",
        ),
    ]
