"""Models whose functions are traced once by a program that evaluates them in many places."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, PyTree

from ..model import AbstractEnergyModel


class TracedOnce(AbstractEnergyModel):
    """A model with the same functions, each under jit, which remembers what it has traced."""

    model: AbstractEnergyModel

    def __init__(self, model: AbstractEnergyModel):
        self.model = model

    @property
    def tau(self) -> PyTree:
        return self.model.tau

    def energy(self, x: PyTree[Array]) -> Array:
        return _result(self.model, "energy", x)

    def activations(self, x: PyTree[Array]) -> PyTree[Array]:
        return _result(self.model, "activations", x)

    def dEdg(self, x: PyTree[Array]) -> PyTree[Array]:
        return _result(self.model, "dEdg", x)

    def __getattr__(self, name: str) -> Callable:
        # The optional methods. Those with arguments of arrays are evaluated as the others are.
        method = getattr(self.model, name)
        is_evaluated = name in ("energy_and_dEdg", "synaptic_slopes")
        return eqx.Partial(_result, self.model, name) if is_evaluated else method


@eqx.filter_jit
def _result(model: AbstractEnergyModel, method: str, x: PyTree[Array]) -> PyTree[Array]:
    return getattr(model, method)(x)
