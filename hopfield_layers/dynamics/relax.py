"""Relaxation to a fixed point."""

import math
import operator

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Real

from ..model import AbstractEnergyModel, Flow, StateLike
from . import problems
from .descent import descend_along, energy_descent, without_derivatives
from .exponential import ETD2RK
from .flow import EnergyFlow, time_constants
from .newton_krylov import newton_krylov, with_tolerances_of
from .problems import InitialValueProblem, ProblemArguments
from .settling import FlowToRest, largest, settle


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

    Examples:
        >>> rest = hl.relax(hl.TanhLayer(3), jnp.ones((5, 3)))
        >>> print(rest.x.shape, rest.energy.shape, bool(rest.residual.max() < 1e-4))
        (5, 3) (5,) True
    """

    x: PyTree[Array]
    energy: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    time: Float[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


def relax(
    model: AbstractEnergyModel,
    x0: StateLike,
    *,
    flow: Flow = "activation",
    clamp: StateLike | None = None,
    inputs: StateLike | None = None,
    tol: Real[ArrayLike, "..."] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real[ArrayLike, "..."] | None = None,
    max_steps: int = 4096,
    throw: bool = True,
) -> Relaxation:
    """Follows τ dx/dt = −∂E/∂g, or −∂E/∂x, from x0 to rest: |τ dx/dt| < tol in every unit.

    Each unit is measured by itself and in units of τ dx/dt, apart from the tolerances of the steps,
    so that one large or slow unit can't hide another. By default the steps are as long as they may
    be while the energy falls; where −E_s is convex in g, as for a modern Hopfield memory, the first
    may be its update already.

    The derivative of the result, forward or reverse, with respect to parameters, inputs and clamped
    values is that of the fixed point, by the implicit function theorem: dx* solves
    (I + S H) dx* = −∂u/∂θ dθ, with S = ∂²E_s/∂g² and H = ∂²L/∂x², by GMRES, without matrices and
    without the steps. For `flow="activation"` that is exact, and 0 with respect to free units of
    x0. For `flow="state"` the derivatives of g* and of the energy are exact where u = 0, or
    where H u = 0 in a neighbourhood of x (a softmax's row, a dead ReLU). x* itself also depends on
    what H can't move of x0 (the mean of the row, the dead unit), which its derivative ignores; and
    with a clamp a Lagrangian of your own must declare its `coupled_axes`, see
    [`hopfield_layers.as_lagrangian`][]. Where a sample didn't converge the derivative means
    nothing, and where GMRES fails for a sample, lineax raises its error.

    **Arguments:**

    - `model`, `x0`, `flow`, `clamp`: as for [`hopfield_layers.solve`][]. Clamped units don't count
        as moving.
    - `inputs`: the external input I, a tree of arrays that broadcast to x0.
    - `tol`: the bound on |τ dx/dt|, in the units of x, greater than 0. By default ε^(2/3)·(1 + |x|)
        for each unit, 4e-11 in float64 and 2e-5 in float32, ε being the dtype's.
    - `solver`: any diffrax solver of a single `ODETerm`. By default [`hopfield_layers.ETD2RK`][],
        and for the state flow `diffrax.ImplicitEuler` with [`hopfield_layers.newton_krylov`][].
    - `stepsize_controller`: a controller of diffrax that does not step to given times, for every
        step begins at t = 0. By default [`hopfield_layers.energy_descent`][] of
        `diffrax.PIDController(rtol=0.1, atol=0.1)`, or of constant steps for a solver without an
        error estimate.
    - `dt0`: the first step, in the units of t. By default 100 times the largest τ, or for constant
        steps the smallest.
    - `max_steps`: the most steps to take.
    - `throw`: whether a sample that didn't arrive is an error.

    **Returns:** a [`hopfield_layers.Relaxation`][], whose arrays begin with the batch axes of x0.
    Each sample takes steps of its own until it is at rest.

    **Raises:** `ValueError` for tol ≤ 0 or dt0 ≤ 0, for steps to given times, for inputs that
    depend on t, and as [`hopfield_layers.solve`][] for x0, masks and inputs. With `throw=True`,
    `RuntimeError` for running out of steps and for what leaves the range of the dtype. Where an
    outer jit hides the values it is an error at run time, which `equinox.filter_jit` shows as an
    `equinox.EquinoxRuntimeError`.

    Source: Krotov & Hopfield, arXiv:2008.06996; Bai, Kolter & Koltun, "Deep equilibrium models",
    arXiv:1909.01377, for the derivative.

    Examples:
        >>> layer = hl.TanhLayer(3, bias=jnp.array([1.0, 2.0, 3.0]))
        >>> rest = hl.relax(layer, jnp.zeros((5, 3)))
        >>> print(rest.x[0], rest.converged)
        [1. 2. 3.] [ True  True  True  True  True]
        >>> print(jax.grad(lambda I: hl.relax(layer, jnp.zeros(3), inputs=I).x.sum())(jnp.ones(3)))
        [1. 1. 1.]
    """
    if callable(inputs):
        raise ValueError("Inputs that depend on t have no fixed point: expected arrays.")
    try:
        max_steps = operator.index(max_steps)
    except TypeError as error:
        message = f"Expected max_steps to be a number, 4096 for instance, got {max_steps!r}."
        raise TypeError(message) from error
    if max_steps < 1:
        raise ValueError(f"Expected max_steps of 1 at least, got {max_steps}.")
    problems.check_tools(solver, stepsize_controller)
    arguments = ProblemArguments(model, x0, flow, clamp, inputs).converted()
    dtype = problems.solve_dtype(arguments.x0)
    numbers = {"dt0": dt0, "tol": tol}
    numbers = {k: problems.as_scalar(v, dtype) for k, v in numbers.items() if v is not None}
    tools = {"solver": solver, "controller": stepsize_controller}
    tools = problems.with_array_floats(tools, dtype)
    try:
        rest, converged = _relax(arguments=arguments, numbers=numbers, max_steps=max_steps, **tools)
    except eqx.EquinoxRuntimeError:
        problems.raise_if_not_finite(arguments.x0)
        for name, number in numbers.items():
            if not isinstance(number, Tracer) and not 0 < float(number) < math.inf:
                raise ValueError(f"Expected a finite {name} > 0, got {number}.") from None
        raise
    if throw and (isinstance(converged, Tracer) or not converged):
        return _raise_if_unconverged(rest, arguments, max_steps)
    return rest


@problems.flat_jit
def _relax(arguments, numbers, max_steps, solver, controller):
    """The samples at rest, and whether all of them converged."""
    problem = InitialValueProblem(arguments)
    solver, controller = _solver_and_controller(problem.field, solver, controller)
    dtype, errors = problem.dtype, {}
    for name, number in numbers.items():
        if number.shape != ():
            raise ValueError(f"Expected {name} to be one number, got shape {number.shape}.")
        errors[f"Expected a finite {name} > 0."] = ~((number > 0) & (number < jnp.inf))
    x0 = problems.check_values(problem.x0, errors)
    problem = eqx.tree_at(lambda problem: problem.x0, problem, x0)
    dt0, tol = numbers.get("dt0"), numbers.get("tol")
    taus = time_constants(problem.field.model, x0)
    if dt0 is None and isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        dt0 = 100 * largest(taus)
    elif dt0 is None:
        dt0 = jnp.min(jnp.array([jnp.min(x, initial=jnp.inf) for x in jax.tree.leaves(taus)]))
    dt0, eps = jnp.asarray(dt0, dtype), float(jnp.finfo(dtype).eps)
    max_dt = largest(taus) / eps  # a slower unit no longer moves, in the precision of the dtype
    rtol, atol = (eps ** (2 / 3),) * 2 if tol is None else (0.0, jnp.asarray(tol, dtype))

    def relax_sample(field, x0):
        control = descend_along(field, controller)
        flow_to_rest = FlowToRest(field, solver, control, dt0, max_dt, max_steps, rtol, atol)
        x, energy, attributes = settle(flow_to_rest, x0)
        return Relaxation(x, energy, **attributes)

    rest = problem.map(relax_sample)
    return rest, jnp.all(rest.converged)


def _solver_and_controller(field, solver, controller):
    """The solver and the controller, by default those of the flow; or an error."""
    if solver is None:
        implicit = diffrax.ImplicitEuler(root_finder=newton_krylov())
        solver = ETD2RK() if field.flow == "activation" else implicit
    if controller is None:
        adaptive = isinstance(solver, diffrax.AbstractAdaptiveSolver)
        loose = diffrax.PIDController(rtol=0.1, atol=0.1)
        controller = energy_descent(loose if adaptive else diffrax.ConstantStepSize(), field)
    problems.check_adaptive(solver, controller)
    inner = getattr(controller, "controller", controller)
    steps_to_times = diffrax.StepTo | diffrax.ClipStepSizeController
    if isinstance(controller, steps_to_times) or isinstance(inner, steps_to_times):
        raise ValueError("relax has no times to step to: expected constant steps or a PID.")
    return with_tolerances_of(controller, solver), controller


def _raise_if_unconverged(rest: Relaxation, arguments: ProblemArguments, max_steps: int):
    """`rest`, or an error if a sample did not converge."""
    unconverged = ~rest.converged
    diverged = jnp.any(unconverged & jnp.isinf(rest.residual))
    if isinstance(unconverged, Tracer):
        rest = eqx.error_if(rest, diverged, _DIVERGED)
        return eqx.error_if(rest, jnp.any(unconverged), _UNCONVERGED.format(details=""))
    if not jnp.any(unconverged):
        return rest
    if diverged:
        raise RuntimeError(_DIVERGED)
    # Under jax.jvp the values are known, but they carry tangents.
    model, _, flow, clamp, inputs = arguments
    field = EnergyFlow(model, flow, clamp, inputs)
    x, field = without_derivatives((rest.x, field))

    def speed(force):
        mask = unconverged.reshape(unconverged.shape + (1,) * (force.ndim - unconverged.ndim))
        return jnp.where(mask, jnp.abs(force), 0)

    speeds = jax.tree.map(speed, field.force(jnp.zeros(()), x))
    leaves = jax.tree_util.tree_leaves_with_path(speeds)
    path, slowest = max(leaves, key=lambda leaf: jnp.max(leaf[1], initial=0.0))
    index = jnp.unravel_index(jnp.argmax(slowest), slowest.shape)
    unit = f"x{jax.tree_util.keystr(path)}[{', '.join(map(str, index))}]"
    details = (
        f" {int(jnp.sum(unconverged))} of {unconverged.size} samples; the slowest unit is {unit} "
        f"with |τ dx/dt| = {float(jnp.max(slowest)):.3g} after {max_steps} steps and t = "
        f"{float(jnp.max(rest.time[unconverged])):.3g}."
    )
    raise RuntimeError(_UNCONVERGED.format(details=details))


_DIVERGED = (
    "relax came to no rest: dx/dt is NaN or leaves the range of the dtype, because x0, the inputs "
    "or the model's parameters do, or because the energy has no lower bound. With throw=False it "
    "returns what it reached."
)
_UNCONVERGED = (
    "relax ran out of steps before every unit came to rest.{details} Allow more max_steps or a "
    "larger tol; solve in float64; for stiff models try "
    "solver=diffrax.Kvaerno3(root_finder=hopfield_layers.newton_krylov()). With throw=False it "
    "returns what it reached."
)
