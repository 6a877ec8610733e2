"""Models whose functions are traced once by a program that evaluates them in many places."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from ..model import AbstractEnergyModel


class TracedOnce(AbstractEnergyModel):
    """A model with the same functions, each under jit, which remembers what it has traced."""

    model: AbstractEnergyModel

    def __init__(self, model: AbstractEnergyModel):
        self.model = model  # without this method tau would count as an argument

    @property
    def tau(self) -> PyTree:
        return self.model.tau

    def energy(self, x: PyTree[Array]) -> Array:
        return _result(self.model, "energy", x)

    def activations(self, x: PyTree[Array]) -> PyTree[Array]:
        return _result(self.model, "activations", x)

    def dEdg(self, x: PyTree[Array]) -> PyTree[Array]:
        return _result(self.model, "dEdg", x)

    def __getattr__(self, name: str) -> Any:
        if name in ("blocks", "coupled"):
            return getattr(self.model, name)
        if name in ("energy_and_dEdg", "synaptic_slopes"):
            method = getattr(self.model, name)
            return eqx.Partial(_result, self.model, name) if callable(method) else method
        raise AttributeError(name)


@eqx.filter_jit
def _result(model: AbstractEnergyModel, method: str, x: PyTree[Array]) -> PyTree[Array]:
    return getattr(model, method)(x)
