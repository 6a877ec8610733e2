"""The state flow at finite temperature."""

import functools as ft
import math
from typing import Any, Unpack

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray, PyTree, Real

from ..model import AbstractEnergyModel, StateLike
from . import problems
from .flow import EnergyFlow, time_constants
from .inputs import Inputs
from .noise import Noise, StepsOfGivenSize
from .options import as_limits, check_options, check_tools
from .problems import InitialValueProblem, ProblemArguments
from .run_time_errors import Errors, known_error, raised_in
from .solve import SolveOptions, states_of_samples
from .solve_errors import (
    check_times,
    errors_at_end,
    errors_at_start,
    raise_first,
    time_errors,
    times_of,
    with_times,
)


def langevin(
    model: AbstractEnergyModel,
    x0: StateLike,
    t1: Real[ArrayLike, "..."],
    temperature: Real[ArrayLike, "..."],
    key: PRNGKeyArray,
    *,
    t0: Real[ArrayLike, "..."] = 0.0,
    dt0: Real[ArrayLike, "..."] | None = None,
    clamp: StateLike | None = None,
    inputs: Inputs = None,
    solver: diffrax.AbstractSolver | None = None,
    saveat: diffrax.SaveAt | None = None,
    max_steps: int | None = 4096,
    batch_size: int | None = None,
    **options: Unpack[SolveOptions],
) -> diffrax.Solution:
    """Integrates τ dx = −(∂E/∂x) dt + √(2Tτ) dW from x0 at t0 to t1, in constant steps.

    Each unit has noise of its own. The states at late times are samples of the density
    exp(−E(x)/T)/Z, whatever τ is, where Z is finite: where E grows fast enough with |x|, as that of
    identity, cosh and power layers does, also with synapses whose energy is bounded or grows more
    slowly. Tanh, sigmoid, softmax, ReLU, RePU, exponential and normalizing layers have an energy
    that is bounded on a part of their states without end, and no such density: x wanders off for
    ever, although its activations may look at rest. With T = 0 this is the state flow of
    [`hopfield_layers.solve`][].

    **Arguments:**

    - `model`, `x0`, `t1`, `t0`: as for [`hopfield_layers.solve`][].
    - `temperature`: T ≥ 0, one number in the units of the energy.
    - `key`: a key of `jax.random`. Each sample of a batch draws noise of its own from it, by its
        place in the batch alone. Under `jax.shard_map`, where each device has a batch of its own,
        give each device another key: `jax.random.fold_in(key, jax.lax.axis_index("devices"))`.
    - `dt0`: the step, in the units of t. By default a twentieth of the smallest τ. The error of
        moments is proportional to dt0² with the default solver; narrow valleys of the energy need
        smaller steps. Another dt0 draws other noise.
    - `clamp`: the units that keep their values, which get no noise.
    - `inputs`: the external input I, as for [`hopfield_layers.solve`][].
    - `solver`: a diffrax solver of stochastic differential equations, of Itô's or Stratonovich's
        kind, which agree here. By default `diffrax.Heun()`.
    - `saveat`: what to save, by default the end. Steps end at the times `ts`, so that no state
        that is saved is interpolated; what `dense=True` interpolates between steps varies less.
    - `max_steps`: the most steps to take. Times in `saveat` and jumps of the inputs add steps.
    - `batch_size`, `options`: as for [`hopfield_layers.solve`][]. Derivatives are those of the
        steps, for the same noise and steps of the same size, by diffrax's default adjoint
        `RecursiveCheckpointAdjoint`. That by the temperature is 0 at T = 0, where it is infinite.

    **Returns:** the `diffrax.Solution`, whose arrays begin with the batch axes of x0.

    **Raises:** `ValueError` for T < 0, dt0 ≤ 0 and a solver of another kind, `TypeError` for
    something that is no key, and errors as [`hopfield_layers.solve`][] does. A step that is too
    long for a steep energy ends in one, beyond the range of the dtype.

    Source: Heun's method for additive noise: Kloeden & Platen, "Numerical solution of stochastic
    differential equations" (Springer 1992), chapter 15.

    Examples:
        >>> layer = hl.IdentityLayer(1000, tau=2.0)  # E = Σ x²/2: Gaussian units of variance T
        >>> samples = hl.langevin(layer, jnp.zeros(1000), 20.0, 0.25, jax.random.key(0)).ys
        >>> print(samples.shape, bool(abs(jnp.var(samples) - 0.25) < 0.05))
        (1, 1000) True
    """
    solver = diffrax.Heun() if solver is None else solver
    _check_solver(solver)
    check_tools(None, None, saveat)
    check_options(options)
    limits = as_limits(max_steps=max_steps, batch_size=batch_size)
    key = _checked_key(key)
    arguments = ProblemArguments(model, x0, "state", clamp, inputs).converted()
    dtype = problems.solve_dtype(arguments.x0)
    numbers = {"t0": t0, "t1": t1, "temperature": temperature}
    numbers |= {} if dt0 is None else {"dt0": dt0}
    numbers = {name: problems.as_scalar(value, dtype, name) for name, value in numbers.items()}
    throw = options.pop("throw", True)
    if throw:
        check_times(numbers["t0"], numbers["t1"])
        _check_numbers(numbers)
    tools = {"solver": solver, "saveat": saveat, "options": options}
    tools = problems.with_array_floats(tools, dtype)
    limits = limits | {"throw": throw}
    solution, errors = _langevin(arguments=arguments, numbers=numbers, key=key, **limits, **tools)
    if (message := known_error(errors)) is not None:
        _check_numbers(numbers)
        raise_first(message, arguments, numbers["t0"], numbers["t1"])
    return raised_in(errors, solution) if throw else solution


@problems.flat_jit
def _langevin(arguments, numbers, key, max_steps, batch_size, throw, solver, saveat, options):
    """The solution, and whether there are errors, by their messages."""
    problem = InitialValueProblem(arguments)
    if "dt0" not in numbers:
        taus = jax.tree.leaves(time_constants(problem.field.model, problem.x0))
        numbers = numbers | {"dt0": jnp.min(jnp.array([jnp.min(tau) for tau in taus])) / 20}
    numbers = {name: jnp.asarray(number, problem.dtype) for name, number in numbers.items()}
    # The sizes of the steps are not differentiated.
    numbers["dt0"] = jax.lax.stop_gradient(numbers["dt0"])
    t0, t1, dt0, temperature = (numbers[name] for name in ("t0", "t1", "dt0", "temperature"))
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    saveat = with_times(saveat, lambda ts: ts.astype(problem.dtype))
    errors = Errors.of({})
    if throw:
        errors = Errors.of(time_errors(saveat, None, t0, t1, None))
        errors |= errors_at_start(problem, t0, t1, check_rates=False)
        in_range = (dt0 > 0) & (dt0 < jnp.inf), (temperature >= 0) & (temperature < jnp.inf)
        errors |= Errors.of({_NO_STEP: ~in_range[0], _NO_TEMPERATURE: ~in_range[1]})
        is_wrong = errors.index >= 0  # then there is nothing to solve
        t0, t1 = (jnp.where(is_wrong, 0, t) for t in (t0, t1))
        saveat = with_times(saveat, lambda ts: jnp.where(is_wrong, 0, ts))
    controller = StepsOfGivenSize.to(times_of(saveat), problem.field.inputs, dt0)
    options = options | {"max_steps": max_steps, "saveat": saveat, "throw": False}
    states, others = states_of_samples(options)

    def solve_sample(field, x0, key_data, states):
        noise = Noise.of(solver, x0, jax.random.wrap_key_data(key_data, impl=implementation))
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(field), diffrax.ControlTerm(Spread(field, temperature), noise)
        )
        how = options | eqx.combine(states, others)
        how |= {"dt0": None, "stepsize_controller": controller}
        return diffrax.diffeqsolve(terms, solver, t0=t0, t1=t1, y0=x0, **how)

    implementation = jax.random.key_impl(key)
    keys = jax.vmap(ft.partial(jax.random.fold_in, key))(jnp.arange(math.prod(problem.batch)))
    key_data = jax.random.key_data(keys.reshape(problem.batch))
    solution = problem.map(solve_sample, key_data, states, batch_size=batch_size)
    if throw:
        errors |= errors_at_end(solution, saveat, problem.dtype)
    return solution, errors


class Spread(eqx.Module):
    """√(2T/τ) of each unit, and 0 of clamped ones, as a diagonal operator on dW."""

    field: EnergyFlow
    temperature: Real[ArrayLike, ""]

    def __call__(
        self, t: Real[ArrayLike, ""], x: PyTree, args: PyTree
    ) -> lx.AbstractLinearOperator:
        def of_units(x, tau):
            ratio = 2 * self.temperature / tau
            # The derivative of the root at 0 is infinite; here it is 0.
            root = jnp.where(ratio == 0, 0, jnp.sqrt(jnp.where(ratio == 0, 1, ratio)))
            return jnp.broadcast_to(root, x.shape)

        spread = jax.tree.map(of_units, x, time_constants(self.field.model, x))
        return lx.DiagonalLinearOperator(self.field.unless_held(x, spread))


def _check_solver(solver: object) -> None:
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"Expected a solver of diffrax, diffrax.Heun() for instance, got {solver}.")
    kinds = diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver
    is_underdamped = isinstance(solver, diffrax.AbstractFosterLangevinSRK)
    if is_underdamped or not isinstance(solver, kinds):
        raise ValueError(
            "Expected a solver of stochastic differential equations of first order, diffrax.Heun() "
            f"for instance, got {type(solver).__name__}."
        )


def _checked_key(key: Any) -> PRNGKeyArray:
    """The key in the form of `jax.random.key`."""
    try:
        is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        key = key if is_typed else jax.random.wrap_key_data(key)
    except (AttributeError, TypeError, ValueError) as error:
        message = f"Expected a key of jax.random, jax.random.key(0) for instance, got {key!r}."
        raise TypeError(message) from error
    if key.shape != ():
        raise ValueError(f"Expected one key, which serves all samples, got shape {key.shape}.")
    return key


def _check_numbers(numbers: dict[str, Any]) -> None:
    """Raises an error with the number if it is known to be out of range."""
    for name, message in (("temperature", _NO_TEMPERATURE), ("dt0", _NO_STEP)):
        number = numbers.get(name)
        if number is None or isinstance(number, Tracer):
            continue
        lowest = 0.0 if name == "temperature" else math.nextafter(0.0, 1.0)
        if not lowest <= float(number) < math.inf:
            raise ValueError(f"{message[:-1]}, got {number}.") from None


_NO_TEMPERATURE = "Expected a finite temperature ≥ 0."
_NO_STEP = "Expected a finite dt0 > 0."
