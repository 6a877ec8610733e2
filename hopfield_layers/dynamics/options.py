"""Checks of options: limits, and what is taken from diffrax."""

import operator
import typing
from collections.abc import Mapping
from typing import SupportsIndex

import diffrax


def as_count(name: str, number: SupportsIndex) -> int:
    """A number of steps or samples, or an error."""
    try:
        count = operator.index(number)
    except TypeError as error:
        message = f"Expected {name} to be a number, 4096 for instance, got {number!r}."
        raise TypeError(message) from error
    if count < 1:
        raise ValueError(f"Expected {name} of 1 at least, got {count}.")
    return count


def as_limits(**numbers: SupportsIndex | None) -> dict[str, int | None]:
    """`as_count` of each, where None is no limit."""
    return {name: n if n is None else as_count(name, n) for name, n in numbers.items()}


def check_tools(solver: object, controller: object, saveat: object = None) -> None:
    """Raises an error unless each is None or one of diffrax's, and the solver is one for ODEs."""
    controllers = diffrax.AbstractStepSizeController
    example = "a step size controller of diffrax, diffrax.PIDController(rtol=1e-5, atol=1e-7)"
    for tool, kind, expected in (
        (controller, controllers, example),
        (solver, diffrax.AbstractSolver, "a solver of diffrax, diffrax.Tsit5()"),
        (saveat, diffrax.SaveAt, "saveat to be a diffrax.SaveAt, diffrax.SaveAt(ts=...)"),
    ):
        if tool is not None and not isinstance(tool, kind):
            raise TypeError(f"Expected {expected} for instance, got {tool!r}.")
    if solver is None:
        return
    terms = getattr(solver, "term_structure", diffrax.AbstractTerm)
    terms = typing.get_origin(terms) or terms
    if isinstance(terms, type) and not issubclass(terms, diffrax.MultiTerm):
        return
    if isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver):
        raise ValueError(
            f"{type(solver).__name__} solves stochastic differential equations, and the flow is an "
            "ODE. With noise, call hopfield_layers.langevin, or for noise of another kind "
            "diffrax.diffeqsolve with diffrax.MultiTerm(diffrax.ODETerm(EnergyFlow(model)), "
            "diffrax.ControlTerm(...))."
        )
    raise ValueError(f"Expected a solver of a single ODETerm, got {type(solver).__name__}.")


def check_adaptive(solver: diffrax.AbstractSolver, controller: object) -> None:
    """Raises an error unless the solver has the error estimate that the controller needs."""
    adapts = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    if adapts and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} has no error estimate to adapt its steps by: pass "
            "stepsize_controller=diffrax.ConstantStepSize() and dt0."
        )


_OPTIONS = {
    "adjoint": diffrax.AbstractAdjoint,
    "event": diffrax.Event,
    "progress_meter": diffrax.AbstractProgressMeter,
}


def check_options(options: Mapping[str, object]) -> None:
    """Raises an error unless these keywords of `diffrax.diffeqsolve` are what they should be."""
    for name, option in options.items():
        kind = _OPTIONS.get(name, object)
        if not isinstance(option, kind) and (name, option) != ("event", None):
            raise TypeError(f"Expected {name} to be a diffrax.{kind.__name__}, got {option!r}.")
