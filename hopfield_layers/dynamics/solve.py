"""Solutions of a model's flow, sample by sample."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree, Real

from ..model import AbstractEnergyModel, Flow, StateLike
from . import problems
from .closures import closes_over_tracers
from .descent import descend_along
from .flow import BoundedFlow, EnergyFlow
from .inputs import Inputs, steps_to_inputs
from .options import as_limits, check_adaptive, check_options, check_tools
from .problems import InitialValueProblem, ProblemArguments
from .replay import can_replay, Replay, replayed
from .run_time_errors import Errors, known_error, raised_in
from .solve_errors import (
    check_times,
    errors_at_end,
    errors_at_start,
    raise_first,
    step_times,
    time_errors,
    with_times,
)
from .state_trees import without_derivatives
from .straight_line import straight_line
from .while_loop import LastSamplesApart


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
    - `x0`: the state at t0, which is converted to float32 if it is narrower. With batch axes
        each sample has its own step sizes.
    - `t1`, `t0`: the end and the start, t1 > t0, in the units of τ.
    - `dt0`: the first step, by default the controller's choice; constant steps need it.
    - `flow`: `"state"` or `"activation"`, see [`hopfield_layers.EnergyFlow`][].
    - `clamp`: the units that keep their values: a tree of boolean masks that broadcast to x0.
    - `inputs`: the external input I, which broadcasts to x0. Or, where it changes in time, values
        on a grid of times, a `diffrax.LinearInterpolation` or a
        [`hopfield_layers.PiecewiseConstantInterpolation`][], whose `ys[j]` broadcasts to x0; or a
        function of t, or any other path of diffrax, for one sample. Steps end at the times of a
        grid and at those of [`hopfield_layers.InputsWithJumps`][], by which the solution can be
        differentiated too. With any other function, and with `diffrax.StepTo`, a pulse may be
        stepped over. While I changes, the energy may rise.
    - `solver`: any diffrax solver of a single `ODETerm`. By default `diffrax.Tsit5()`.
    - `stepsize_controller`: any of diffrax, by default `PIDController(rtol=1e-5, atol=1e-7)`.
    - `saveat`: what to save. By default the end, `diffrax.SaveAt(t1=True)`.
    - `max_steps`: the largest number of steps, or None for no limit.
    - `batch_size`: the samples that are solved at a time, as in `jax.lax.map`; by default all. A
        batch takes as many steps as its slowest sample. Of a `batch_size` of 64 or more the last
        eighth goes on without the others, if only ends are saved and on one device; its program
        takes up to twice as long to compile.
    - `options`: `event`, `adjoint`, `throw`, `progress_meter` and so on of `diffrax.diffeqsolve`.
        The default adjoint replays the steps where only the ends are saved, by the explicit and
        exponential solvers with one of diffrax's PID, constant and given steps, and where no input
        jumps; elsewhere it is diffrax's own default, `RecursiveCheckpointAdjoint`, which sums the
        derivative of a float16 or bfloat16 parameter in that dtype. Both are reverse mode only: for
        forward mode pass `diffrax.ForwardMode()`, and take second derivatives by
        `jax.jacfwd(jax.grad(...))`. Step sizes are not differentiated.

    **Returns:** the `diffrax.Solution`, whose arrays begin with the batch axes of x0.
    `model.energy(solution.ys)` is the energy along it.

    **Raises:** `ValueError` for times out of order, for an x0 that is not finite, and for masks and
    inputs as [`hopfield_layers.EnergyFlow`][]; `equinox.EquinoxRuntimeError` for a state or rate
    beyond the range of the dtype, and for a solver that fails, for instance by running out of
    steps. Where an outer jit hides the values, all of these are an `equinox.EquinoxRuntimeError` at
    run time; with `EQX_ON_ERROR=nan` in the environment the result is NaN instead. A program for
    several devices can't raise errors, and its results are NaN. `throw=False` suppresses all
    errors of values, so that the program calls nothing on the host, the call returns before the
    solution is there, and `jax.export` can export it; `Solution.result` says whether the solver
    failed. Only the checks of dt0, `diffrax.SaveAt(ts=...)` and `diffrax.StepTo` are diffrax's own,
    and remain; with `EQX_ON_ERROR=off` in the environment such a program can be exported too.

    A batch that is divided among devices stays divided, and under `jax.shard_map` each device stops
    with its own samples. Meshes need automatic axes, or `jax.sharding.auto_axes`.

    Examples:
        >>> layer = hl.ExpLayer(3)
        >>> solution = hl.solve(layer, jnp.array([[0.5, -0.5, 1.0], [2.0, 0.0, -1.0]]), t1=100.0)
        >>> print(solution.ys.shape, jnp.allclose(layer.energy(solution.ys[:, -1]), -3.0))
        (2, 1, 3) True
    """
    check_tools(solver, stepsize_controller, saveat)
    check_options(options)
    limits = as_limits(max_steps=max_steps, batch_size=batch_size)
    arguments = ProblemArguments(model, x0, flow, clamp, inputs).converted()
    dtype = problems.solve_dtype(arguments.x0)
    numbers = {"t0": t0, "t1": t1} | ({} if dt0 is None else {"dt0": dt0})
    times = {name: problems.as_scalar(value, dtype, name) for name, value in numbers.items()}
    start, end = times["t0"], times["t1"]
    throw = options.pop("throw", True)
    tools = {"solver": solver, "controller": stepsize_controller, "saveat": saveat}
    tools = problems.with_array_floats(tools | {"options": options}, dtype)
    if throw:
        check_times(start, end)
    solution, errors = _solve(arguments=arguments, times=times, throw=throw, **limits, **tools)
    if (message := known_error(errors)) is not None:
        raise_first(message, arguments, start, end)
    return raised_in(errors, solution) if throw else solution


@problems.flat_jit
def _solve(arguments, times, max_steps, batch_size, throw, solver, controller, saveat, options):
    """The solution, and whether there are errors, by their messages."""
    problem = InitialValueProblem(arguments)
    times = {name: jnp.asarray(t, problem.dtype) for name, t in times.items()}
    t0, t1, dt0 = times["t0"], times["t1"], times.get("dt0")
    solver = straight_line(diffrax.Tsit5() if solver is None else solver)
    if controller is None:
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    controller = problems.in_dtype(controller, problem.dtype)
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    # In the dtype of the solve, which they would otherwise widen.
    saveat = with_times(saveat, lambda ts: ts.astype(problem.dtype))
    check_adaptive(solver, controller)
    constant = isinstance(controller, diffrax.ConstantStepSize)
    if constant and dt0 is None:
        raise ValueError("Constant steps need their size, dt0.")
    errors = Errors.of({})
    if throw:
        errors = Errors.of(time_errors(saveat, controller, t0, t1, dt0))
        errors |= errors_at_start(problem, t0, t1, check_rates=not constant)
        # With an error there is nothing to solve, and no other error to find, by diffrax either.
        is_wrong = errors.index >= 0
        saveat = with_times(saveat, lambda ts: jnp.where(is_wrong, 0, ts))
        dt0 = None if dt0 is None else jnp.where(is_wrong, 1, dt0)
        t0, t1 = (jnp.where(is_wrong, 0, t) for t in (t0, t1))
        if (ts := step_times(controller)) is not None:
            ts = jnp.where(is_wrong, jnp.linspace(0, 1, len(ts), dtype=ts.dtype), ts)
            controller, t1 = eqx.tree_at(step_times, controller, ts), jnp.where(is_wrong, 1, t1)
    replays = set(options) <= {"progress_meter"}
    replays = replays and can_replay(solver, controller, saveat, max_steps, problem.field.inputs)
    replays = replays and not closes_over_tracers(problem.field, t0, problem.x0)
    # Also where they depend on what is differentiated, the sizes of the steps are constants.
    controller, dt0 = without_derivatives((controller, dt0))
    if replays:
        options = without_derivatives(options) | {"adjoint": diffrax.ForwardMode()}
    options = options | {"max_steps": max_steps, "dt0": dt0, "solver": solver, "throw": False}
    limits = {"batch_size": batch_size, "replays": replays}
    run = eqx.Partial(_solve_samples, controller=controller, options=options, **limits)
    if replays:
        how = Replay(solver, _term_of(controller), saveat.subs.t0, saveat.subs.t1, max_steps)
        solution = replayed((problem, t0, t1), run, saveat, how)
    else:
        solution = run((problem, t0, t1), saveat)
    if throw:
        errors |= errors_at_end(solution, saveat, problem.dtype)
    return solution, errors


def _solve_samples(differentiated, saveat, *, controller, batch_size, replays, options):
    """The solution of every sample."""
    if replays and batch_size is not None and isinstance(saveat.subs, diffrax.SubSaveAt):
        options = options | {"adjoint": LastSamplesApart()}
    problem, t0, t1 = differentiated
    term_of = _term_of(controller)
    states, others = states_of_samples(options)

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


def states_of_samples(options: Mapping[str, Any]) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """The arrays of the options that an earlier solution returned, and all else in these options.

    These arrays have the batch axes of the samples.
    """
    names = {"solver_state", "controller_state", "made_jump"} & set(options)
    return eqx.partition({name: options[name] for name in names}, eqx.is_array)


def _term_of(controller: diffrax.AbstractStepSizeController) -> Callable[..., diffrax.ODETerm]:
    """The term of a field; a controller that rejects steps needs finite rates."""
    if isinstance(controller, diffrax.ConstantStepSize):
        return diffrax.ODETerm
    return _bounded_term


def _bounded_term(field: EnergyFlow) -> diffrax.ODETerm:
    return diffrax.ODETerm(BoundedFlow(field))
