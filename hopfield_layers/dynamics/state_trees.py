"""Trees of a state's structure: clamps and inputs in its shapes, sums and selections."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from .._conversion import as_float, broadcast
from ..model import AbstractEnergyModel, AnyArray, Flow, StateLike


Masks = PyTree[Bool[Array, "..."]]


class Clamp(eqx.Module):
    """Masks of the units that keep their values, which are checked here and nowhere else.

    Under the activation flow the energy may rise if a unit is held whose activation depends on one
    that is free: such masks are an error. The state flow has no such limit.
    """

    held: Masks

    def __init__(self, model: AbstractEnergyModel, flow: Flow, masks: StateLike):
        # Concrete masks are checked now, also while an outer function is traced.
        with jax.ensure_compile_time_eval():
            self.held = jax.tree.map(_as_mask, masks)
            dependent = jax.tree.leaves(self.dependent(model))
            splits = jnp.any(jnp.array([jnp.any(units) for units in dependent]))
        if flow == "state":
            return
        if isinstance(splits, Tracer):
            self.held = eqx.error_if(self.held, splits, _SPLITS)
        elif splits:
            raise ValueError(_SPLITS)

    def dependent(self, model: AbstractEnergyModel) -> Masks:
        """The free units whose activation depends on a held one, by default on any in its array."""
        shapes = jax.tree.map(lambda held: jax.ShapeDtypeStruct(held.shape, float), self.held)
        try:
            if callable(declared := getattr(model, "coupled", None)):
                coupled = declared(self.held)
            else:
                batch = jax.eval_shape(model.energy, shapes).ndim

                def any_of_array(held):
                    return jnp.any(held, axis=tuple(range(batch, held.ndim)), keepdims=True)

                coupled = jax.tree.map(any_of_array, self.held)
            return jax.tree.map(lambda coupled, held: coupled & ~held, coupled, self.held)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            shapes = jax.tree.map(jnp.shape, self.held)
            raise ValueError(
                f"Expected clamp to be a state of the model, got {shapes}: {error}"
            ) from error


_SPLITS = (
    "clamp holds some but not all of the units that a Lagrangian couples, such as a part of a "
    "softmax's row: under the activation flow the energy could then rise. Hold whole rows, or "
    'follow flow="state". A Lagrangian or a model of your own declares which units it couples, see '
    "as_lagrangian(fn, coupled_axes=...) and AbstractEnergyModel."
)


def _as_mask(leaf: ArrayLike) -> Array:
    dtype = getattr(leaf, "dtype", type(leaf))
    if dtype not in (bool, jnp.dtype(bool)):
        name = dtype.__name__ if isinstance(dtype, type) else dtype.name
        raise ValueError(
            f"Expected clamp to be boolean, got {name}: a clamp is a tree of boolean masks of the "
            "state's structure, True for the units that keep their values."
        )
    return jnp.asarray(leaf)


def like_state(
    x: PyTree[AnyArray], tree: StateLike | None, name: Literal["clamp", "inputs"]
) -> PyTree[Array]:
    """A clamp, or inputs in the dtypes of the state x, in its structure and shapes.

    A layer without a mask is free, and one without an input gets 0.
    """
    if isinstance(x, dict) and isinstance(tree, dict) and set(tree) < set(x):
        missing = False if name == "clamp" else 0.0
        tree = {key: tree.get(key, jax.tree.map(lambda _: missing, x[key])) for key in x}
    if jax.tree.structure(tree) != jax.tree.structure(x):
        layers = f"a dict of the layers {sorted(x)}" if isinstance(x, dict) else ""
        raise ValueError(
            f"Expected {name} of the state's structure, {layers or jax.tree.structure(x)}, got "
            f"a {type(tree).__name__}, {jax.tree.structure(tree)}."
        )

    def fit(leaf, x):
        leaf = _as_mask(leaf) if name == "clamp" else as_float(leaf).astype(x.dtype)
        return broadcast(f"An array of {name}", leaf, x.shape)

    return jax.tree.map(fit, tree, x)


def sum_over_units(terms: PyTree[Array], like: Array) -> Array:
    """The sum over all units of each sample, of the shape of the batch axes, which `like` has."""
    sums = [jnp.sum(x, axis=tuple(range(like.ndim, x.ndim))) for x in jax.tree.leaves(terms)]
    return sum(sums, start=jnp.zeros_like(like))


def tree_where(condition: Bool[ArrayLike, "..."], a: PyTree, b: PyTree) -> PyTree:
    """`jnp.where` of trees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)
