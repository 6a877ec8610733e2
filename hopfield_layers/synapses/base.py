"""The abstract classes of synapses, and the checks that their constructors share."""

import abc
import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from .._conversion import as_float, as_shape, ShapeLike, wide_dtype
from .._trees import filled, is_none
from ..lagrangians.base import AbstractLagrangian, pformat, scalar_parameters
from ..lagrangians.callables import as_lagrangian


Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
Scalar = Shaped[ArrayLike, ""]
Weight = Shaped[ArrayLike, "..."]
LagrangianLike = AbstractLagrangian | Callable[..., ArrayLike]


@runtime_checkable
class HasEnergy(Protocol):
    """An object with a method `energy` of the activations of any number of layers."""

    @property
    def energy(self) -> Callable[..., Array]: ...


SynapseLike = HasEnergy | Callable[..., ArrayLike]


class AbstractSynapse(eqx.Module):
    """An alignment A(g₁, g₂, …) of the activations of layers, whose energy is −A.

    A synapse takes no batch axes: [`hopfield_layers.HAM`][] or `jax.vmap` adds them. To write one
    of your own, subclass this and define `alignment`. Wherever a synapse is expected, a callable
    that returns an energy, or an object with a method `energy`, is accepted too. If not all of its
    leaves are arrays or numbers it is wrapped, with its arrays as `arrays` and the others as
    `static`.

    Source: Krotov & Hopfield (ICLR 2021), arXiv:2008.06996; Krotov, arXiv:2107.06446.

    Examples:
        >>> class Cubic(hl.AbstractSynapse):
        ...     def alignment(self, g1, g2):
        ...         return jnp.sum(g1 * g2) ** 3
        >>> print(Cubic().energy(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5])))
        -8.0
    """

    # Any parameters, so that type checkers accept a subclass that names its activations.
    @abc.abstractmethod
    def alignment(self, *gs: Any, **kwargs: Any) -> Array:
        """A(g₁, g₂, …), a scalar."""

    def energy(self, *gs: Shaped[ArrayLike, "..."]) -> Array:
        """−A(g₁, g₂, …), a scalar."""
        return -self.alignment(*gs)

    def __repr__(self) -> str:
        return pformat(self)


class AbstractShaped(AbstractSynapse):
    """A synapse of layers of known shapes, whose formula is a pure function."""

    shapes: Shapes = eqx.field(static=True)

    def __check_init__(self):
        # Trace once, so that errors of the Lagrangian and of shapes surface at construction.
        gs = (jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in self.shapes)
        jax.eval_shape(self._alignment, *gs)

    @abc.abstractmethod
    def _alignment(self, *gs: Array) -> Array:
        """A of activations of the right shapes and of one dtype, float32 or wider."""

    def alignment(self, *gs: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
        arrays = [as_float(g) for g in gs]
        shapes = tuple(g.shape for g in arrays)
        if shapes != self.shapes:
            name = type(self).__name__
            raise ValueError(f"{name}: expected activations of shapes {self.shapes}, got {shapes}.")
        dtype = jnp.result_type(*arrays)
        return self._alignment(*(g.astype(wide_dtype(dtype)) for g in arrays)).astype(dtype)


class EnergySynapse(AbstractSynapse):
    """A callable that returns an energy, or an object whose method `energy` returns one."""

    arrays: PyTree
    static: PyTree = eqx.field(static=True)

    def __init__(self, fn: PyTree):
        self.arrays, self.static = eqx.partition(fn, eqx.is_array)

    def alignment(self, *gs: Shaped[ArrayLike, "..."]) -> Array:
        fn = eqx.combine(self.arrays, self.static)
        return -jnp.asarray(getattr(fn, "energy", fn)(*gs))


def as_synapse(name: str, synapse: object) -> HasEnergy:
    """`synapse`, wrapped if it is not a valid argument of `jax.jit`."""
    if isinstance(synapse, type):
        raise TypeError(
            f"Synapse {name!r}: expected a synapse, got the class {synapse.__name__}: pass an "
            f"instance, {synapse.__name__}(...)."
        )
    if not callable(getattr(synapse, "energy", synapse)):
        raise TypeError(
            f"Synapse {name!r}: expected a synapse, an object with a method energy, or a callable, "
            f"got {synapse!r}."
        )
    if isinstance(synapse, HasEnergy) and all(map(eqx.is_array_like, jax.tree.leaves(synapse))):
        return synapse
    return EnergySynapse(synapse)


def pure_energy(synapse: HasEnergy) -> Callable[..., Array]:
    """The energy without conversions or checks; for a user's own synapse, its method `energy`."""
    if isinstance(synapse, AbstractShaped):
        return lambda *gs: -synapse._alignment(*gs)
    return synapse.energy


def as_shapes(shapes: Sequence[ShapeLike], count: int | None = None) -> Shapes:
    """`shapes` as a tuple of shapes, one per layer."""
    if not (isinstance(shapes, tuple | list) and shapes and count in (None, len(shapes))):
        number = "one per layer" if count is None else f"{count} of them"
        raise ValueError(f"Expected a tuple of shapes, {number}, got {shapes!r}.")
    return tuple(map(as_shape, shapes))


def token_shape(shape: Shape) -> tuple[int, int]:
    """The number of tokens of a layer, and of units of each token."""
    if not shape:
        raise ValueError("Expected a layer of tokens, of one axis at least, got shape ().")
    return math.prod(shape[:-1]), shape[-1]


def head_shape(W: Weight | None, axis: int, *sizes: int) -> Shape:
    """`sizes`, but from W's axes, `axis` and later, where they have the defaults 1 and 64."""
    sizes = as_shape(sizes)
    own = sizes if W is None or jnp.ndim(W) < 3 else jnp.shape(W)[axis:]
    triples = zip(sizes, own, (1, 64), strict=False)
    return tuple(mine if size == default else size for size, mine, default in triples)


def weights(key: PRNGKeyArray | None, stdinit: Scalar, **expected: tuple[Weight | None, Shape]):
    """Weights drawn from N(0, stdinit²) with the key, or the user's own: name=(array, shape)."""
    names = " and ".join(expected)
    missing = [name for name, (array, _) in expected.items() if array is None]
    if key is not None:
        if len(missing) < len(expected):
            raise ValueError(f"Expected either a key or {names}, got both.")
        pairs = zip(jr.split(key, len(expected)), expected.values(), strict=True)
        return [jr.normal(subkey, shape) * stdinit for subkey, (_, shape) in pairs]
    if missing:
        raise ValueError(f"Expected either a key or {names}, got no {' and no '.join(missing)}.")
    arrays = [as_float(array) for array, _ in expected.values() if array is not None]
    for array, (name, (_, shape)) in zip(arrays, expected.items(), strict=True):
        if array.shape != shape:
            raise ValueError(f"Expected {name} of shape {shape}, got {array.shape}.")
    return arrays


def row_lagrangian(
    lagrangian: LagrangianLike | None, default: AbstractLagrangian, num_heads: int | None = None
) -> AbstractLagrangian:
    """The Lagrangian of rows of hidden units: `lagrangian`, or if it is None the default one.

    Its scalar parameters may have one value for each head, if there are heads.
    """
    chosen = default if lagrangian is None else as_lagrangian(lagrangian)
    chosen.coupled_axes(1)  # raises an error for an axis that a row doesn't have
    for name in scalar_parameters(chosen):
        shape = jnp.shape(getattr(chosen, name))
        if shape not in ((), (num_heads,)):
            per_head = "" if num_heads is None else f" or one for each of {num_heads} heads"
            kind = type(chosen).__name__
            raise ValueError(f"{kind}: expected one {name}{per_head}, got shape {shape}.")
    return chosen


def over_heads(fn: Callable[..., Array], lagrangian: AbstractLagrangian, *arrays: Array) -> Array:
    """Σ `fn(lagrangian, *arrays)` over heads, which are the first axis of the arrays."""
    axes = filled(lagrangian, None)
    for name in scalar_parameters(lagrangian):
        if jnp.ndim(getattr(lagrangian, name)) == 1:
            axes = eqx.tree_at(attrgetter(name), axes, 0, is_leaf=is_none)
    return jnp.sum(jax.vmap(fn, (axes, *(0 for _ in arrays)))(lagrangian, *arrays))
