"""Solutions of a model's flow, sample by sample."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from . import samples
from .descent import descend_on
from .flow import EnergyFlow, fastest, Guarded, Inputs


def solve(
    model: Any,
    x0: PyTree,
    t1: ArrayLike,
    *,
    t0: ArrayLike = 0.0,
    dt0: ArrayLike | None = None,
    flow: str = "state",
    clamp: PyTree = None,
    inputs: Inputs = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    saveat: diffrax.SaveAt | None = None,
    max_steps: int | None = 4096,
    **options: Any,
) -> diffrax.Solution:
    """Integrates τ dx/dt = −∂E/∂x, or −∂E/∂g, from x0 at t0 to t1.

    The first call compiles; further ones with other values (of x0, times, parameters, inputs,
    tolerances) and the same shapes do not. Functions are compared by identity: a new lambda does.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or any [`hopfield_layers.AbstractEnergyModel`][].
    - `x0`: the state at t0. With batch axes it is solved sample by sample, each with its own step
        sizes. Integers become floats, and float16 and bfloat16 become float32.
    - `t1`, `t0`: the end and the start, t1 > t0, in the units of τ.
    - `dt0`: the first step, in the same units. By default the step size controller chooses;
        constant steps need it.
    - `flow`: `"state"` or `"activation"`, see [`hopfield_layers.EnergyFlow`][].
    - `clamp`: the units that keep their values: a tree of boolean masks that broadcast to x0.
    - `inputs`: the external input I: a tree of arrays that broadcast to x0, or a function of t that
        returns one for a single sample.
    - `solver`: any diffrax solver of a single `ODETerm`. By default `diffrax.Tsit5()`.
    - `stepsize_controller`: any diffrax controller. By default
        `diffrax.PIDController(rtol=1e-5, atol=1e-7)`; `diffrax.ConstantStepSize()` takes steps
        of dt0.
    - `saveat`: what to save. By default the end, `diffrax.SaveAt(t1=True)`.
    - `max_steps`: the most steps to take.
    - `options`: further keywords of `diffrax.diffeqsolve`: `event`, `adjoint`, `throw`,
        `progress_meter` and so on.

    **Returns:**

    The `diffrax.Solution`, whose arrays begin with the batch axes of x0. `model.energy(sol.ys)` is
    the energy along it.

    **Raises:** `ValueError` for t1 ≤ t0, for NaN or infinities in x0, for inputs that don't fit and
    for masks that don't or, under the activation flow, split what a Lagrangian couples; where an
    outer jit hides the values an `equinox.EquinoxRuntimeError` instead. So is a state or
    rate that leaves the range of the dtype, and a solver that fails, for instance by running out
    of steps; `throw=False` suppresses these, and `Solution.result` tells of the latter.
    With Equinox's `EQX_ON_ERROR=nan` what is wrong with the values of x0 or the times makes NaN.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.ExpLayer(3)
    >>> solution = hl.solve(layer, jnp.array([[0.5, -0.5, 1.0], [2.0, 0.0, -1.0]]), t1=100.0)
    >>> print(solution.ys.shape, layer.energy(solution.ys[:, -1]))
    (2, 1, 3) [-3. -3.]

    ```
    """
    x0, clamp, dtype = samples.given(model, x0, flow, clamp)
    t0, t1, dt0 = (samples.as_number(t, dtype) for t in (t0, t1, dt0))
    tools = (solver, stepsize_controller, dt0, saveat, options)
    tools = samples.as_arrays((inputs, *tools), dtype)
    try:
        leaves, structure = _solve((model, flow, clamp, x0, t0, t1, max_steps, *tools))
    except eqx.EquinoxRuntimeError:
        samples.raise_if_not_finite(x0)
        _raise_if_not_in_order(t0, t1)
        raise
    return jax.tree.unflatten(structure, leaves)


def _raise_if_not_in_order(t0: Any, t1: Any) -> None:
    """Raises an error if these are known not to be finite numbers with t1 > t0."""
    known = not (isinstance(t0, Tracer) or isinstance(t1, Tracer))
    if known and not -math.inf < float(t0) < float(t1) < math.inf:
        raise ValueError(f"{_NOT_IN_ORDER[:-1]}, got t0 = {t0} and t1 = {t1}.") from None


def _checked(field: EnergyFlow, x0: PyTree, t0: Array, t1: Array, rates: bool) -> PyTree:
    """`x0`, or an error if it or the times are wrong, or if dx/dt, should `rates` matter, is NaN
    there, or so far beyond the range as to be misjudged.
    """

    def beyond(x, rate):
        instant = jnp.abs(x) < jnp.finfo(rate.dtype).eps * (t1 - t0) * fastest(rate)
        return jnp.any(~((jnp.abs(rate) < fastest(rate)) | instant) | jnp.isnan(rate))

    errors = {_NOT_IN_ORDER: ~(jnp.isfinite(t0) & (t1 > t0) & jnp.isfinite(t1))}
    if rates:
        found = jnp.array(jax.tree.leaves(jax.tree.map(beyond, x0, field(t0, x0))))
        errors[_BEYOND.format(dtype=t0.dtype)] = jnp.any(found)
    return samples.checked(x0, errors)


@eqx.filter_jit
def _solve(arguments: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """The solution's leaves and structure. One argument, and a list, pass through Equinox's jit
    faster than many, and than a solution.
    """
    model, flow, clamp, x0, t0, t1, max_steps, inputs, *tools = arguments
    solver, controller, dt0, saveat, options = tools
    field, x0, dtype = samples.prepared(model, x0, flow, clamp, inputs)
    if jnp.shape(t0) != () or jnp.shape(t1) != ():
        shapes = f"{jnp.shape(t0)} and {jnp.shape(t1)}"
        raise ValueError(f"Expected t0 and t1 to be numbers, got shapes {shapes}.")
    t0, t1 = t0.astype(dtype), t1.astype(dtype)
    if controller is None:
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    solver = diffrax.Tsit5() if solver is None else solver
    samples.check_tools(solver, controller)
    constant = isinstance(controller, diffrax.ConstantStepSize)
    if dt0 is None and constant:
        raise ValueError("Constant steps need their size, dt0.")
    throw = options.get("throw", True)
    options = options | {
        "solver": solver,
        "t0": t0,
        "t1": t1,
        "dt0": None if dt0 is None else jnp.asarray(dt0, dtype),
        "saveat": diffrax.SaveAt(t1=True) if saveat is None else saveat,
        "max_steps": max_steps,
    }

    def sample(field, x0):
        x0 = _checked(field, x0, t0, t1, rates=throw and not constant)
        term = diffrax.ODETerm(field if constant else Guarded(field))
        control = descend_on(controller, field)
        solution = diffrax.diffeqsolve(term, y0=x0, stepsize_controller=control, **options)
        ts = solution.ts
        if not throw or not isinstance(ts, Array):
            return solution
        # Unused room for further steps is ∞ in both.
        finite = lambda y: jnp.isfinite(y).reshape(*ts.shape, -1).all(axis=-1)
        bad = [jnp.isfinite(ts) & ~finite(y) for y in jax.tree.leaves(solution.ys)]
        return eqx.error_if(solution, jnp.any(jnp.array(bad)), _BEYOND.format(dtype=ts.dtype))

    return jax.tree.flatten(samples.per_sample(sample, field, x0))


_NOT_IN_ORDER = "Expected finite times with t1 > t0."
_BEYOND = (
    "x or dx/dt left the range of {dtype}, or the inputs or the model's parameters are NaN. Start "
    'nearer to the bias, take smaller steps, follow flow="activation", or solve in float64 '
    '(jax.config.update("jax_enable_x64", True)).'
)
