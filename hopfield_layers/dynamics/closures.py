"""Models whose functions close over traced arrays, such as a Lagrangian made of a lambda.

A custom derivative rule sees the arguments of its function, but not the arrays that they close
over, so that derivatives with respect to these would be lost. Here they become leaves of the model.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..model import AbstractEnergyModel


class _ConvertedModel(AbstractEnergyModel):
    """A model made of functions of one sample, none of which closes over a traced array."""

    tau: PyTree
    functions: tuple[Callable, ...]
    energy_and_dEdg: Callable | None
    synaptic_slopes: Callable | None
    blocks: Callable | None
    coupled: Callable | None

    def energy(self, x: PyTree[Array]) -> Array:
        return self.functions[0](x)

    def activations(self, x: PyTree[Array]) -> PyTree[Array]:
        return self.functions[1](x)

    def dEdg(self, x: PyTree[Array]) -> PyTree[Array]:
        return self.functions[2](x)


def without_closures(model: AbstractEnergyModel, x: PyTree[Array]) -> AbstractEnergyModel:
    """The model, or if its functions close over tracers an equal one, for states like x."""
    convert = eqx.filter_closure_convert
    functions = tuple(convert(fn, x) for fn in (model.energy, model.activations, model.dEdg))
    if not _has_others(functions, model):
        return model

    def converted(name: str) -> Callable | None:
        fn = getattr(model, name, None)
        return None if fn is None else convert(fn, x)

    together, slopes = converted("energy_and_dEdg"), converted("synaptic_slopes")
    blocks, coupled = (getattr(model, name, None) for name in ("blocks", "coupled"))
    return _ConvertedModel(model.tau, functions, together, slopes, blocks, coupled)


def closes_over_tracers(field: Callable[..., Any], *arguments: PyTree) -> bool:
    """Whether a function uses traced arrays that are not leaves of its own tree."""
    return _has_others(eqx.filter_closure_convert(field, *arguments), field)


def _has_others(converted: PyTree, original: PyTree) -> bool:
    own = {id(leaf) for leaf in jax.tree.leaves(original)}
    leaves = jax.tree.leaves(eqx.filter(converted, eqx.is_array))
    return any(isinstance(leaf, Tracer) and id(leaf) not in own for leaf in leaves)
