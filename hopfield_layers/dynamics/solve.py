"""Solutions of a model's flow, sample by sample."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .descent import descend_on
from .flow import EnergyFlow, fastest, Guarded, Inputs
from .samples import as_arrays, check_tools, per_sample, prepared


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

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.ExpLayer(3)
    >>> solution = hl.solve(layer, jnp.array([[0.5, -0.5, 1.0], [2.0, 0.0, -1.0]]), t1=100.0)
    >>> print(solution.ys.shape, layer.energy(solution.ys[:, -1]))
    (2, 1, 3) [-3. -3.]

    ```
    """
    field, x0 = prepared(model, x0, flow, clamp, inputs)
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    if stepsize_controller is None:
        stepsize_controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    solver = diffrax.Tsit5() if solver is None else solver
    check_tools(solver, stepsize_controller)
    if dt0 is None and isinstance(stepsize_controller, diffrax.ConstantStepSize):
        raise ValueError("Constant steps need their size, dt0.")
    t0 = jnp.asarray(t0, dtype)
    options |= {
        "solver": solver,
        "t0": t0,
        "t1": _after(t0, jnp.asarray(t1, dtype)),
        "dt0": None if dt0 is None else jnp.asarray(dt0, dtype),
        "saveat": diffrax.SaveAt(t1=True) if saveat is None else saveat,
        "stepsize_controller": stepsize_controller,
        "max_steps": max_steps,
    }
    return _solve(field, x0, as_arrays(options, dtype))


def _after(t0: Array, t1: Array) -> Array:
    """`t1`, or an error unless it is a finite number greater than `t0`."""
    if t0.shape != () or t1.shape != ():
        raise ValueError(f"Expected t0 and t1 to be numbers, got shapes {t0.shape} and {t1.shape}.")
    if isinstance(t0, Tracer) or isinstance(t1, Tracer):
        bad = ~(jnp.isfinite(t0) & (t1 > t0) & jnp.isfinite(t1))
        return eqx.error_if(t1, bad, "Expected finite times with t1 > t0.")
    # In NumPy, which compiles nothing.
    if not (np.isfinite(t0) and np.isfinite(t1) and float(t1) > float(t0)):
        raise ValueError(f"Expected finite times with t1 > t0, got t0 = {t0} and t1 = {t1}.")
    return t1


def _checked(field: EnergyFlow, x0: PyTree, t0: Array, t1: Array) -> PyTree:
    """`x0`, or an error if dx/dt is NaN there, or so far beyond the range as to be misjudged."""

    def bad(x, rate):
        instant = jnp.abs(x) < jnp.finfo(rate.dtype).eps * (t1 - t0) * fastest(rate)
        return jnp.any(~((jnp.abs(rate) < fastest(rate)) | instant) | jnp.isnan(rate))

    found = jnp.array(jax.tree.leaves(jax.tree.map(bad, x0, field(t0, x0))))
    return eqx.error_if(x0, jnp.any(found), _BEYOND.format(dtype=t0.dtype))


@eqx.filter_jit
def _solve(flow: EnergyFlow, x0: PyTree, options: dict[str, Any]) -> diffrax.Solution:
    throw = options.get("throw", True)
    constant = isinstance(options["stepsize_controller"], diffrax.ConstantStepSize)

    def sample(field, x0):
        if throw and not constant:
            x0 = _checked(field, x0, options["t0"], options["t1"])
        term = diffrax.ODETerm(field if constant else Guarded(field))
        controller = descend_on(options["stepsize_controller"], field)
        solution = diffrax.diffeqsolve(term, y0=x0, **options | {"stepsize_controller": controller})
        ts = solution.ts
        if not throw or not isinstance(ts, Array):
            return solution
        # Unused room for further steps is ∞ in both.
        finite = lambda y: jnp.isfinite(y).reshape(*ts.shape, -1).all(axis=-1)
        bad = [jnp.isfinite(ts) & ~finite(y) for y in jax.tree.leaves(solution.ys)]
        return eqx.error_if(solution, jnp.any(jnp.array(bad)), _BEYOND.format(dtype=ts.dtype))

    return per_sample(sample, flow, x0)


_BEYOND = (
    "x or dx/dt left the range of {dtype}, or the inputs or the model's parameters are NaN. Start "
    'nearer to the bias, take smaller steps, follow flow="activation", or solve in float64 '
    '(jax.config.update("jax_enable_x64", True)).'
)
