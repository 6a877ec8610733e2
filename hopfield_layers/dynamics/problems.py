"""An initial value problem: a flow and the states it starts from, sample by sample."""

import functools as ft
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, PyTree

from .._conversion import as_float
from ..model import AbstractEnergyModel, AnyArray, Flow, StateLike
from .flow import EnergyFlow, Inputs
from .state_trees import Clamp, like_state


_T = TypeVar("_T")


def flat_jit(fn: Callable[..., _T]) -> Callable[..., _T]:
    """`equinox.filter_jit` of a function that is called with all its arguments by name.

    `filter_jit` binds every argument to the signature and rebuilds every module of the result, in
    Python and at each call. One tuple in and a list of leaves out pass in two thirds of that time.
    """
    names = tuple(inspect.signature(fn).parameters)

    @eqx.filter_jit
    def compiled(arguments):
        return jax.tree.flatten(fn(**dict(zip(names, arguments, strict=True))))

    @ft.wraps(fn)
    def call(**arguments):
        leaves, structure = compiled(tuple([arguments[name] for name in names]))
        return structure.unflatten(leaves)

    return call


class ProblemArguments(NamedTuple):
    """The arguments of `solve` and `relax` that define x(t)."""

    model: AbstractEnergyModel
    x0: StateLike
    flow: Flow
    clamp: StateLike | Clamp | None
    inputs: Inputs

    def converted(self) -> "ProblemArguments":
        """The arguments as a compiled program takes them.

        Numbers become arrays, so that other numbers don't compile anew, and the clamp is checked
        while its values are known.
        """
        x0, clamp, inputs = _as_arrays(self.x0), self.clamp, self.inputs
        if callable(inputs):
            inputs = with_array_floats(inputs, solve_dtype(x0))
        elif inputs is not None:
            inputs = _as_arrays(inputs)
        if clamp is not None:
            EnergyFlow(self.model, self.flow)  # which checks the model and the flow first
            with jax.ensure_compile_time_eval():
                masks = like_state(x0, clamp, "clamp")
            clamp = Clamp(self.model, self.flow, masks)
        return self._replace(x0=x0, clamp=clamp, inputs=inputs)


class InitialValueProblem(eqx.Module):
    """A flow and an x0 that fit each other, which is checked when a program is traced.

    All arrays of x0 have one dtype, float32 or float64, in which the problem is solved. The clamp,
    and the inputs unless they are a function of t, have the shapes of x0. The batch axes are those
    of the model's energy.
    """

    field: EnergyFlow
    x0: PyTree[Array]
    batch: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, arguments: ProblemArguments):
        """The problem of arguments that are converted."""
        model, x0, flow, clamp, inputs = arguments
        self.dtype = solve_dtype(x0)
        self.x0 = jax.tree.map(lambda x: as_float(x).astype(self.dtype), x0)
        if inputs is not None and not callable(inputs):
            inputs = like_state(self.x0, inputs, "inputs")
        self.field = EnergyFlow(model, flow, clamp, inputs)
        structure = jax.tree.structure(x0)
        try:
            g = jax.tree.structure(jax.eval_shape(model.activations, self.x0))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Expected a state of the model, got {structure}: {error}") from error
        if g != structure:
            raise ValueError(f"Expected a state of the structure {g}, got {structure}.")
        self.batch = jax.eval_shape(model.energy, self.x0).shape

    def map(self, solve: Callable[[EnergyFlow, PyTree[Array]], _T]) -> _T:
        """`solve(field, x0)` of every sample: the batch axes lead those of the result.

        A batch without samples gives the same structure, dtypes and shapes.
        """
        field, inputs, shared = self.field, self.field.inputs, None
        if callable(inputs):  # a function of t is the same for all samples
            inputs, shared = None, inputs

        def sample(clamp, inputs, x0):
            inputs = shared if inputs is None else inputs
            return solve(EnergyFlow(field.model, field.flow, clamp, inputs), x0)

        def zeros(batch, x):
            if not hasattr(x, "shape"):
                return x
            return jnp.zeros(batch + x.shape[len(self.batch) :], x.dtype)

        for _ in self.batch:
            sample = eqx.filter_vmap(sample)
        arguments = (field.clamp, inputs, self.x0)
        if 0 not in self.batch:
            return sample(*arguments)
        one = jax.tree.map(ft.partial(zeros, (1,) * len(self.batch)), arguments)
        return jax.tree.map(ft.partial(zeros, self.batch), eqx.filter_eval_shape(sample, *one))


def _as_arrays(tree: StateLike) -> PyTree[AnyArray]:
    leaves, structure = jax.tree.flatten(tree)  # `jax.tree.map` takes several times as long
    return structure.unflatten([x if isinstance(x, AnyArray) else as_float(x) for x in leaves])


def solve_dtype(x0: PyTree[AnyArray]) -> np.dtype:
    """float64 if a float of the state has it, or if integers become such, and float32 otherwise."""

    def is_double(x):
        return x.dtype == np.float64 or not jnp.issubdtype(x.dtype, jnp.inexact)

    leaves = jax.tree.leaves(x0)
    if not leaves:
        raise ValueError(f"Expected a state of one array at least, got {x0}.")
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    double = x64 and any(map(is_double, leaves))
    return np.dtype(np.float64 if double else np.float32)


def check_tools(solver: object, controller: object) -> None:
    """Raises an error unless these are a solver of ODEs and a controller of diffrax, or None."""
    if not isinstance(controller, diffrax.AbstractStepSizeController | None):
        raise TypeError(
            "Expected a step size controller of diffrax, diffrax.PIDController(rtol=1e-5, "
            f"atol=1e-7) for instance, got {controller!r}."
        )
    if not isinstance(solver, diffrax.AbstractSolver | None):
        raise TypeError(
            f"Expected a solver of diffrax, diffrax.Tsit5() for instance, got {solver!r}."
        )
    terms = getattr(solver, "term_structure", diffrax.AbstractTerm)
    terms = typing.get_origin(terms) or terms
    if isinstance(terms, type) and not issubclass(terms, diffrax.MultiTerm):
        return
    if isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver):
        raise ValueError(
            f"{type(solver).__name__} solves stochastic differential equations, and the flow is an "
            "ODE. With noise, call diffrax.diffeqsolve with a "
            "diffrax.MultiTerm(diffrax.ODETerm(EnergyFlow(model)), diffrax.ControlTerm(...))."
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


def check_values(x0: PyTree[Array], errors: dict[str, Bool[Array, ""]]) -> PyTree[Array]:
    """`x0`, or at run time the first of the errors that is true, and that of x0 before all others.

    All are one check, because each calls Python from the compiled program.
    """
    not_finite = [jnp.any(~jnp.isfinite(x)) for x in jax.tree.leaves(x0)]
    errors = {_NOT_FINITE: jnp.any(jnp.array(not_finite))} | errors
    failed = jnp.array(list(errors.values()))
    return eqx.branched_error_if(x0, jnp.any(failed), jnp.argmax(failed), list(errors))


def raise_if_not_finite(x0: StateLike) -> None:
    """Raises an error with the numbers if x0 is known not to be finite."""
    for x in jax.tree.leaves(x0):
        if not isinstance(x, Tracer) and (count := int(jnp.sum(~jnp.isfinite(x)))) > 0:
            entries = f"{count} NaN or infinite of {jnp.size(x)} entries"
            raise ValueError(f"Expected a finite x0, got {entries}.") from None


_NOT_FINITE = "Expected a finite x0, got NaN or infinite entries."


def as_scalar(number: ArrayLike | None, dtype: DTypeLike) -> Any:
    """A number as an array of NumPy; an array of JAX, or None, unchanged."""
    return number if number is None or isinstance(number, Array) else np.asarray(number, dtype)


def with_array_floats(options: PyTree[Any], dtype: DTypeLike) -> PyTree[Any]:
    """Options with their floats as arrays, which are arguments of a compiled program and not a part
    of it: other tolerances then don't compile anew.
    """
    leaves, structure = jax.tree.flatten(options)
    is_float = (float, np.floating)
    return structure.unflatten(
        [np.asarray(x, dtype) if isinstance(x, is_float) else x for x in leaves]
    )
