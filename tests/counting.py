"""Counts of how often a run evaluates the drive ∂E/∂g of a model."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

import hopfield_layers as hl


Result = TypeVar("Result")


class Counter:
    """The number of different states at which the drive was evaluated, and that of the calls.

    States are counted because XLA merges two evaluations at the same state of a step.
    """

    def __init__(self) -> None:
        self._states: set[bytes] = set()
        self.calls = 0

    @property
    def count(self) -> int:
        """The number so far."""
        return len(self._states)

    def record(self, x: np.ndarray) -> np.ndarray:
        """Counts an evaluation at x, and returns 0 in its dtype."""
        self._states.add(np.asarray(x).tobytes())
        self.calls += 1
        return np.zeros((), x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recorded(counter: Counter, x: Array) -> Array:
    """`x`, recorded when the program runs."""
    return x + jax.pure_callback(counter.record, jax.ShapeDtypeStruct((), x.dtype), x)


@_recorded.defjvp
def _(counter, primals, tangents):
    # A product with the Jacobian of the drive counts as an evaluation of it.
    return _recorded(counter, *primals), _recorded(counter, *tangents)


class CountedModel(hl.AbstractEnergyModel):
    """A model whose evaluations of the drive are counted by `counter`."""

    model: hl.AbstractEnergyModel
    counter: Counter = eqx.field(static=True)

    def __init__(self, model: hl.AbstractEnergyModel, counter: Counter):
        self.model = model
        self.counter = counter

    @property
    def tau(self) -> PyTree:
        """That of the model."""
        return self.model.tau

    def energy(self, x: PyTree) -> Array:
        """That of the model."""
        return self.model.energy(x)

    def activations(self, x: PyTree) -> PyTree:
        """Those of the model."""
        return self.model.activations(x)

    def dEdg(self, x: PyTree) -> PyTree:
        """That of the model, which the counter records."""
        leaves, structure = jax.tree.flatten(x)
        recorded = [_recorded(self.counter, leaves[0]), *leaves[1:]]
        return self.model.dEdg(jax.tree.unflatten(structure, recorded))


def evaluations(
    run: Callable[[hl.AbstractEnergyModel], Result], model: hl.AbstractEnergyModel
) -> tuple[Result, int]:
    """`run(model)`, and the number of states at which it evaluates the drive of the model."""
    counter = Counter()
    result = jax.block_until_ready(run(CountedModel(model, counter)))
    jax.effects_barrier()  # callbacks may come after the result
    return result, counter.count


def drives(model: hl.AbstractEnergyModel, rest: hl.Relaxation) -> int:
    """The drives of a relaxation that came to rest by block updates, the most of all samples.

    One drive measures x0, and each sweep or implicit step counts as one. After sweeps of several
    blocks another one measures the last state.
    """
    steps = int(np.max(rest.num_steps))
    measures_last = len(getattr(model, "blocks", tuple)()) > 1 and steps > 0
    return steps + (2 if measures_last else 1)
