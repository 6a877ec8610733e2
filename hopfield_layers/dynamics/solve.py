"""Solutions of a model's flow, sample by sample."""

import math
from collections.abc import Callable
from typing import Any, Never, TypedDict, Unpack

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, PyTree, Real

from ..model import AbstractEnergyModel, Flow, StateLike
from . import problems
from .closures import closes_over_tracers
from .descent import descend_along, without_derivatives
from .flow import BoundedFlow, EnergyFlow, max_rate
from .inputs import grid_errors, Inputs, steps_to_inputs
from .problems import InitialValueProblem, ProblemArguments
from .replay import can_replay, Replay, replayed, saves_states
from .run_time_errors import Errors
from .straight_line import straight_line


class SolveOptions(TypedDict, total=False):
    """The keywords of `diffrax.diffeqsolve` that [`hopfield_layers.solve`][] passes on."""

    event: diffrax.Event | None
    adjoint: diffrax.AbstractAdjoint
    throw: bool
    progress_meter: diffrax.AbstractProgressMeter
    solver_state: PyTree | None
    controller_state: PyTree | None
    made_jump: bool | Bool[Array, ""] | None


def solve(
    model: AbstractEnergyModel,
    x0: StateLike,
    t1: Real[ArrayLike, "..."],
    *,
    t0: Real[ArrayLike, "..."] = 0.0,
    dt0: Real[ArrayLike, "..."] | None = None,
    flow: Flow = "state",
    clamp: StateLike | None = None,
    inputs: Inputs = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    saveat: diffrax.SaveAt | None = None,
    max_steps: int | None = 4096,
    batch_size: int | None = None,
    **options: Unpack[SolveOptions],
) -> diffrax.Solution:
    """Integrates τ dx/dt = −∂E/∂x, or −∂E/∂g, from x0 at t0 to t1.

    The first call compiles; others with the same shapes and other values (of x0, times, parameters,
    inputs, tolerances) do not. Functions are compared by identity: a new lambda compiles again.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or any [`hopfield_layers.AbstractEnergyModel`][].
    - `x0`: the state at t0, which is solved in float32 at least. Batch axes are allowed; each
        sample then has its own step sizes.
    - `t1`, `t0`: the end and the start, t1 > t0, in the units of τ.
    - `dt0`: the first step, by default the controller's choice; constant steps need it.
    - `flow`: `"state"` or `"activation"`, see [`hopfield_layers.EnergyFlow`][].
    - `clamp`: the units that keep their values: a tree of boolean masks that broadcast to x0.
    - `inputs`: the external input I, which broadcasts to x0. Or, where it changes in time, values
        on a grid of times, a `diffrax.LinearInterpolation` or a
        [`hopfield_layers.PiecewiseConstantInterpolation`][], whose `ys[j]` broadcasts to x0; or a
        function of t, or any other path of diffrax, for one sample. Steps end at the times of a
        grid and at those of [`hopfield_layers.InputsWithJumps`][], by which the solution can be
        differentiated too. Of any other function, and by `diffrax.StepTo`, a pulse may be stepped
        over. While I changes, the energy may rise.
    - `solver`: any diffrax solver of a single `ODETerm`. By default `diffrax.Tsit5()`.
    - `stepsize_controller`: any of diffrax, by default `PIDController(rtol=1e-5, atol=1e-7)`.
    - `saveat`: what to save. By default the end, `diffrax.SaveAt(t1=True)`.
    - `max_steps`: the most steps to take.
    - `batch_size`: the samples that are solved at a time, as in `jax.lax.map`; by default all. A
        batch takes as many steps as its slowest sample.
    - `options`: `event`, `adjoint`, `throw`, `progress_meter` and so on of `diffrax.diffeqsolve`.
        The default adjoint replays the steps where only the ends are saved, by the explicit and
        exponential solvers with one of diffrax's PID, constant and given steps, and where no input
        jumps; elsewhere it is diffrax's own default, `RecursiveCheckpointAdjoint`, which sums the
        derivative of a float16 or bfloat16 parameter in that dtype. Both are reverse mode only: for
        forward mode pass `diffrax.ForwardMode()`, and take second derivatives by
        `jax.jacfwd(jax.grad(...))`. Step sizes are not differentiated.

    **Returns:** the `diffrax.Solution`, whose arrays begin with the batch axes of x0.
    `model.energy(solution.ys)` is the energy along it.

    **Raises:** `ValueError` for t1 ≤ t0, for an x0 that is not finite, and for masks and inputs as
    [`hopfield_layers.EnergyFlow`][]; `equinox.EquinoxRuntimeError` for a state or rate beyond the
    range of the dtype, and for a solver that fails, for instance by running out of steps. Where an
    outer jit hides the values, all of these are an `equinox.EquinoxRuntimeError` at run time, in
    which `EQX_ON_ERROR=nan` in the environment gives NaN instead. A program for several devices
    can't raise errors, and has NaN as its results. `throw=False` suppresses all errors of values,
    so that the program calls nothing on the host, the call returns before the solution is there,
    and `jax.export` can export it; `Solution.result` tells of a solver that failed.

    A batch that is divided among devices stays so, and under `jax.shard_map` each device stops with
    its own samples. Meshes need automatic axes, or `jax.sharding.auto_axes`.

    Examples:
        >>> layer = hl.ExpLayer(3)
        >>> solution = hl.solve(layer, jnp.array([[0.5, -0.5, 1.0], [2.0, 0.0, -1.0]]), t1=100.0)
        >>> print(solution.ys.shape, jnp.allclose(layer.energy(solution.ys[:, -1]), -3.0))
        (2, 1, 3) True
    """
    problems.check_tools(solver, stepsize_controller, saveat)
    arguments = ProblemArguments(model, x0, flow, clamp, inputs).converted()
    dtype, batch_size = problems.solve_dtype(arguments.x0), problems.as_batch_size(batch_size)
    start, end, _ = times = [problems.as_scalar(number, dtype) for number in (t0, t1, dt0)]
    throw = options.pop("throw", True)
    tools = {"solver": solver, "controller": stepsize_controller, "saveat": saveat}
    tools = problems.with_array_floats(tools | {"options": options}, dtype)
    if throw:
        check_times(start, end)
    limits = {"max_steps": max_steps, "batch_size": batch_size, "throw": throw}
    solution, errors = _solve(arguments=arguments, times=times, **limits, **tools)
    if (message := errors.first) is not None:
        raise_first(message, arguments, start, end)
    return errors.raised_in(solution) if throw else solution


def raise_first(message: str, arguments: ProblemArguments, t0: Any, t1: Any) -> Never:
    """Raises the error of this message, with the numbers where they are known."""
    problems.raise_if_not_finite(arguments.x0)
    check_times(t0, t1)
    if message in grid_errors(arguments.inputs, jnp.asarray(t0), jnp.asarray(t1)):
        raise ValueError(message)
    raise eqx.EquinoxRuntimeError(message)


@problems.flat_jit
def _solve(arguments, times, max_steps, batch_size, throw, solver, controller, saveat, options):
    """The solution, and whether there are errors, by their messages."""
    problem = InitialValueProblem(arguments)
    t0, t1, dt0 = jax.tree.map(lambda t: jnp.asarray(t, problem.dtype), times)
    for name, number in {"t0": t0, "t1": t1, "dt0": dt0}.items():
        if number is not None and number.shape != ():
            raise ValueError(f"Expected {name} to be a number, got shape {number.shape}.")
    solver = straight_line(diffrax.Tsit5() if solver is None else solver)
    if controller is None:
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    controller = problems.in_dtype(controller, problem.dtype)
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    # In the dtype of the solve, which they would otherwise widen.
    saveat = with_times(saveat, lambda ts: ts.astype(problem.dtype))
    problems.check_adaptive(solver, controller)
    constant = isinstance(controller, diffrax.ConstantStepSize)
    if constant and dt0 is None:
        raise ValueError("Constant steps need their size, dt0.")
    errors = Errors.of({})
    if throw:
        errors = errors_at_start(problem, t0, t1, check_rates=not constant)
        # With an error there is nothing to solve, and no other error to find.
        is_wrong = errors.index >= 0
        t0, t1 = (jnp.where(is_wrong, 0, t) for t in (t0, t1))
        saveat = with_times(saveat, lambda ts: jnp.where(is_wrong, 0, ts))
    replays = set(options) <= {"progress_meter"}
    replays = replays and can_replay(solver, controller, saveat, max_steps, problem.field.inputs)
    replays = replays and not closes_over_tracers(problem.field, t0, problem.x0)
    if replays:
        options = options | {"adjoint": diffrax.ForwardMode()}
        # Also where they depend on what is differentiated, the sizes of the steps are constants.
        controller, dt0, options = without_derivatives((controller, dt0, options))
    options = options | {"max_steps": max_steps, "dt0": dt0, "solver": solver, "throw": False}
    run = eqx.Partial(_solve_samples, controller=controller, batch_size=batch_size, options=options)
    if replays:
        how = Replay(solver, _term_of(controller), saveat.subs.t0, saveat.subs.t1, max_steps)
        solution = replayed((problem, t0, t1), run, saveat, how)
    else:
        solution = run((problem, t0, t1), saveat)
    if throw:
        errors |= errors_at_end(solution, saveat, problem.dtype)
    return solution, errors


def _solve_samples(differentiated, saveat, *, controller, batch_size, options):
    """The solution of every sample."""
    problem, t0, t1 = differentiated
    term_of = _term_of(controller)
    # What an earlier solution ended with has the batch axes of its samples.
    names = {"solver_state", "controller_state", "made_jump"} & set(options)
    states, others = eqx.partition({name: options[name] for name in names}, eqx.is_array)

    def solve_sample(field, x0, states):
        control = steps_to_inputs(descend_along(field, controller), field.inputs)
        return diffrax.diffeqsolve(
            term_of(field),
            t0=t0,
            t1=t1,
            y0=x0,
            stepsize_controller=control,
            saveat=saveat,
            **options | eqx.combine(states, others),
        )

    return problem.map(solve_sample, states, batch_size=batch_size)


def _term_of(controller: diffrax.AbstractStepSizeController) -> Callable[..., diffrax.ODETerm]:
    """The term of a field; a controller that rejects steps needs finite rates."""
    if isinstance(controller, diffrax.ConstantStepSize):
        return diffrax.ODETerm
    return _bounded_term


def _bounded_term(field: EnergyFlow) -> diffrax.ODETerm:
    return diffrax.ODETerm(BoundedFlow(field))


def check_times(t0: Any, t1: Any) -> None:
    """Raises an error with the numbers if they are known not to be in order."""
    if isinstance(t0, Tracer) or isinstance(t1, Tracer):
        return
    if t0.shape == t1.shape == () and not -math.inf < float(t0) < float(t1) < math.inf:
        raise ValueError(f"{_NOT_IN_ORDER[:-1]}, got t0 = {t0} and t1 = {t1}.") from None


def errors_at_start(
    problem: InitialValueProblem, t0: Array, t1: Array, check_rates: bool
) -> Errors:
    """Whether x0, the times, or rates that are to be checked are out of range."""

    def is_beyond(x, rate):
        # At the clipped rate such a unit still crosses |x| within the rounding of t1 − t0.
        instantaneous = jnp.abs(x) < jnp.finfo(rate.dtype).eps * (t1 - t0) * max_rate(rate)
        return jnp.any(~((jnp.abs(rate) < max_rate(rate)) | instantaneous) | jnp.isnan(rate))

    def rates_are_beyond(field, x0):
        beyond = jax.tree.leaves(jax.tree.map(is_beyond, x0, field(t0, x0)))
        return jnp.any(jnp.array(beyond))

    errors = problems.not_finite_error(problem.x0)
    errors |= {_NOT_IN_ORDER: ~(jnp.isfinite(t0) & (t1 > t0) & jnp.isfinite(t1))}
    errors |= grid_errors(problem.field.inputs, t0, t1)
    if check_rates:
        errors[_BEYOND.format(dtype=t0.dtype)] = jnp.any(problem.map(rates_are_beyond))
    return Errors.of(errors)


def errors_at_end(solution: diffrax.Solution, saveat: diffrax.SaveAt, dtype: DTypeLike) -> Errors:
    """Whether a solver failed, or a state that was saved is not finite, in any sample."""

    def is_beyond(sub, ts, ys):
        if not saves_states(sub):
            return False
        # Room for steps that were not taken is infinite in both.
        finite = [jnp.isfinite(y).all(tuple(range(ts.ndim, y.ndim))) for y in jax.tree.leaves(ys)]
        return jnp.any(jnp.isfinite(ts) & ~jnp.array(finite))

    results = jnp.where(diffrax.is_okay(solution.result), -1, solution.result._value)
    errors = Errors(tuple(diffrax.RESULTS._index_to_message), jnp.max(results, initial=-1))
    beyond = jax.tree.map(is_beyond, saveat.subs, solution.ts, solution.ys, is_leaf=_is_sub)
    beyond = jnp.any(jnp.array(jax.tree.leaves(beyond)))
    return errors | Errors.of({_BEYOND.format(dtype=dtype): beyond})


def times_of(saveat: diffrax.SaveAt) -> list[Array]:
    """The times at which `saveat` saves."""
    subs = jax.tree.leaves(saveat.subs, is_leaf=_is_sub)
    return [sub.ts for sub in subs if sub.ts is not None and sub.ts.size > 0]


def with_times(saveat: diffrax.SaveAt, fn: Callable[[Array], Array]) -> diffrax.SaveAt:
    """`saveat` with `fn` of its times."""

    def convert(sub):
        return sub if sub.ts is None else eqx.tree_at(lambda s: s.ts, sub, fn(sub.ts))

    subs = jax.tree.map(convert, saveat.subs, is_leaf=_is_sub)
    return eqx.tree_at(lambda s: s.subs, saveat, subs, is_leaf=lambda x: x is None)


def _is_sub(node: object) -> bool:
    return isinstance(node, diffrax.SubSaveAt)


_NOT_IN_ORDER = "Expected finite times with t1 > t0."
_BEYOND = (
    "x or dx/dt left the range of {dtype}, or the inputs or the model's parameters are NaN. Start "
    'nearer to the bias, take smaller steps, follow flow="activation", or solve in float64 '
    '(jax.config.update("jax_enable_x64", True)).'
)
