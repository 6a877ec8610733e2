"""Functions of a block of rows, with their tangents, transposes and batched versions.

They are compared by value, so that JAX's caches recognise equal ones.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


Flags = tuple[bool, ...]
# For each array, which axes of the batch its leading axes are, after the axis of the rows if any.
Batches = list[tuple[int, ...]]


def block_shapes(is_row: Flags, arguments: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the arguments, with a block of one row."""
    return [
        jax.ShapeDtypeStruct((1, *a.shape[1:]) if row else a.shape, a.dtype)
        for row, a in zip(is_row, arguments, strict=True)
    ]


def interleave(flags: Flags, flagged: Iterable, others: Iterable) -> list:
    """Interleaves two lists: from the first where the flag is True, else from the second."""
    flagged, others = iter(flagged), iter(others)
    return [next(flagged if flag else others) for flag in flags]


def others(flags: Flags) -> Flags:
    """The flags of the other items."""
    return tuple(not flag for flag in flags)


def chosen(flags: Flags, items: Sequence) -> list:
    """The items whose flag is True."""
    return list(itertools.compress(items, flags))


def batch_sizes(arguments: Sequence[Array], is_row: Flags, batches: Batches) -> dict[int, int]:
    """The sizes of the axes of batches."""
    return {
        batch: array.shape[row + i]
        for array, row, axes in zip(arguments, is_row, batches, strict=True)
        for i, batch in enumerate(axes)
    }


class AbstractBlockFunction(abc.ABC):
    """A function of `valid` and flat arguments, some of them rows, that returns a flat list."""

    @abc.abstractmethod
    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        """The results for one block of rows."""

    @abc.abstractmethod
    def batches(self, num_arguments: int, num_results: int) -> tuple[Batches, Batches]:
        """The axes of the batch that each argument has, and those that each result has."""


@dataclasses.dataclass(frozen=True)
class OnTrees(AbstractBlockFunction):
    """`fn`, which takes and returns trees."""

    fn: Callable
    structure: Any

    def _trees(self, valid: Array | None, *arguments: Array) -> PyTree:
        return self.fn(valid, *self.structure.unflatten(arguments))

    def shapes(self, is_row: Flags, arguments: Sequence[Array]) -> PyTree:
        return jax.eval_shape(self._trees, None, *block_shapes(is_row, arguments))

    def batches(self, num_arguments: int, num_results: int) -> tuple[Batches, Batches]:
        return [()] * num_arguments, [()] * num_results

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        return jax.tree.leaves(self._trees(valid, *arguments))


@dataclasses.dataclass(frozen=True)
class Mapped(AbstractBlockFunction):
    """`fn` over a batch, whose axis is the first one, or the second one in arrays of rows."""

    fn: AbstractBlockFunction
    is_row: Flags
    gives_row: Flags
    is_mapped: Flags

    def batches(self, num_arguments: int, num_results: int) -> tuple[Batches, Batches]:
        arguments, results = self.fn.batches(num_arguments, num_results)
        new = 1 + max((axis for batches in (*arguments, *results) for axis in batches), default=-1)
        pairs = zip(self.is_mapped, arguments, strict=True)
        arguments = [(new, *batches) if mapped else batches for mapped, batches in pairs]
        return arguments, [(new, *batches) for batches in results]

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        axes = [
            int(row) if mapped else None
            for row, mapped in zip(self.is_row, self.is_mapped, strict=True)
        ]
        mapped = jax.vmap(self.fn, (None, *axes), list(map(int, self.gives_row)))
        return mapped(valid, *arguments)


@dataclasses.dataclass(frozen=True)
class Tangent(AbstractBlockFunction):
    """The tangent of `fn`, from its arguments and the tangents of those that have one."""

    fn: AbstractBlockFunction
    moves: Flags

    def batches(self, num_arguments: int, num_results: int) -> tuple[Batches, Batches]:
        arguments, results = self.fn.batches(len(self.moves), num_results)
        return [*arguments, *chosen(self.moves, arguments)], results

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        primals, tangents = arguments[: len(self.moves)], arguments[len(self.moves) :]
        still = chosen(others(self.moves), primals)

        def of_moving(*moving: Array) -> list[Array]:
            return self.fn(valid, *interleave(self.moves, moving, still))

        return jax.jvp(of_moving, tuple(chosen(self.moves, primals)), tangents)[1]


@dataclasses.dataclass(frozen=True)
class Transpose(AbstractBlockFunction):
    """The transpose of `fn` in the arguments in which it is linear, given the others."""

    fn: AbstractBlockFunction
    is_linear: Flags
    is_row: Flags
    gives_row: Flags
    linear_shapes: tuple[tuple[tuple[int, ...], Any], ...]

    def batches(self, num_arguments: int, num_results: int) -> tuple[Batches, Batches]:
        arguments, results = self.fn.batches(len(self.is_linear), len(self.gives_row))
        still = chosen(others(self.is_linear), arguments)
        return [*still, *results], chosen(self.is_linear, arguments)

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        count = self.is_linear.count(False)
        still, cotangents = arguments[:count], arguments[count:]

        def of_linear(*linear: Array) -> list[Array]:
            return self.fn(valid, *interleave(self.is_linear, linear, still))

        rows = (*chosen(others(self.is_linear), self.is_row), *self.gives_row)
        known, linear_batches = self.batches(len(arguments), len(self.linear_shapes))
        # The sizes of a block and of the batches, which may be divided among devices.
        size = len(chosen(rows, arguments)[0])
        sizes = batch_sizes(arguments, rows, known)

        def local(row: bool, batches: tuple[int, ...], shape: tuple[int, ...], dtype: Any):
            leading = (size,) * row + tuple(sizes[batch] for batch in batches)
            return jax.ShapeDtypeStruct(leading + shape[len(leading) :], dtype)

        linear = [
            local(row, batches, *shape)
            for row, batches, shape in zip(
                chosen(self.is_linear, self.is_row), linear_batches, self.linear_shapes, strict=True
            )
        ]
        # Rows that are not valid are not part of the result, so their cotangents are zero.
        used = [
            where_valid(valid, c, jnp.zeros_like(c)) if row else c
            for row, c in zip(self.gives_row, cotangents, strict=True)
        ]
        return list(jax.linear_transpose(of_linear, *linear)(used))


def where_valid(valid: Array | None, rows: Array, others: Array) -> Array:
    """`rows` where they are valid, and `others` elsewhere."""
    if valid is None:
        return rows
    return jnp.where(valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, others)
