"""Sums over the rows of large arrays, one block of rows at a time.

`sum_over_rows(fn, rows, shared)` sums the results of `fn` over blocks of rows, and concatenates
those that have one entry per row. It is a JAX primitive because its derivatives have the same form:

- the tangent of a sum is the sum of the tangents of the blocks;
- in the transpose, the cotangent of a sum is shared by all blocks and that of a new row belongs to
  the row; the cotangents of what is shared are sums again, those of the rows are rows again;
- under `vmap` over the shared arrays, each block is read once for the whole batch.

So derivatives of any order evaluate the blocks again, and store no array with one entry per row
besides their results. A `jax.lax.scan` over blocks would have to pad, and so copy, rows whose
number is not a multiple of the block size.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree


# A block is large enough that its products take longer than what surrounds them, and small enough
# that its scores are a small part of the rows: a block of 1/70 of them keeps temporaries under 2 %.
SMALLEST_BLOCK, LARGEST_BLOCK = 1024, 2048

_Flags = tuple[bool, ...]


def block_size(count: int) -> int:
    """The number of rows of a block, of `count` rows in all; if possible it divides them."""
    largest = min(max(count // 70, SMALLEST_BLOCK), LARGEST_BLOCK)
    if count <= largest:
        return count
    divisors = (size for size in range(largest, largest // 2, -1) if count % size == 0)
    return next(divisors, math.ceil(count / math.ceil(count / largest)))


def fold_blocks(
    fn: Callable[[PyTree, PyTree, Array, Array | None], PyTree],
    rows: PyTree[Array],
    carry: PyTree[Array],
) -> PyTree[Array]:
    """`carry = fn(carry, block, first, valid)` for each block of rows, the rows from `first` on.

    All blocks have the same size. If it doesn't divide the rows, the last block overlaps the one
    before it, and `valid` is False for the rows that are in both; otherwise it is None.
    """
    count = len(jax.tree.leaves(rows)[0])
    if count == 0:
        return carry
    size = block_size(count)

    def body(i: Array, carry: PyTree) -> PyTree:
        first = jnp.minimum(i * size, count - size)
        block = jax.tree.map(lambda row: _sliced(row, first, size), rows)
        valid = first + jnp.arange(size) >= i * size if count % size else None
        return fn(carry, block, first, valid)

    return lax.fori_loop(0, math.ceil(count / size), body, carry)


def _sliced(rows: Array, first: Array, size: int) -> Array:
    if jnp.issubdtype(rows.dtype, jnp.floating) and rows.itemsize < 4:
        # On a CPU XLA computes with these in float32, slices included, and so would widen all rows
        # ahead of the loop. The barrier makes the slice depend on `first` before that.
        rows, first = lax.optimization_barrier((rows, first))
    return lax.dynamic_slice_in_dim(rows, first, size)


def sum_over_rows(
    fn: Callable[[Array | None, PyTree, PyTree], tuple[PyTree, PyTree]],
    rows: PyTree[Array],
    shared: PyTree[Array],
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The sums and the new rows that `fn(valid, block, shared)` gives for all blocks of `rows`.

    `fn` must leave the rows out of its sums that are not valid (see `fold_blocks`). It is compared
    by `==`, so it should be a function of a module and no closure.
    """
    flat_rows, flat_shared = jax.tree.leaves(rows), jax.tree.leaves(shared)
    on_trees = _OnTrees(fn, jax.tree.structure((rows, shared)))
    is_row = (True,) * len(flat_rows) + (False,) * len(flat_shared)
    sums, new_rows = on_trees.shapes(is_row, [*flat_rows, *flat_shared])
    flat = _sum_over_rows_p.bind(
        *flat_rows,
        *flat_shared,
        fn=on_trees,
        is_row=is_row,
        gives_row=(False,) * len(jax.tree.leaves(sums)) + (True,) * len(jax.tree.leaves(new_rows)),
    )
    return jax.tree.unflatten(jax.tree.structure((sums, new_rows)), flat)


# Functions of `valid` and flat arguments, rows and others, which return flat results. They compare
# by value, so that JAX's caches know them.


def _block_shapes(is_row: _Flags, arguments: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the arguments for a block of one row."""
    return [
        jax.ShapeDtypeStruct((1, *a.shape[1:]) if row else a.shape, a.dtype)
        for row, a in zip(is_row, arguments, strict=True)
    ]


def _interleave(flags: _Flags, flagged: Iterable, others: Iterable) -> list:
    """Interleaves two lists: from the first where the flag is True, else from the second."""
    flagged, others = iter(flagged), iter(others)
    return [next(flagged if flag else others) for flag in flags]


def _others(flags: _Flags) -> _Flags:
    return tuple(not flag for flag in flags)


def _chosen(flags: _Flags, items: Sequence) -> list:
    return list(itertools.compress(items, flags))


@dataclasses.dataclass(frozen=True)
class _OnTrees:
    """`fn`, which takes and returns trees."""

    fn: Callable
    structure: Any

    def _trees(self, valid: Array | None, *arguments: Array) -> tuple[PyTree, PyTree]:
        return self.fn(valid, *self.structure.unflatten(arguments))

    def shapes(self, is_row: _Flags, arguments: Sequence[Array]) -> tuple[PyTree, PyTree]:
        return jax.eval_shape(self._trees, None, *_block_shapes(is_row, arguments))

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        return jax.tree.leaves(self._trees(valid, *arguments))


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """`fn` of a batch, whose axis comes after that of the rows, and first in all other arrays."""

    fn: Callable
    is_row: _Flags
    gives_row: _Flags
    is_mapped: _Flags
    size: int

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        axes = [
            int(row) if mapped else None
            for row, mapped in zip(self.is_row, self.is_mapped, strict=True)
        ]
        mapped = jax.vmap(
            self.fn, (None, *axes), list(map(int, self.gives_row)), axis_size=self.size
        )
        return mapped(valid, *arguments)


@dataclasses.dataclass(frozen=True)
class _Tangent:
    """The tangent of `fn`, from its arguments and the tangents of those that move."""

    fn: Callable
    moves: _Flags

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        primals, tangents = arguments[: len(self.moves)], arguments[len(self.moves) :]
        still = _chosen(_others(self.moves), primals)

        def of_moving(*moving: Array) -> list[Array]:
            return self.fn(valid, *_interleave(self.moves, moving, still))

        return jax.jvp(of_moving, tuple(_chosen(self.moves, primals)), tangents)[1]


@dataclasses.dataclass(frozen=True)
class _Transpose:
    """The transpose of `fn`, linear in some arguments, from the others and the cotangents."""

    fn: Callable
    is_linear: _Flags
    is_row: _Flags
    gives_row: _Flags
    linear_shapes: tuple[tuple[tuple[int, ...], Any], ...]

    def __call__(self, valid: Array | None, *arguments: Array) -> list[Array]:
        count = self.is_linear.count(False)
        still, cotangents = arguments[:count], arguments[count:]

        def of_linear(*linear: Array) -> list[Array]:
            return self.fn(valid, *_interleave(self.is_linear, linear, still))

        still_rows = _chosen(_others(self.is_linear), self.is_row)
        size = len(_chosen((*still_rows, *self.gives_row), arguments)[0])
        linear = [
            jax.ShapeDtypeStruct((size, *shape[1:]) if row else shape, dtype)
            for row, (shape, dtype) in zip(
                _chosen(self.is_linear, self.is_row), self.linear_shapes, strict=True
            )
        ]
        # Rows that are not valid are not part of the result, so their cotangents are zero.
        used = [
            _where_valid(valid, c, jnp.zeros_like(c)) if row else c
            for row, c in zip(self.gives_row, cotangents, strict=True)
        ]
        return list(jax.linear_transpose(of_linear, *linear)(used))


def _where_valid(valid: Array | None, rows: Array, others: Array) -> Array:
    if valid is None:
        return rows
    return jnp.where(valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, others)


# The primitive's rules.


def _evaluate(*arguments, fn, is_row, gives_row):
    rows = _chosen(is_row, arguments)
    shared = _chosen(_others(is_row), arguments)

    def add(old: Array, new: Array, is_row: bool, first: Array, valid: Array | None) -> Array:
        if not is_row:
            return old + new
        kept = lax.dynamic_slice_in_dim(old, first, len(new))
        return lax.dynamic_update_slice_in_dim(old, _where_valid(valid, new, kept), first, 0)

    def body(carry, block, first, valid):
        results = fn(valid, *_interleave(is_row, block, shared))
        pairs = zip(carry, results, gives_row, strict=True)
        return [add(old, new, row, first, valid) for old, new, row in pairs]

    shapes = _results(*arguments, fn=fn, is_row=is_row, gives_row=gives_row)
    return fold_blocks(body, rows, [jnp.zeros(s.shape, s.dtype) for s in shapes])


def _results(*arguments, fn, is_row, gives_row):
    """The shapes and dtypes of the results."""
    count = _chosen(is_row, arguments)[0].shape[0]
    results = jax.eval_shape(fn, None, *_block_shapes(is_row, arguments))
    return [
        ShapedArray((count, *r.shape[1:]) if row else r.shape, r.dtype)
        for row, r in zip(gives_row, results, strict=True)
    ]


def _jvp(primals, tangents, *, fn, is_row, gives_row):
    moves = tuple(type(t) is not ad.Zero for t in tangents)
    out = _sum_over_rows_p.bind(*primals, fn=fn, is_row=is_row, gives_row=gives_row)
    d_out = _sum_over_rows_p.bind(
        *primals,
        *_chosen(moves, tangents),
        fn=_Tangent(fn, moves),
        is_row=(*is_row, *_chosen(moves, is_row)),
        gives_row=gives_row,
    )
    return out, d_out


def _transpose(cotangents, *arguments, fn, is_row, gives_row):
    is_linear = tuple(map(ad.is_undefined_primal, arguments))
    still = _others(is_linear)
    avals = [a.aval for a in _chosen(is_linear, arguments)]
    shapes = tuple((aval.shape, aval.dtype) for aval in avals)
    found = _sum_over_rows_p.bind(
        *_chosen(still, arguments),
        *map(ad.instantiate_zeros, cotangents),
        fn=_Transpose(fn, is_linear, is_row, gives_row, shapes),
        is_row=(*_chosen(still, is_row), *gives_row),
        gives_row=tuple(_chosen(is_linear, is_row)),
    )
    return _interleave(is_linear, found, itertools.repeat(None))


def _batch(arguments, axes, *, fn, is_row, gives_row):
    is_mapped = tuple(axis is not None for axis in axes)
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    moved = [
        jnp.moveaxis(a, axis, int(row)) if mapped else a
        for a, axis, row, mapped in zip(arguments, axes, is_row, is_mapped, strict=True)
    ]
    mapped = _Mapped(fn, is_row, gives_row, is_mapped, size)
    out = _sum_over_rows_p.bind(*moved, fn=mapped, is_row=is_row, gives_row=gives_row)
    return out, list(map(int, gives_row))


_sum_over_rows_p = jax.extend.core.Primitive("sum_over_rows")
_sum_over_rows_p.multiple_results = True
_sum_over_rows_p.def_impl(jax.jit(_evaluate, static_argnames=("fn", "is_row", "gives_row")))
_sum_over_rows_p.def_abstract_eval(_results)
ad.primitive_jvps[_sum_over_rows_p] = _jvp
ad.primitive_transposes[_sum_over_rows_p] = _transpose
batching.primitive_batchers[_sum_over_rows_p] = _batch
mlir.register_lowering(_sum_over_rows_p, mlir.lower_fun(_evaluate, multiple_results=True))
