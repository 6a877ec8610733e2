"""The laws of layers, networks and models of your own."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._conversion import as_float
from .._trees import entries
from ..dynamics import energy_descent, EnergyFlow, solve
from ..dynamics.descent import is_descent
from ..model import AbstractEnergyModel, Flow, StateLike
from .bounds import energy_bound, falls_without_end
from .differences import filter_jit, in_float64
from .kinds import checked_model
from .slope_laws import slope_laws
from .traced_once import TracedOnce
from .verdict import (
    abs_product,
    broken_by_errors,
    check,
    finite,
    Laws,
    Measured,
    rounding,
    Violation,
)


_MANY = 32  # rejected steps
_FACTORS = np.array([[1.0], [1.1], [1.3], [1.7]])


def assert_energy_bounded(
    model: AbstractEnergyModel, x: StateLike, bound: ArrayLike | None = None
) -> None:
    """E(x) ≥ −L(0) for a layer, E(x) ≥ bound for any model, and batches change no sample's results.

    The tolerance is 64 ε times the sum of the sizes of x·g and of E, 1 for each unit, and the
    change of E when x is rounded.

    **Arguments:**

    - `model`: a [`hopfield_layers.AbstractEnergyModel`][].
    - `x`: a state, without batch axes.
    - `bound`: what E should not fall below. By default [`hopfield_layers.testing.energy_bound`][].

    **Raises:** [`hopfield_layers.testing.Violation`][]; `ValueError` if no bound is known or given;
    `TypeError` for something that is not a model.

    Examples:
        >>> hl.testing.assert_energy_bounded(hl.ExpLayer(2), jnp.zeros(2), bound=-2.0)
    """
    model, x = checked_model(model), jax.tree.map(as_float, x)
    bound = energy_bound(model) if bound is None else bound
    if bound is None:
        raise ValueError(f"Expected a bound: none is known for this {type(model).__name__}.")
    check(bound_laws(model, x, bound), {"model": model, "x": x})


def bound_laws(model: AbstractEnergyModel, x: PyTree, bound: ArrayLike | None) -> Laws:
    """The laws of the energy at x and of batches; without a bound, a search for a fall."""
    with broken_by_errors():
        laws = _bounded(model, x, jnp.asarray(-jnp.inf if bound is None else bound))
        if bound is None:
            with jax.enable_x64(True):
                laws["bounded"] = [filter_jit(falls_without_end)(*in_float64((model, x)))]
    return laws


def assert_energy_descends(
    model: AbstractEnergyModel,
    x0: StateLike,
    flow: Flow = "state",
    *,
    t1: ArrayLike | None = None,
    inputs: StateLike | None = None,
    clamp: StateLike | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    **options: object,
) -> None:
    """∂E/∂x = H u and dE/dt ≤ 0 at every step of a solve, and E falls from step to step.

    The tolerance is 64 ε of the terms. ∂E/∂x at x0 is computed by central differences of E in
    float64, so that no custom derivative rule is trusted. A solve that rejects every step while
    dE/dt < 0 doesn't descend. Controllers other than [`hopfield_layers.energy_descent`][] may miss
    the descent by rtol·|x| + atol in each unit times ∂E/∂x, and by more where the solver's error
    estimate fails, as at the limit of its stability.

    **Arguments:**

    - `model`: a [`hopfield_layers.AbstractEnergyModel`][].
    - `x0`: a state, without batch axes, of a few dozen units at most: H is formed.
    - `flow`, `inputs`, `clamp`: as for [`hopfield_layers.solve`][]; inputs that don't depend on t.
    - `t1`: the end. By default 10 times the largest τ.
    - `stepsize_controller`: by default `diffrax.PIDController(rtol=1e-3, atol=1e-6)` under
        [`hopfield_layers.energy_descent`][].
    - `options`: others of [`hopfield_layers.solve`][]; running out of steps is not a violation.

    **Raises:** [`hopfield_layers.testing.Violation`][], and as [`hopfield_layers.solve`][].

    Examples:
        >>> hl.testing.assert_energy_descends(hl.TanhLayer(3, tau=2.0), jnp.array([1.0, -2.0, 0.0]))
    """
    model, x0 = checked_model(model), jax.tree.map(as_float, x0)
    options |= {"inputs": inputs, "clamp": clamp}
    laws = descent_laws(model, x0, flow, t1, stepsize_controller, **options)
    check(laws, {"model": model, "x0": x0})


def descent_laws(
    model: AbstractEnergyModel, x0, flow: Flow = "state", t1=None, controller=None, **options
) -> Laws:
    """The laws of the flow at x0 and along a solve from there."""
    field = EnergyFlow(TracedOnce(model), flow, options.get("clamp"), options.get("inputs"))
    if controller is None:
        controller = energy_descent(diffrax.PIDController(rtol=1e-3, atol=1e-6), field)
    if t1 is None:
        t1 = 10 * max(float(jnp.max(tau)) for tau in jax.tree.leaves(model.tau))
    options = {"max_steps": 256} | options | {"stepsize_controller": controller}
    # Numbers of Python's would be compiled in.
    times = jax.tree.map(jnp.asarray, {"t1": t1, "dt0": options.pop("dt0", None)})
    steps, end = _solved(field, x0, times, options)
    # The laws only read the model and the inputs, so that both flows share one program.
    either = EnergyFlow(field.model, inputs=field.inputs)
    laws, by_differences = _along(either, *steps), slope_laws(either, x0, *end)
    laws["descent"] += by_differences.pop("descent")
    return laws | _time_constants(model) | by_differences


@filter_jit
def _solved(field: EnergyFlow, x0: PyTree, times: dict[str, Array | None], options: dict):
    """The times, states, rates and tolerances of a solve's steps; the end, the rate there, and
    whether the solve was cut short by rejected steps.
    """
    options |= {"saveat": diffrax.SaveAt(t0=True, steps=True), "throw": False, "flow": field.flow}
    solution = solve(field.model, x0, **times, **options)
    assert solution.ts is not None
    # The padding after the last step is filled with copies of it.
    indices = jnp.minimum(jnp.arange(solution.ts.size), jnp.sum(jnp.isfinite(solution.ts)) - 1)
    ts, xs = entries((solution.ts, solution.ys), indices)
    rates = jax.lax.map(eqx.Partial(field, jnp.zeros(())), xs)
    controller = options["stepsize_controller"]
    relative, absolute = (
        jnp.asarray(0.0 if is_descent(controller) else getattr(controller, name, 0.0))
        for name in ("rtol", "atol")
    )
    is_cut = (ts[-1] < times["t1"]) & (solution.stats["num_rejected_steps"] > _MANY)
    end, rate = entries((xs, rates), -1)
    return (ts, xs, rates, relative, absolute), (end, rate, is_cut)


def flow_laws(model: AbstractEnergyModel, x0: PyTree, flow: Flow) -> Laws:
    """`descent_laws` by a solver of few stages, which compiles fast."""
    with broken_by_errors("descent"):
        return descent_laws(model, x0, flow, solver=diffrax.Heun())


class Local:
    """A model at one state: ∂E/∂x is the slope, H u the force, |H| the curvature."""

    def __init__(self, field: EnergyFlow, x: PyTree):
        self.x, unravel = ravel_pytree(x)
        zero = jnp.zeros(())

        def activations(x):
            return ravel_pytree(field.model.activations(unravel(x)))[0]

        def derivatives(x):
            g, hessian_vector = jax.linearize(activations, x)
            transposed = jax.linear_transpose(hessian_vector, x)
            # These products by u, divided by their factors, differ by rounding alone.
            factors, count = _FACTORS.astype(x.dtype), len(_FACTORS)
            vectors = jnp.concatenate([factors * self.u, jnp.eye(x.size, dtype=x.dtype)])
            products = jax.vmap(hessian_vector)(vectors)
            (pulled,) = jax.vmap(transposed)(vectors[:count])
            forces = jnp.stack([products[:count], pulled]) / factors
            noise = jnp.sum(jnp.max(forces, axis=1) - jnp.min(forces, axis=1), axis=0)
            return g, forces[0, 0], noise, products[count:].T

        self.energy, slope = jax.value_and_grad(field.energy, argnums=1)(zero, x)
        self.u, self.slope = (ravel_pytree(tree)[0] for tree in (field.drive(zero, x), slope))
        # A bias is rounded with x. For a layer, whose u is x − b, these are its size at least.
        self.sizes = jnp.abs(self.x) + jnp.nan_to_num(jnp.abs(self.u), nan=0, posinf=0)
        # Near an edge, rounding x changes H. At large x, H may be a small difference of terms that
        # are as large as H is at 0.
        signs = (-1.0) ** jnp.arange(self.x.size, dtype=self.x.dtype)
        change = 4 * jnp.finfo(self.x.dtype).eps * signs * self.sizes
        states = jnp.stack([self.x, self.x + change, self.x - change, jnp.zeros_like(self.x)])
        gs, (self.force, up, down, _), noises, hessians = jax.lax.map(derivatives, states)
        self.g = gs[0]
        self.noise = jnp.nan_to_num(noises[0], nan=0, posinf=0)  # of H u
        # By how much rounding x changes H u.
        self.unsteady = jnp.abs(up - self.force) + jnp.abs(down - self.force)
        # Where one unit's curvature leaves the range, ∞ · 0 is NaN in the rows of the others.
        self.curvature = jnp.nan_to_num(jnp.abs(hessians[0]), nan=0, posinf=jnp.inf)
        self.curvature_at_0 = jnp.nan_to_num(jnp.abs(hessians[-1]), nan=0, posinf=0)
        products = jnp.sum(jnp.abs(self.x * self.g)), jnp.sum(jnp.abs(self.x * self.slope))
        self.rounding = rounding(self.x.size, self.energy, *products)  # of the energy
        # Where an activation overflows, so may E and u, which contain it, and ∞ − ∞ is NaN.
        self.in_range = ~jnp.isinf(jnp.max(jnp.abs(jnp.append(self.x * self.g, self.g)), initial=0))


def dtype_laws(model: AbstractEnergyModel, x: PyTree) -> Laws:
    """The law of the dtypes of E, g and u, of a model and states of float32."""
    like = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if eqx.is_inexact_array(leaf) else leaf
        ),
        (model, x),
    )
    for name in ("energy", "activations", "dEdg"):
        with broken_by_errors():
            results = eqx.filter_eval_shape(lambda m, x, name=name: getattr(m, name)(x), *like)
        for result in jax.tree.leaves(results):
            if result.dtype != jnp.float32:
                raise Violation("dtype", f"{name} gives {result.dtype} for a state in float32.")
    return {"dtype": [Measured(0.0, 0.0, 1.0, {})]}


def repeated_laws(model: AbstractEnergyModel, x: PyTree) -> Laws:
    """The law of jit: E is the same without jit, and again."""
    with broken_by_errors():
        (by_jit,) = _bounded(model, x, jnp.asarray(-jnp.inf))["bounded"]
        energies = {name: model.energy(x) for name in ("E(x)", "E(x) once more")}
    measured = [
        Measured(energy, by_jit.left, by_jit.tolerance, {"by jit": by_jit.left}, subject=name)
        for name, energy in energies.items()
    ]
    return {"jit": measured}


@filter_jit
def _bounded(model: AbstractEnergyModel, x: PyTree, bound: Array) -> Laws:
    # x between two other samples, on which its results must not depend.
    other = jax.tree.map(lambda x: 1 - x[::-1] / 2 if x.ndim else 1 - x / 2, x)
    batch = jax.tree.map(lambda x, other: jnp.stack([other, x, other]), x, other)
    model = TracedOnce(model)
    _check_shapes(model, x, ())
    _check_shapes(model, batch, (3,))
    local = Local(EnergyFlow(model), x)
    rounding_effect = jnp.sum(abs_product(local.curvature, local.sizes), axis=1)
    in_batch = []
    for name, fn, alone, tolerance in (
        ("E(x)", model.energy, local.energy, local.rounding),
        ("g(x)", model.activations, local.g, rounding(local.g, rounding_effect)),
        ("u(x)", model.dEdg, local.u, rounding(local.u, local.x, jnp.sum(jnp.abs(local.g)))),
    ):
        flat, _ = ravel_pytree(entries(fn(batch), 1))
        in_batch.append(Measured(flat.reshape(alone.shape), alone, tolerance, {}, subject=name))
    bound = bound.astype(local.energy.dtype)
    terms = {"E(x)": local.energy, "bound": bound, "g(x)": local.g}
    tolerance = local.rounding + jnp.where(jnp.isfinite(bound), rounding(bound), 0)
    results = {"E(x)": local.energy, "g(x)": local.g, "u(x)": local.u}
    return {
        # E = −∞ is below every bound.
        "finite": [finite(results, jnp.isneginf(local.energy), is_decided=local.in_range)],
        "batch": in_batch,
        "bounded": [Measured(local.energy, bound, tolerance, terms, inequality=True)],
    }


def _check_shapes(model: AbstractEnergyModel, x: PyTree, batch: tuple[int, ...]) -> None:
    """Raises a [`Violation`][] if E, g or u of x, with these batch axes, have other shapes."""
    for name, fn in (("E", model.energy), ("g", model.activations), ("u", model.dEdg)):
        actual, expected = (
            jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (jax.eval_shape(fn, x), x)
        )
        expected = batch if name == "E" else expected
        if actual != expected:
            text = f"{name} has shape {actual} for batch axes {batch}, expected {expected}."
            raise Violation("batch", text)


@filter_jit
def _along(field: EnergyFlow, ts: Array, xs, rates, relative: Array, absolute: Array) -> Laws:
    """The laws of the field at each step, and E(xₙ) ≥ E(xₙ₊₁)."""

    def at_step(x_and_rate):
        local, (rate, _) = Local(field, x_and_rate[0]), ravel_pytree(x_and_rate[1])
        sizes = local.sizes + jnp.abs(local.g)
        size = jnp.sum(abs_product(local.curvature + local.curvature_at_0, sizes), axis=1)
        size += 1 + jnp.max(jnp.abs(local.g), initial=0) + jnp.abs(local.slope)
        tolerance = rounding(size) + 4 * local.unsteady + 16 * local.noise
        terms = {"x": local.x, "∂E/∂x": local.slope, "u": local.u}
        power, power_tolerance = jnp.sum(local.slope * rate), jnp.sum(tolerance * jnp.abs(rate))
        laws = {
            "finite": finite(terms | {"H u": local.force}, is_decided=local.in_range),
            "drive": Measured(local.slope, local.force, tolerance, terms),
            "dissipation": Measured(0.0, power, power_tolerance, terms | {"dx/dt": rate}, True),
        }
        error = jnp.sum(jnp.abs(local.slope) * (relative * jnp.abs(local.x) + absolute))
        return laws, local.energy, local.rounding, error

    laws, energies, roundings, errors = jax.lax.map(at_step, (xs, rates))
    # No state may have a higher energy than any state before it. Where the controller allows an
    # error eₙ at each step, E(xₙ) − E(xₘ) ≤ eₘ + 2 Σ eₖ + eₙ over m < k < n, plus the rounding of
    # these two energies.
    allowed = jnp.cumsum(2 * errors) - errors
    lowest = jax.lax.cummin(energies + roundings - allowed)
    before, after = lowest[:-1] + allowed[1:], energies[1:]
    terms = {"t": ts[1:], "E(xₙ₊₁)": after}
    tolerance = roundings[1:] + 0 * allowed[1:]  # undecided where an error is not finite
    descent = Measured(before, after, tolerance, terms, inequality=True)
    return {law: [stack.worst()] for law, stack in laws.items()} | {"descent": [descent]}


def _time_constants(model: AbstractEnergyModel) -> Laws:
    """The law that the time constants of the model are proportional to its leaves called tau."""

    def doubled(path, leaf):
        name = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
        # Equinox's is_inexact_array_like raises an error for a tracer of vmap.
        is_number = eqx.is_inexact_array(leaf) or isinstance(leaf, float)
        return 2 * leaf if name == "tau" and is_number else leaf

    slower = jax.tree_util.tree_map_with_path(doubled, model)
    if all(a is b for a, b in zip(*map(jax.tree.leaves, (slower, model)), strict=True)):
        return {}
    taus = zip(*map(jax.tree.leaves, (slower.tau, model.tau)), strict=True)
    measured = [
        Measured(slow, 2 * tau, rounding(tau), {"τ": jnp.asarray(tau)}) for slow, tau in taus
    ]
    return {"time constants": measured}
