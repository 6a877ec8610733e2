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

from .._arrays import as_float, widened
from ..model import AbstractEnergyModel
from .flow import as_mask, EnergyFlow, fitted, Inputs


def prepared(
    model: Any, x0: PyTree, flow: str, clamp: PyTree, inputs: Inputs
) -> tuple[EnergyFlow, PyTree]:
    """The flow, and x0 in one dtype, float32 at least; or an error if they don't fit."""
    x0 = jax.tree.map(lambda x: widened(as_float(x)), x0)
    if not jax.tree.leaves(x0):
        raise ValueError(f"Expected a state of one array at least, got {x0}.")
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    x0 = jax.tree.map(lambda x: _finite(x.astype(dtype)), x0)
    if isinstance(model, AbstractEnergyModel):
        _check_structure(model, x0)
    if clamp is not None:
        clamp = fitted("clamp", jax.tree.map(as_mask, clamp), x0)
    return EnergyFlow(model, flow, clamp, as_arrays(inputs, dtype)), x0


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


@jax.jit
def _not_finite(x: Array) -> Array:
    """How many entries are not finite, by one program rather than one per operation."""
    return jnp.sum(~jnp.isfinite(x))


def _finite(x: Array) -> Array:
    """`x`, or an error if it is not finite."""
    with jax.ensure_compile_time_eval():
        bad = _not_finite(x)
    if isinstance(bad, Tracer):
        return eqx.error_if(x, bad > 0, "Expected a finite x0, got NaN or infinite entries.")
    if int(bad) > 0:
        raise ValueError(f"Expected a finite x0, got {bad} NaN or infinite of {x.size} entries.")
    return x


def as_arrays(tree: PyTree, dtype: Any) -> PyTree:
    """`tree` with its floats as arrays, so that they are arguments of a compiled program instead of
    parts of it.
    """
    is_float = lambda x: isinstance(x, float | np.floating)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if is_float(x) else x, tree)


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
