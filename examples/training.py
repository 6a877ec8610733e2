"""Shared by the examples that train a model through its fixed point, by optax."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree


_Model = TypeVar("_Model", bound=eqx.Module)


def shuffled(rng: np.random.Generator, count: int, batch: int, epochs: int) -> Iterator[np.ndarray]:
    """The rows of each batch; an epoch has all rows in a new order, but for an incomplete batch."""
    for _ in range(epochs):
        yield from rng.permutation(count)[: count // batch * batch].reshape(-1, batch)


def trained(
    model: _Model,
    are_weights: PyTree,
    loss: Callable[..., tuple[Array, Array]],
    batches: Iterable[tuple],
    optimizer: optax.GradientTransformation,
    report_every: int,
) -> tuple[_Model, np.ndarray]:
    """The trained model, and the loss of each step.

    `loss(model, *batch)` is the loss, and the share of the samples that came to rest. optax sees
    the weights alone, `are_weights` being the mask that `hl.trainable_weights` returns, so that
    other numbers such as τ are constants. Prints the mean of each `report_every` steps.
    """
    weights, constants = eqx.partition(model, are_weights)

    @jax.jit
    def step(weights, state, batch):
        def of_weights(weights):
            return loss(eqx.combine(weights, constants), *batch)

        (value, at_rest), gradient = jax.value_and_grad(of_weights, has_aux=True)(weights)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value, at_rest

    state, results = optimizer.init(weights), []
    for i, batch in enumerate(batches, start=1):
        weights, state, *result = step(weights, state, batch)
        results.append(result)
        if i % report_every == 0:
            value, at_rest = np.mean(results[-report_every:], axis=0)
            print(f"step {i:5}  loss {value:.4f}  at rest {at_rest:.1%}", flush=True)
    return eqx.combine(weights, constants), np.array(results)[:, 0]
