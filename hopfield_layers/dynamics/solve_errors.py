"""What may be wrong with the times of a solution, its start and its end."""

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NoReturn

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from .._trees import is_none
from . import problems
from .descent import is_descent
from .flow import max_rate
from .inputs import grid_errors
from .problems import InitialValueProblem, ProblemArguments
from .replay import saves_states
from .run_time_errors import Errors


def raise_first(message: str, arguments: ProblemArguments, t0: Any, t1: Any) -> NoReturn:
    """Raises the error of this message, with the numbers where they are known."""
    problems.raise_if_not_finite(arguments.x0)
    check_times(t0, t1)
    grids = grid_errors(arguments.inputs, jnp.asarray(t0), jnp.asarray(t1))
    if message in _WRONG_TIMES or message in grids:
        raise ValueError(message)
    raise eqx.EquinoxRuntimeError(message)


def check_times(t0: Any, t1: Any) -> None:
    """Raises an error with the numbers if they are known not to be in order."""
    if isinstance(t0, Tracer) or isinstance(t1, Tracer):
        return
    if (
        not -math.inf < np.asarray(t0).item() < np.asarray(t1).item() < math.inf
    ):  # faster than float
        raise ValueError(f"{_NOT_IN_ORDER[:-1]}, got t0 = {t0} and t1 = {t1}.") from None


def time_errors(
    saveat: diffrax.SaveAt,
    controller: diffrax.AbstractStepSizeController | None,
    t0: Array,
    t1: Array,
    dt0: Array | None,
) -> dict[str, Bool[Array, ""]]:
    """Whether the times are out of order."""
    errors = {_NOT_IN_ORDER: ~(jnp.isfinite(t0) & (t1 > t0) & jnp.isfinite(t1))}
    if dt0 is not None:
        errors[_WRONG_STEP] = ~(dt0 > 0)
    if times := times_of(saveat):
        within = [jnp.all((ts >= t0) & (ts <= t1)) & jnp.all(jnp.diff(ts) >= 0) for ts in times]
        errors[_WRONG_SAVEAT] = ~jnp.all(jnp.array(within))
    if (ts := step_times(controller)) is not None:
        errors[_WRONG_STEPS] = ~(jnp.all(jnp.diff(ts) > 0) & (ts[0] == t0) & (ts[-1] == t1))
    return errors


def step_times(controller: Any) -> Any:
    """The times of a `StepTo`, also inside an `energy_descent`, or None."""
    inner = controller.controller if is_descent(controller) else controller
    return inner.ts if isinstance(inner, diffrax.StepTo) else None


def errors_at_start(
    problem: InitialValueProblem, t0: Array, t1: Array, check_rates: bool
) -> Errors:
    """Whether x0, a grid of inputs, or rates that are to be checked are out of range."""

    def is_beyond(x, rate):
        # At the clipped rate such a unit still crosses |x| within the rounding of t1 − t0.
        instantaneous = jnp.abs(x) < jnp.finfo(rate.dtype).eps * (t1 - t0) * max_rate(rate)
        return jnp.any(~((jnp.abs(rate) < max_rate(rate)) | instantaneous) | jnp.isnan(rate))

    def rates_are_beyond(field, x0):
        beyond = jax.tree.leaves(jax.tree.map(is_beyond, x0, field(t0, x0)))
        return jnp.any(jnp.array(beyond))

    errors = problems.start_errors(problem)
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
        return sub if sub.ts is None else eqx.tree_at(attrgetter("ts"), sub, fn(sub.ts))

    subs = jax.tree.map(convert, saveat.subs, is_leaf=_is_sub)
    return eqx.tree_at(attrgetter("subs"), saveat, subs, is_leaf=is_none)


def _is_sub(node: object) -> bool:
    return isinstance(node, diffrax.SubSaveAt)


_NOT_IN_ORDER = "Expected finite times with t1 > t0."
_WRONG_STEP = "Expected dt0 > 0."
_WRONG_SAVEAT = "Expected times ts of SaveAt that increase, from t0 to t1 at most."
_WRONG_STEPS = "Expected times ts of StepTo that increase, from ts[0] = t0 to ts[-1] = t1."
_WRONG_TIMES = (_NOT_IN_ORDER, _WRONG_STEP, _WRONG_SAVEAT, _WRONG_STEPS)
_BEYOND = (
    "x or dx/dt left the range of {dtype}, or the inputs or the model's parameters are NaN. Start "
    'nearer to the bias, take smaller steps, follow flow="activation", or solve in float64 '
    '(jax.config.update("jax_enable_x64", True)).'
)
