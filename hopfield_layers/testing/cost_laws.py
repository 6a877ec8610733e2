"""What a drive costs: properties that are reported, as a right model may be slow."""

from collections import Counter
from operator import attrgetter

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..lagrangians import AbstractLagrangian
from ..model import AbstractEnergyModel
from ..network import HAM
from ..synapses import AbstractSynapse
from ..synapses.base import HasEnergy
from .verdict import broken_by_errors, Laws, Measured


def cost_laws(model: AbstractEnergyModel, x: PyTree) -> Laws:
    """How often ∂E/∂g evaluates each part, and whether other values of these shapes compile it."""
    calls, traced = Counter(), []

    @eqx.filter_jit
    def drive(model, x):
        traced.append(None)
        return model.dEdg(x)

    def other(leaf):
        return leaf * 1.25 if eqx.is_inexact_array_like(leaf) else leaf

    with broken_by_errors():
        for _ in range(2):
            drive(model, x)
            model, x = jax.tree.map(other, (model, x))
        eqx.filter_eval_shape(lambda model, x: model.dEdg(x), _counted(model, calls), x)
    expected = Counter(c.synapse for c in model.connections) if isinstance(model, HAM) else {}
    return {
        "evaluations": [
            Measured(calls[part], expected.get(part, 1), 0.5, {}, subject=part) for part in calls
        ],
        "compilations": [Measured(len(traced), 1, 0.5, {})],
    }


class _CountedLagrangian(AbstractLagrangian):
    """A Lagrangian that counts the evaluations of its activation."""

    lagrangian: AbstractLagrangian
    calls: Counter = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def __call__(self, x):
        return self.lagrangian(x)

    def activation(self, x):
        self.calls[self.name] += 1
        return self.lagrangian.activation(x)

    def energy(self, x):
        return self.lagrangian.energy(x)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return self.lagrangian.coupled_axes(ndim)


class _CountedSynapse(AbstractSynapse):
    """A synapse that counts the evaluations of its alignment."""

    synapse: HasEnergy
    calls: Counter = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def alignment(self, *gs: Array) -> Array:
        self.calls[self.name] += 1
        return -self.synapse.energy(*gs)


def _counted(model: AbstractEnergyModel, calls: Counter) -> AbstractEnergyModel:
    """The model, whose Lagrangians count, and if it is a network its synapses too."""
    if isinstance(model, HAM):
        counted = {n: _CountedSynapse(s, calls, n) for n, s in model.synapses.items()}
        model = eqx.tree_at(attrgetter("synapses"), model, counted)

    def is_part(node):
        return isinstance(node, AbstractLagrangian | AbstractSynapse)

    def replaced(path, node):
        if not isinstance(node, AbstractLagrangian):
            return node
        return _CountedLagrangian(node, calls, jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(replaced, model, is_leaf=is_part)
