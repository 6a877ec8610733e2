"""What a synapse is, and what the library's own share."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._arrays import as_float, as_shape
from ..lagrangians.base import pformat


Shapes = tuple[tuple[int, ...], ...]


class AbstractSynapse(eqx.Module):
    """What joins layers: an alignment A(g₁, g₂, …) of their activations; its energy is −A.

    | | |
    |---|---|
    | `synapse.alignment(*gs)` | A, a scalar |
    | `synapse.energy(*gs)` | −A, a scalar |

    A synapse knows nothing of batches: [`hopfield_layers.HAM`][] adds leading axes, `jax.vmap` does
    so for bare synapses. For one of your own, subclass this; or pass a plain callable, or any
    object with a method `energy`, wherever a synapse is expected: they return the energy. Of these,
    what has parts that are no arrays or numbers is wrapped, and is found under `rest`, its arrays
    under `parameters`.

    Source: Krotov & Hopfield, "Large associative memory problem in neurobiology and machine
    learning" (ICLR 2021), arXiv:2008.06996; Krotov, "Hierarchical associative memory",
    arXiv:2107.06446.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> class Cubic(hl.AbstractSynapse):
    ...     def alignment(self, g1, g2):
    ...         return jnp.sum(g1 * g2) ** 3
    >>> print(Cubic().energy(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5])))
    -8.0

    ```
    """

    @abc.abstractmethod
    def alignment(self, *gs: Any) -> Array:
        """A(g₁, g₂, …), a scalar."""

    def energy(self, *gs: Any) -> Array:
        """−A(g₁, g₂, …), a scalar."""
        return -self.alignment(*gs)

    def __repr__(self) -> str:
        return pformat(self)


class AbstractShaped(AbstractSynapse):
    """A synapse of layers of given shapes.

    Subclasses write A for activations of these in one dtype, float32 or wider; the result has the
    dtype of the activations.
    """

    shapes: eqx.AbstractVar[Shapes]

    def __check_init__(self):
        # Whatever the Lagrangian or XLA has to say against the shapes, they say now.
        dtype = jnp.result_type(float)
        gs = [jax.ShapeDtypeStruct(shape, dtype) for shape in self.shapes]
        jax.eval_shape(lambda *gs: self.alignment(*gs), *gs)

    @abc.abstractmethod
    def _alignment(self, *gs: Any) -> Array:
        """A."""

    def alignment(self, *gs: ArrayLike) -> Float[Array, ""]:
        arrays = [as_float(g) for g in gs]
        shapes = tuple(g.shape for g in arrays)
        if shapes != self.shapes:
            raise ValueError(
                f"{type(self).__name__}: expected activations of the shapes {self.shapes}, got "
                f"{shapes}."
            )
        dtype = jnp.result_type(*arrays)
        wide = jnp.promote_types(dtype, jnp.float32)
        return self._alignment(*(g.astype(wide) for g in arrays)).astype(dtype)


class EnergySynapse(AbstractSynapse):
    """A callable that returns an energy, or an object with a method `energy` that does."""

    parameters: PyTree
    rest: Any = eqx.field(static=True)

    def __init__(self, fn: Any):
        self.parameters, self.rest = eqx.partition(fn, eqx.is_array)

    def alignment(self, *gs: Array) -> Array:
        fn: Any = eqx.combine(self.parameters, self.rest)
        return -jnp.asarray(getattr(fn, "energy", fn)(*gs))


def as_synapse(synapse: Any) -> Any:
    """`synapse`, or if it is no valid argument of `jax.jit` one that is.

    As in [`hopfield_layers.as_lagrangian`][], the arrays in a callable that is a pytree stay
    trainable parameters, and a function is compared by identity.
    """
    if isinstance(synapse, type):
        raise TypeError(
            f"Expected a synapse, got the class {synapse.__name__}: pass an instance, "
            f"{synapse.__name__}(...)."
        )
    has_energy = callable(getattr(synapse, "energy", None))
    if not has_energy and not callable(synapse):
        raise TypeError(
            f"Expected a synapse, an object with a method energy, or a callable, got {synapse!r}."
        )
    if has_energy and all(map(eqx.is_array_like, jax.tree.leaves(synapse))):
        return synapse
    return EnergySynapse(synapse)


def as_shapes(shapes: Any, count: int | None = None) -> Shapes:
    """`shapes` as a tuple of shapes, one per layer; a size is the shape of a layer of one axis."""
    few = not isinstance(shapes, tuple | list) or len(shapes) == 0
    if few or (count is not None and len(shapes) != count):
        number = "one per layer" if count is None else f"{count} of them"
        raise ValueError(f"Expected a tuple of shapes, {number}, got {shapes!r}.")
    return tuple(as_shape(shape) for shape in shapes)


def sizes(shapes: Shapes) -> tuple[int, ...]:
    """The number of units of each layer."""
    return tuple(map(math.prod, shapes))


def heads(numbers: tuple[Any, ...], given: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of heads and of their hidden units, those at `axes` as in weights that are given.

    1, the default of the number of heads, and 64, that of units, ask for no number in particular.
    """
    checked = list(as_shape(numbers))
    shape = jnp.shape(given) if given is not None else ()
    for i, axis in enumerate(axes):
        if len(shape) > 2 and checked[i] == (1, 64)[i]:
            checked[i] = shape[axis]
    return tuple(checked)


def weights(
    key: PRNGKeyArray | None, stdinit: ArrayLike, **wanted: tuple[Any, tuple[int, ...]]
) -> list[Array]:
    """The weights that were given, or weights drawn from N(0, stdinit²) if a key was.

    `wanted` has for each its name, what was given (or None) and its shape.
    """
    missing = [name for name, (given, _) in wanted.items() if given is None]
    names = " and ".join(wanted)
    if key is not None:
        if len(missing) < len(wanted):
            raise ValueError(f"Expected either a key or {names}, got both.")
        keys = jr.split(key, len(wanted))
        shapes = [shape for _, shape in wanted.values()]
        return [jr.normal(k, shape) * stdinit for k, shape in zip(keys, shapes, strict=True)]
    if missing:
        raise ValueError(f"Expected either a key or {names}, got no {' and no '.join(missing)}.")
    arrays = {name: as_float(given) for name, (given, _) in wanted.items()}
    for name, (_, shape) in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"Expected {name} of shape {shape}, got {arrays[name].shape}.")
    return list(arrays.values())
