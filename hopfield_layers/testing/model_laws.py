"""The laws of layers, networks and models of your own."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._arrays import as_float
from ..dynamics import energy_descent, EnergyFlow, solve
from ..dynamics.descent import is_descent
from ..model import AbstractEnergyModel
from .bounds import energy_bound
from .verdict import check, Laws, Measured, not_nan, rounding, Violation


def assert_energy_bounded(model: Any, x: PyTree, bound: Any = None) -> None:
    """E(x) ≥ −L(0) for a layer, E(x) ≥ bound for any model, and a batch's E, g and u are its
    samples'.

    Right up to 64 ε of the sizes of x·g, of E, of 1 for each unit, and of what rounding x does to
    E.

    **Arguments:**

    - `model`: a [`hopfield_layers.AbstractEnergyModel`][].
    - `x`: a state, without batch axes.
    - `bound`: a number that E should never fall below. By default that of
        [`hopfield_layers.testing.energy_bound`][].

    **Raises:** `AssertionError` with the law, its formula with the numbers, and the size of the
    violation. `ValueError` without a bound for a model for which none is known.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import assert_energy_bounded
    >>> assert_energy_bounded(hl.ExpLayer(2), jnp.array([3.0, -1.0]))
    >>> assert_energy_bounded(hl.ExpLayer(2), jnp.zeros(2), bound=-1.5)
    Traceback (most recent call last):
    ...
    hopfield_layers.testing.verdict.Violation: bounded: E(x) ≥ bound, does not hold.
      -2 ≥ -1.5 is missed by 0.5; rounding explains 2.67e-05.
    ...

    ```
    """
    model, x = _checked(model, x)
    check(bound_laws(model, x, bound), {"model": model, "x": x})


def bound_laws(model: AbstractEnergyModel, x: PyTree, bound: Any = None) -> Laws:
    """The laws of the energy at x and of batches."""
    bound = energy_bound(model) if bound is None else bound
    if bound is None:
        raise ValueError(f"Expected a bound: none is known for this {type(model).__name__}.")
    return _bounded(model, x, jnp.asarray(bound))


def assert_energy_descends(
    model: Any,
    x0: PyTree,
    flow: str = "state",
    *,
    t1: Any = None,
    inputs: PyTree = None,
    clamp: PyTree = None,
    stepsize_controller: Any = None,
    **options: Any,
) -> None:
    """∂E/∂x = H u and dE/dt ≤ 0 at every step of a solve, and E falls from step to step.

    Up to 64 ε of their terms. From step to step exactly so under
    [`hopfield_layers.energy_descent`][]; with other controllers up to the tolerances of the steps,
    rtol·|x| + atol in each unit times ∂E/∂x, which a solver whose error estimate fails, as at the
    limit of its stability, may miss.

    **Arguments:**

    - `model`: a [`hopfield_layers.AbstractEnergyModel`][].
    - `x0`: a state, without batch axes, of a few dozen units at most: H is formed.
    - `flow`, `inputs`, `clamp`: as for [`hopfield_layers.solve`][]; inputs that don't depend on t.
    - `t1`: the end. By default 10 times the largest τ.
    - `stepsize_controller`: by default `diffrax.PIDController(rtol=1e-3, atol=1e-6)` under
        [`hopfield_layers.energy_descent`][].
    - `options`: as for [`hopfield_layers.solve`][], `solver`, `dt0` and `max_steps` for instance;
        a run out of steps is no violation.

    **Raises:** `AssertionError` with the law, its formula with the numbers, and the size of the
    violation; and as [`hopfield_layers.solve`][].

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import assert_energy_descends
    >>> assert_energy_descends(hl.TanhLayer(3, tau=2.0), jnp.array([1.0, -2.0, 0.0]))

    ```
    """
    model, x0 = _checked(model, x0)
    keywords = {"inputs": inputs, "clamp": clamp, "stepsize_controller": stepsize_controller}
    measured = descent_laws(model, x0, flow, t1=t1, **keywords, **options)
    check(measured, {"model": model, "x0": x0})


def descent_laws(
    model: AbstractEnergyModel,
    x0: PyTree,
    flow: str = "state",
    *,
    t1: Any = None,
    inputs: PyTree = None,
    clamp: PyTree = None,
    stepsize_controller: Any = None,
    max_steps: int = 256,
    **options: Any,
) -> Laws:
    """The laws of the flow at x0 and along a solve from there."""
    field = EnergyFlow(model, flow, clamp, inputs)
    if stepsize_controller is None:
        loose = diffrax.PIDController(rtol=1e-3, atol=1e-6)
        stepsize_controller = energy_descent(loose, field)
    if t1 is None:
        t1 = 10 * max(float(jnp.max(tau)) for tau in jax.tree.leaves(model.tau))
    solution = solve(
        model,
        x0,
        t1,
        flow=flow,
        inputs=inputs,
        clamp=clamp,
        stepsize_controller=stepsize_controller,
        saveat=diffrax.SaveAt(t0=True, steps=True),
        max_steps=max_steps,
        throw=False,
        **options,
    )
    assert solution.ts is not None
    exact = is_descent(stepsize_controller)
    rtol, atol = (
        jnp.asarray(0.0 if exact else getattr(stepsize_controller, name, 0.0))
        for name in ("rtol", "atol")
    )
    xs, rates = _steps(field, solution.ts, solution.ys)
    either = EnergyFlow(model, inputs=inputs)
    return _along(either, solution.ts, xs, rates, rtol, atol) | _time_constants(model)


def _checked(model: Any, x: PyTree) -> tuple[AbstractEnergyModel, PyTree]:
    if not isinstance(model, AbstractEnergyModel):
        raise TypeError(f"Expected an AbstractEnergyModel, a Layer for instance, got {model!r}.")
    return model, jax.tree.map(as_float, x)


def _well_formed(model: AbstractEnergyModel, x: PyTree) -> None:
    """Raises a [`Violation`][] if the shapes of E, g or u of a batch are not those of one."""
    pair = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), x)
    for batch, state in (((), x), ((2,), pair)):
        energy = jax.eval_shape(model.energy, state)
        # A model of your own may do without batch axes, but a layer may not.
        if energy.shape != batch:
            text = f"E has shape {energy.shape} for batch axes {batch}."
            raise Violation("batch", text)
        for name, fn in (("g", model.activations), ("u", model.dEdg)):
            shapes = [
                jax.tree.map(lambda leaf: leaf.shape, tree)
                for tree in (jax.eval_shape(fn, state), state)
            ]
            if shapes[0] != shapes[1]:
                raise Violation("batch", f"{name} has shapes {shapes[0]}, expected {shapes[1]}.")


class _Local(eqx.Module):
    """What the laws of one state are made of, flat over all units."""

    x: Array
    g: Array
    u: Array
    energy: Array
    slope: Array  # ∂E/∂x
    force: Array  # H u
    curvature: Array  # |H|
    terms: Array  # |H| at 0
    unsteady: Array  # what rounding x does to H u
    rounding: Array  # of E

    def __init__(self, field: EnergyFlow, x: PyTree):
        model, zero = field.model, jnp.zeros(())
        self.x, unravel = ravel_pytree(x)
        flat = lambda fn: lambda x: ravel_pytree(fn(unravel(x)))[0]
        self.u = flat(lambda x: field.drive(zero, x))(self.x)
        self.energy, self.slope = jax.value_and_grad(lambda x: field.energy(zero, unravel(x)))(
            self.x
        )

        def derivatives(x):
            g, times = jax.linearize(flat(model.activations), x)
            return g, times(self.u), jax.vmap(times, out_axes=-1)(jnp.eye(x.size, dtype=x.dtype))

        # Near an edge, rounding x makes it another H; and far out H may be small as a difference
        # of terms of the size that it has at 0.
        turns = 4 * jnp.finfo(self.x.dtype).eps * (-1.0) ** jnp.arange(self.x.size)
        nearby = self.x * (1 + jnp.outer(jnp.array([0, 1, -1]), turns).astype(self.x.dtype))
        points = jnp.concatenate([nearby, jnp.zeros_like(nearby[:1])])
        gs, (self.force, up, down, _), hessians = jax.lax.map(derivatives, points)
        self.g = gs[0]
        self.unsteady = jnp.abs(up - self.force) + jnp.abs(down - self.force)
        # Where one unit's curvature leaves the range, ∞ · 0 is NaN in the rows of the others.
        self.curvature = jnp.nan_to_num(jnp.abs(hessians[0]), nan=0, posinf=jnp.inf)
        self.terms = jnp.nan_to_num(jnp.abs(hessians[-1]), nan=0, posinf=0)
        self.rounding = rounding(
            self.x.size,
            self.energy,
            jnp.sum(jnp.abs(self.x * self.g)),
            jnp.sum(jnp.abs(self.x * self.slope)),
        )


@eqx.filter_jit
def _bounded(model: AbstractEnergyModel, x: PyTree, bound: Array) -> Laws:
    _well_formed(model, x)
    local = _Local(EnergyFlow(model), x)
    moved = _times(local.curvature, jnp.abs(local.x))
    # In the midst of another sample, which it must know nothing of.
    other = jax.tree.map(lambda x: 1 - x[::-1] / 2 if x.ndim else 1 - x / 2, x)
    batch = jax.tree.map(lambda x, other: jnp.stack([other, x, other]), x, other)
    amid = lambda tree: ravel_pytree(jax.tree.map(lambda leaf: leaf[1], tree))[0]
    alone = {"E(x)": local.energy, "g(x)": local.g, "u(x)": local.u}
    in_batch = {
        "E(x)": model.energy(batch),
        "g(x)": model.activations(batch),
        "u(x)": model.dEdg(batch),
    }
    tolerances = {
        "E(x)": local.rounding,
        "g(x)": rounding(local.g, moved),
        "u(x)": rounding(local.u, local.x, jnp.sum(jnp.abs(local.g))),
    }
    parts = [
        Measured(amid(together).reshape(alone[name].shape), alone[name], tolerances[name], {})
        for name, together in in_batch.items()
    ]
    bound = bound.astype(local.energy.dtype)
    terms = {"E(x)": local.energy, "bound": bound, "g(x)": local.g}
    tolerance = local.rounding + rounding(bound)
    return {
        "finite": [not_nan(alone)],
        "batch": parts,
        "bounded": [Measured(local.energy, bound, tolerance, terms, inequality=True)],
    }


def _falling(local: _Local, rate: Array) -> Laws:
    size = _times(
        local.curvature + local.terms, jnp.abs(local.u) + jnp.abs(local.x) + jnp.abs(local.g)
    )
    size = 1 + size + jnp.max(jnp.abs(local.g), initial=0) + jnp.abs(local.slope)
    tolerance = rounding(size) + 4 * local.unsteady
    terms = {"x": local.x, "∂E/∂x": local.slope, "u": local.u}
    power = jnp.sum(local.slope * rate)
    return {
        "finite": [not_nan({"x": local.x, "u": local.u, "∂E/∂x": local.slope, "H u": local.force})],
        "drive": [Measured(local.slope, local.force, tolerance, terms)],
        "dissipation": [
            Measured(
                jnp.zeros_like(power),
                power,
                jnp.sum(tolerance * jnp.abs(rate)),
                terms | {"dx/dt": rate},
                inequality=True,
            )
        ],
    }


def _times(matrix: Array, vector: Array) -> Array:
    """The product, in which 0 · ∞ = 0."""
    return jnp.sum(jnp.where(matrix == 0, 0, matrix * vector), axis=1)


def _time_constants(model: AbstractEnergyModel) -> Laws:
    """Every leaf called tau is one that the model's time constants follow."""

    def twice(path, leaf):
        name = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
        return 2 * leaf if name == "tau" and eqx.is_inexact_array_like(leaf) else leaf

    slower = jax.tree_util.tree_map_with_path(twice, model)
    if all(a is b for a, b in zip(*map(jax.tree.leaves, (slower, model)), strict=True)):
        return {}
    return {
        "time constants": [
            Measured(jnp.asarray(now), 2 * was, rounding(was), {"τ": was})
            for now, was in zip(
                jax.tree.leaves(slower.tau),
                map(jnp.asarray, jax.tree.leaves(model.tau)),
                strict=True,
            )
        ]
    }


@eqx.filter_jit
def _steps(field: EnergyFlow, ts: Array, xs: PyTree) -> tuple[PyTree, PyTree]:
    """The states of the steps that were taken, the others as the first, and dx/dt there."""
    taken = jnp.isfinite(ts)
    fill = lambda x: jnp.where(taken.reshape(-1, *(1,) * (x.ndim - 1)), x, x[:1])
    xs = jax.tree.map(fill, xs)
    return xs, jax.lax.map(lambda x: field(jnp.zeros(()), x), xs)


@eqx.filter_jit
def _along(
    field: EnergyFlow, ts: Array, xs: PyTree, rates: PyTree, rtol: Array, atol: Array
) -> Laws:
    """The laws at each step, and E(xₙ) ≥ E(xₙ₊₁). Of the field only its model and inputs matter,
    so that one program serves both flows.
    """
    taken = jnp.isfinite(ts)

    def at(x_and_rate):
        local = _Local(field, x_and_rate[0])
        rate, _ = ravel_pytree(x_and_rate[1])
        error = jnp.sum(jnp.abs(local.slope) * (rtol * jnp.abs(local.x) + atol))
        return _falling(local, rate), local.energy, local.rounding + error

    laws, energies, tolerances = jax.lax.map(at, (xs, rates))
    laws = {law: [part.at_worst() for part in parts] for law, parts in laws.items()}
    after = jnp.where(taken[1:], energies[1:], energies[:-1])
    terms = {"t": ts[1:], "E(xₙ₊₁)": after}
    tolerance = tolerances[1:] + tolerances[:-1]
    descent = Measured(energies[:-1], after, tolerance, terms, inequality=True)
    return laws | {"descent": [descent]}
