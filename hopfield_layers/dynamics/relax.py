"""Relaxation to a fixed point."""

import math
import operator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from . import samples
from .descent import descend_on, energy_descent, is_descent
from .exponential import ETD2RK
from .flow import EnergyFlow, times
from .implicit import Krylov, newton_krylov, with_tolerances_of
from .settling import AtRest, Settling


class Relaxation(eqx.Module):
    """What [`hopfield_layers.relax`][] returns; one of each per sample.

    **Attributes:**

    - `x`: the state it came to, of the structure and shapes of x0.
    - `energy`: E − Σ I·g there.
    - `residual`: the largest |τ dx/dt| of all units there, in the units of x.
    - `converged`: whether |τ dx/dt| is within the tolerance in every unit.
    - `time`: the time t that the flow took, in the units of τ.
    - `num_steps`: the steps it took, rejected ones included.

    x and the energy have derivatives; those of the others are 0.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> rest = hl.relax(hl.TanhLayer(3), jnp.ones((5, 3)))
    >>> print(rest.x.shape, rest.energy.shape, bool(rest.residual.max() < 1e-4))
    (5, 3) (5,) True

    ```
    """

    x: PyTree
    energy: Array
    residual: Array
    converged: Array
    time: Array
    num_steps: Array


def relax(
    model: Any,
    x0: PyTree,
    *,
    flow: str = "activation",
    clamp: PyTree = None,
    inputs: PyTree = None,
    tol: ArrayLike | None = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: ArrayLike | None = None,
    max_steps: int = 4096,
    throw: bool = True,
) -> Relaxation:
    """Follows τ dx/dt = −∂E/∂g, or −∂E/∂x, from x0 to rest: |τ dx/dt| < tol in every unit.

    Each unit is measured by itself and in units of τ dx/dt, whatever the steps' own tolerances, so
    that frozen units, large ones and slow layers hide nothing. By default the steps are as long as
    they may be while the energy falls; where −E_s is convex in g, as for a modern Hopfield memory,
    the first may be its update already.

    The derivative of the result, forward or reverse, with respect to parameters, inputs and clamped
    values is that of the fixed point, by the implicit function theorem: dx* solves
    (I + S H) dx* = −∂u/∂θ dθ, with S = ∂²E_s/∂g² and H = ∂²L/∂x², by GMRES, without matrices and
    without the steps. For `flow="activation"` that is exact, and 0 with respect to free units of
    x0. For `flow="state"` the derivatives of g* and of the energy are exact where u is 0 or, for
    x all around, H u is (a softmax's row, a dead ReLU); x* itself also keeps what H can't move of
    x0 (the mean of the row, the dead unit), which its derivative ignores. Where a sample didn't
    converge the derivative means nothing, and where GMRES finds none for one of a batch's samples
    there is lineax's error.

    **Arguments:**

    - `model`, `x0`, `flow`, `clamp`: as for [`hopfield_layers.solve`][]. Clamped units don't count
        as moving.
    - `inputs`: the external input I, a tree of arrays that broadcast to x0.
    - `tol`: the bound on |τ dx/dt|, in the units of x, greater than 0. By default
        ε^(2/3)·(1 + |x|) for each unit: 4e-11 in float64, 2e-5 in float32, ε being
        the dtype's.
    - `solver`: any diffrax solver of a single `ODETerm`. By default
        [`hopfield_layers.ETD2RK`][] for the activation flow, and for the state flow
        `diffrax.ImplicitEuler` with [`hopfield_layers.newton_krylov`][].
    - `stepsize_controller`: a controller of diffrax that does not step to given times, for every
        step begins at t = 0. By default `diffrax.PIDController(rtol=0.1,
        atol=0.1)` under [`hopfield_layers.energy_descent`][]; constant steps under the latter for
        a solver without an error estimate.
    - `dt0`: the first step, in the units of t. By default 100 times the largest τ, or for constant
        steps the smallest.
    - `max_steps`: the most steps to take.
    - `throw`: whether a sample that didn't arrive is an error.

    **Returns:**

    A [`hopfield_layers.Relaxation`][], whose arrays begin with the batch axes of x0. Each sample
    has its own steps and its own end.

    **Raises:** `ValueError` for tol ≤ 0 or dt0 ≤ 0, for steps to given times, for inputs that
    depend on t, and as [`hopfield_layers.solve`][] for x0, masks and inputs. With
    `throw=True`, `RuntimeError` for running out of steps and for what leaves the range of the
    dtype. Where an outer jit hides the values it is an error at run time, which
    `equinox.filter_jit` shows as an `equinox.EquinoxRuntimeError`.

    Source: Krotov & Hopfield, arXiv:2008.06996; Bai, Kolter & Koltun, "Deep equilibrium models",
    arXiv:1909.01377, for the derivative.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> import jax.numpy as jnp
    >>> layer = hl.TanhLayer(3, bias=jnp.array([1.0, 2.0, 3.0]))
    >>> rest = hl.relax(layer, jnp.zeros((5, 3)))
    >>> print(rest.x[0], rest.converged)
    [1. 2. 3.] [ True  True  True  True  True]
    >>> print(jax.grad(lambda I: hl.relax(layer, jnp.zeros(3), inputs=I).x.sum())(jnp.ones(3)))
    [1. 1. 1.]

    ```
    """
    if callable(inputs):
        raise ValueError("Inputs that depend on t have no fixed point: expected arrays.")
    x0, clamp, dtype = samples.given(model, x0, flow, clamp)
    max_steps = operator.index(max_steps)
    if max_steps < 1:
        raise ValueError(f"Expected max_steps of 1 at least, got {max_steps}.")
    dt0, tol = samples.as_number(dt0, dtype), samples.as_number(tol, dtype)
    tools = samples.as_arrays((inputs, solver, stepsize_controller), dtype)
    try:
        leaves, structure, arrived = _relax((model, flow, clamp, x0, max_steps, *tools, dt0, tol))
    except eqx.EquinoxRuntimeError:
        samples.raise_if_not_finite(x0)
        _raise_if_not_positive(dt0=dt0, tol=tol)
        raise
    rest = jax.tree.unflatten(structure, leaves)
    if throw and (isinstance(arrived, Tracer) or not arrived):
        return _arrived(rest, EnergyFlow(model, flow, clamp, tools[0]), max_steps)
    return rest


def _raise_if_not_positive(**numbers: Any) -> None:
    """Raises an error if one of these is known not to be finite and greater than 0."""
    for name, value in numbers.items():
        if value is None or isinstance(value, Tracer):
            continue
        if not 0 < float(value) < math.inf:
            raise ValueError(f"Expected a finite {name} > 0, got {value}.") from None


def _tools(field: EnergyFlow, solver: Any, controller: Any) -> tuple[Any, Any]:
    """The solver and the controller, by default those of the flow; or an error."""
    if solver is None:
        implicit = diffrax.ImplicitEuler(root_finder=newton_krylov())
        solver = ETD2RK() if field.flow == "activation" else implicit
    if controller is None:
        adaptive = isinstance(solver, diffrax.AbstractAdaptiveSolver)
        loose = diffrax.PIDController(rtol=0.1, atol=0.1)
        controller = energy_descent(loose if adaptive else diffrax.ConstantStepSize(), field)
    inner = getattr(controller, "controller", controller)
    if isinstance(controller, _TO_TIMES) or isinstance(inner, _TO_TIMES):
        raise ValueError("relax has no times to step to: expected constant steps or a PID.")
    samples.check_tools(solver, controller)
    return with_tolerances_of(controller, solver), controller


@eqx.filter_jit
def _relax(arguments: tuple[Any, ...]) -> tuple[list[Any], Any, Array]:
    """The leaves and the structure of the samples at rest, as a list and apart they pass through
    Equinox's jit faster; and whether all arrived.
    """
    model, flow, clamp, x0, max_steps, inputs, *tools, dt0, tol = arguments
    flow, x0, dtype = samples.prepared(model, x0, flow, clamp, inputs)
    solver, controller = _tools(flow, *tools)
    errors = {}
    dt0, tol = (None if of is None else jnp.asarray(of, dtype) for of in (dt0, tol))
    for name, value in (("dt0", dt0), ("tol", tol)):
        if value is not None and value.shape != ():
            raise ValueError(f"Expected {name} to be one number, got shape {value.shape}.")
        if value is not None:
            errors[f"Expected a finite {name} > 0."] = ~((value > 0) & (value < jnp.inf))
    x0 = samples.checked(x0, errors)
    precision = float(jnp.finfo(dtype).eps) ** (2 / 3)
    rtol, atol = (precision, precision) if tol is None else (0.0, tol)
    taus = [tau.ravel() for tau in jax.tree.leaves(times(flow.model, x0)) if tau.size]
    taus = jnp.concatenate([*taus, jnp.ones(not taus, dtype)])
    # Units slower than this don't move any more, in the dtype's precision.
    longest = jnp.max(taus) / jnp.finfo(dtype).eps
    if dt0 is None:
        adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
        dt0 = 100 * jnp.max(taus) if adaptive else jnp.min(taus)
    adjoint = optx.ImplicitAdjoint(
        linear_solver=Krylov(precision, restart=50, cycles=100, first=(10, 8))
    )

    def sample(field, x0):
        if all(x.size == 0 for x in jax.tree.leaves(x0)):
            nothing, steps = jnp.zeros((), dtype), jnp.zeros((), int)
            energy = field.energy(nothing, x0)
            return Relaxation(x0, energy, nothing, jnp.array(True), nothing, steps)
        settling = Settling(
            flow=field,
            solver=solver,
            controller=descend_on(controller, field),
            dt0=dt0,
            longest=longest,
            rtol=rtol,
            atol=atol,
        )
        found = optx.root_find(
            AtRest(field), settling, x0, x0, max_steps=max_steps, adjoint=adjoint, throw=False
        )
        state = found.state
        known = state.controller.start.energy if is_descent(controller) else None
        energy = _energy(field, found.value, known)
        steps = found.stats["num_steps"]
        return Relaxation(found.value, energy, state.residual, state.at_rest, state.time, steps)

    rest = samples.per_sample(sample, flow, x0)
    return *jax.tree.flatten(rest), jnp.all(rest.converged)


@eqx.filter_custom_jvp
def _energy(field: EnergyFlow, x: PyTree, known: Array | None) -> Array:
    """E − Σ I·g at x, which `energy_descent` knows."""
    return field.energy(jnp.zeros(()), x) if known is None else known


@_energy.def_jvp
def _(primals, tangents):
    energy = lambda field, x: field.energy(jnp.zeros(()), x)
    return _energy(*primals), eqx.filter_jvp(energy, primals[:2], tangents[:2])[1]


def _arrived(rest: Relaxation, field: EnergyFlow, max_steps: int) -> Relaxation:
    """`rest`, or an error if some sample isn't."""
    stray = ~rest.converged
    if isinstance(stray, Tracer):
        rest = eqx.error_if(rest, jnp.any(stray & jnp.isinf(rest.residual)), _BEYOND)
        return eqx.error_if(rest, jnp.any(stray), _STRAY.format(where=""))
    if not bool(jnp.any(stray)):
        return rest
    if bool(jnp.any(stray & jnp.isinf(rest.residual))):
        raise RuntimeError(_BEYOND)

    def excess(force):
        return jnp.where(stray.reshape(stray.shape + (1,) * (force.ndim - stray.ndim)), force, 0)

    # Under jax.jvp the values are known, but tangents come with them.
    x, still = jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, (rest.x, field)
    )
    speed = jax.tree.map(lambda force: jnp.abs(excess(force)), still.force(0.0, x))
    path, worst = max(
        jax.tree_util.tree_leaves_with_path(speed), key=lambda item: jnp.max(item[1], initial=0.0)
    )
    index = jnp.unravel_index(jnp.argmax(worst), worst.shape)
    unit = f"x{jax.tree_util.keystr(path)}[{', '.join(str(int(i)) for i in index)}]"
    where = (
        f" {int(jnp.sum(stray))} of {stray.size} samples; the slowest unit is {unit} with "
        f"|τ dx/dt| = {float(jnp.max(worst)):.3g} after {max_steps} steps and t = "
        f"{float(jnp.max(rest.time[stray])):.3g}."
    )
    raise RuntimeError(_STRAY.format(where=where))


_BEYOND = (
    "relax came to no rest: dx/dt is NaN or leaves the range of the dtype, because x0, the inputs "
    "or the model's parameters do, or because the energy has no lower bound. With throw=False it "
    "returns what it reached."
)
_TO_TIMES = (diffrax.StepTo, diffrax.ClipStepSizeController)
_STRAY = (
    "relax ran out of steps before every unit came to rest.{where} Allow more max_steps or a "
    "larger tol; solve in float64; for stiff models try "
    "solver=diffrax.Kvaerno3(root_finder=hopfield_layers.newton_krylov()). With throw=False it "
    "returns what it reached."
)
