"""What every solve begins with: states and solvers checked, and one solve per sample."""

import typing
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._arrays import as_float
from ..model import AbstractEnergyModel
from .flow import as_mask, EnergyFlow, fitted, Inputs


def given(model: Any, x0: PyTree, flow: str, clamp: PyTree) -> tuple[PyTree, PyTree, Any]:
    """x0 with floats for integers, clamp in its shapes, and the dtype to solve in."""
    leaves, structure = jax.tree.flatten(x0)
    if not leaves:
        raise ValueError(f"Expected a state of one array at least, got {x0}.")
    leaves = [x if isinstance(x, Array) and x.dtype in _WIDE else as_float(x) for x in leaves]
    x0 = jax.tree.unflatten(structure, leaves)
    if clamp is not None:
        clamp = fitted("clamp", jax.tree.map(as_mask, clamp), x0)
        clamp = EnergyFlow(model, flow, clamp).clamp  # checked, while its values are known
    return x0, clamp, _common(leaves)


def prepared(
    model: Any, x0: PyTree, flow: str, clamp: PyTree, inputs: Inputs
) -> tuple[EnergyFlow, PyTree, Any]:
    """The flow, x0 in one dtype, and the latter; or an error if they don't fit."""
    dtype = _common(jax.tree.leaves(x0))
    x0 = jax.tree.map(lambda x: x.astype(dtype), x0)
    field = EnergyFlow(model, flow, inputs=inputs)
    _check_structure(model, x0)
    return eqx.tree_at(lambda f: f.clamp, field, clamp, is_leaf=lambda x: x is None), x0, dtype


def _check_structure(model: AbstractEnergyModel, x0: PyTree) -> None:
    """Raises an error unless x0 is a state of the model."""
    structure = jax.tree.structure(x0)
    try:
        g = jax.tree.structure(jax.eval_shape(model.activations, x0))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"Expected a state of the model, got {structure}: {error}") from error
    if g != structure:
        raise ValueError(f"Expected a state of the structure {g}, got {structure}.")


def check_tools(solver: Any, controller: Any) -> None:
    """Raises an error unless these are a solver of ODEs and a step size controller of diffrax."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"Expected a solver of diffrax, got {solver!r}.")
    terms = solver.term_structure
    terms = typing.get_origin(terms) or terms
    if not isinstance(terms, type) or issubclass(terms, diffrax.MultiTerm):
        raise ValueError(f"Expected a solver of a single ODETerm, got {type(solver).__name__}.")
    if not isinstance(controller, diffrax.AbstractStepSizeController):
        raise TypeError(f"Expected a step size controller of diffrax, got {controller!r}.")


def checked(x0: PyTree, errors: dict[str, Array]) -> PyTree:
    """`x0`, or at run time the first of the errors that is true, NaN or infinities in x0 before
    all: one check, as each costs a call of Python.
    """
    leaves = [jnp.any(~jnp.isfinite(x)) for x in jax.tree.leaves(x0)]
    errors = {_NOT_FINITE: jnp.any(jnp.array(leaves))} | errors
    bad = jnp.array(list(errors.values()))
    return eqx.branched_error_if(x0, jnp.any(bad), jnp.argmax(bad), list(errors))


def raise_if_not_finite(x0: PyTree) -> None:
    """Raises an error if x0 is known not to be finite."""
    for x in jax.tree.leaves(x0):
        bad = 0 if isinstance(x, Tracer) else int(jnp.sum(~jnp.isfinite(x)))
        if bad > 0:
            of = f"{bad} NaN or infinite of {x.size} entries"
            raise ValueError(f"Expected a finite x0, got {of}.") from None


_NOT_FINITE = "Expected a finite x0, got NaN or infinite entries."


def _common(leaves: list[Array]) -> Any:
    """The dtype to solve in."""
    return _DOUBLE if any(x.dtype == _DOUBLE for x in leaves) else _SINGLE


_SINGLE, _DOUBLE = _WIDE = (np.dtype(np.float32), np.dtype(np.float64))


def as_number(number: Any, dtype: Any) -> Any:
    """`number` as an array, as `as_arrays` does, if it is one."""
    known = number is not None and not isinstance(number, Array)
    return np.asarray(number, dtype) if known else number


def as_arrays(tree: PyTree, dtype: Any) -> PyTree:
    """`tree` with its floats as arrays, so that they are arguments of a compiled program instead of
    parts of it. NumPy's: a program takes them in a tenth of the time that it takes to make JAX's.
    """
    leaves, structure = jax.tree.flatten(tree)
    is_float = lambda x: isinstance(x, float | np.floating)
    leaves = [np.asarray(x, dtype) if is_float(x) else x for x in leaves]
    return jax.tree.unflatten(structure, leaves)


def per_sample(solve: Callable[..., Any], flow: EnergyFlow, x0: PyTree) -> Any:
    """`solve(flow, x0)` of every sample: the batch axes of x0 become those of the result.

    A batch without samples gives the same structure, dtypes and shapes.
    """
    batch = jax.eval_shape(flow.model.energy, x0).shape
    own = {
        "clamp": None if flow.clamp is None else fitted("clamp", flow.clamp, x0),
        "inputs": None
        if flow.inputs is None or callable(flow.inputs)
        else fitted("inputs", flow.inputs, x0),
    }

    def sample(own, x0):
        own_or_shared = lambda name: getattr(flow, name) if own[name] is None else own[name]
        new = (own_or_shared("clamp"), own_or_shared("inputs"))
        parts = lambda flow: (flow.clamp, flow.inputs)
        return solve(eqx.tree_at(parts, flow, new, is_leaf=lambda x: x is None), x0)

    for _ in batch:
        sample = eqx.filter_vmap(sample)
    if 0 not in batch:
        return sample(own, x0)

    def resized(tree, sizes):
        is_array = lambda x: hasattr(x, "shape")
        resize = lambda x: jnp.zeros(sizes + x.shape[len(batch) :], x.dtype)
        return jax.tree.map(lambda x: resize(x) if is_array(x) else x, tree)

    one = resized((own, x0), (1,) * len(batch))
    return resized(eqx.filter_eval_shape(sample, *one), batch)
