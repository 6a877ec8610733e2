"""Trees with the structure of a state: clamps, inputs, sums and selections."""

import functools as ft
from collections.abc import Callable
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from .._conversion import as_float, broadcast
from .._trees import filled
from ..model import AbstractEnergyModel, AnyArray, Flow, StateLike


_T = TypeVar("_T")
Masks = PyTree[Bool[Array, "..."]]


class Clamp(eqx.Module):
    """Masks of the units that keep their values.

    Under the activation flow the energy may rise if the activation of a held unit depends on a free
    unit: such masks are an error. If their values are traced, it is one at run time, which
    `raises=False` leaves to the caller.
    """

    held: Masks

    def __init__(
        self, model: AbstractEnergyModel, flow: Flow, masks: StateLike, raises: bool = True
    ):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(masks)):
            self.held = jax.tree.map(_as_mask, masks)
            if raises:
                self.held = eqx.error_if(self.held, self.splits(model, flow), SPLITS)
            return
        # Known masks are checked now, even while an outer function is traced.
        with jax.ensure_compile_time_eval():
            self.held = jax.tree.map(_as_mask, masks)
            if self.splits(model, flow):
                raise ValueError(SPLITS)

    def splits(self, model: AbstractEnergyModel, flow: Flow) -> Bool[Array, ""]:
        """Whether the masks are an error."""
        dependent = jax.tree.leaves(self.dependent(model))
        return jnp.any(jnp.array([jnp.any(units) for units in dependent])) & (flow != "state")

    def dependent(self, model: AbstractEnergyModel) -> Masks:
        """The free units whose activation depends on a held unit, by default any of its array."""

        def coupled_in_arrays(held):
            x = jax.tree.map(lambda held: jax.ShapeDtypeStruct(held.shape, float), held)
            batch = jax.eval_shape(model.energy, x).ndim
            return jax.tree.map(
                lambda held: jnp.any(held, tuple(range(batch, held.ndim)), keepdims=True), held
            )

        try:
            coupled = (getattr(model, "coupled", None) or coupled_in_arrays)(self.held)
            return jax.tree.map(lambda coupled, held: coupled & ~held, coupled, self.held)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            shapes = jax.tree.map(jnp.shape, self.held)
            message = f"Expected clamp to be a state of the model, got {shapes}: {error}"
            raise ValueError(message) from error


SPLITS = (
    "clamp holds some but not all of the units that a Lagrangian couples, such as a part of a "
    "softmax's row: under the activation flow the energy could then rise. Hold whole rows, or "
    'use flow="state". A Lagrangian or model of your own can declare which units it couples, see '
    "as_lagrangian(fn, coupled_axes=...) and AbstractEnergyModel."
)


def _as_mask(leaf: ArrayLike) -> Array:
    dtype = getattr(leaf, "dtype", type(leaf))
    if dtype not in (bool, np.dtype(bool)):
        raise ValueError(
            f"Expected clamp to be boolean, got {getattr(dtype, '__name__', dtype)}: a clamp is a "
            "tree of boolean masks like the state, True for the units that keep their values."
        )
    return jnp.asarray(leaf)


def like_state(
    x: PyTree[AnyArray], tree: StateLike | None, name: Literal["clamp", "inputs"]
) -> PyTree[Array]:
    """A clamp or inputs with the structure and shapes of x; layers that are left out get zeros.

    Inputs also get the dtypes of x.
    """
    structure = jax.tree.structure(x)
    if isinstance(x, dict) and isinstance(tree, dict) and set(tree) < set(x):
        tree = filled(x, False) | tree
    if jax.tree.structure(tree) != structure:
        expected = f"a dict of the layers {sorted(x)}" if isinstance(x, dict) else structure
        raise ValueError(
            f"Expected {name} of the state's structure, {expected}, got a {type(tree).__name__}, "
            f"{jax.tree.structure(tree)}."
        )

    def fit(leaf, x):
        leaf = _as_mask(leaf) if name == "clamp" else as_float(leaf).astype(x.dtype)
        return broadcast(f"An array of {name}", leaf, x.shape)

    return jax.tree.map(fit, tree, x)


def sum_over_units(terms: PyTree[Array], like: Array) -> Array:
    """The sum over all units of each sample. `like` has the shape of the batch axes."""
    sums = [jnp.sum(x, axis=tuple(range(like.ndim, x.ndim))) for x in jax.tree.leaves(terms)]
    return sum(sums, start=jnp.zeros_like(like))


def largest(tree: PyTree[Array]) -> Float[Array, ""]:
    """The largest absolute value of all arrays."""
    return jnp.max(jnp.array([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]))


def on_vectors(
    fn: Callable[[PyTree[Array]], PyTree[Array]], unravel: Callable[[Array], PyTree[Array]]
) -> Callable[[Array], Array]:
    """`fn` as a function from flat vectors to flat vectors."""

    def of_vector(x):
        return ravel_pytree(fn(unravel(x)))[0]

    return of_vector


def tree_where(condition: Bool[ArrayLike, "..."], a: PyTree, b: PyTree) -> PyTree:
    """`jnp.where` of trees of one structure."""
    return jax.tree.map(ft.partial(jnp.where, condition), a, b)


def without_derivatives(tree: _T) -> _T:
    """The tree, whose arrays are constants for differentiation."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)
