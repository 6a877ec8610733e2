"""Sums over the rows of large arrays, one block of rows at a time.

`sum_over_rows(fn, rows, shared)` sums the results of `fn` over blocks of rows. It is a JAX
primitive, because its derivatives have the same form, with additional results that have one entry
per row:

- the tangent of a sum is the sum of the tangents of the blocks;
- in the transpose, the cotangent of a sum is shared by all blocks, and that of a result with one
  entry per row is a row; the cotangents of shared arrays are sums, and those of rows are rows;
- under `vmap` over the shared arrays, each block is read once for the whole batch.

If the rows are divided among devices, each device sums its own rows, and the sums of all devices
are added up in one reduction. `reduce_over_rows` does the same for other ways to merge results, but
is not differentiated.

Derivatives of any order thus evaluate the blocks again, and store no array with one entry per row
except their results. A `jax.lax.scan` over blocks would have to pad, and therefore copy, the rows
if their number is not a multiple of the block size.
"""

import functools as ft
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax
from jax._src import dispatch
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from .block_functions import (
    batch_sizes,
    block_shapes,
    chosen,
    interleave,
    Mapped,
    OnTrees,
    others,
    Tangent,
    Transpose,
    where_valid,
)
from .partitioned import MeshAxes, partitioned


# On a CPU a block is so large that its products take longer than the loop's overhead, and so small
# that its scores need little memory: with blocks of 1/100 of the rows, temporaries stay below 2 %
# of them.
SMALLEST_BLOCK, LARGEST_BLOCK = 1024, 2048
# On accelerators it takes microseconds to start an operation, so blocks are larger. They have at
# most this many numbers, scores and entries of rows, unless the blocks for CPUs have more.
NUMBERS_ON_ACCELERATORS = 2**25
# If the states have at most this many scores in all, the rows are one block, which isn't copied.
# Rows of a narrow dtype are split even then, because each block is widened.
FEW_SCORES = 2**15


def block_size(count: int, width: int | None = None) -> int:
    """The number of rows of a block, of `count` rows in all; if possible it divides them.

    On accelerators `width` is given, the number of scores and entries of a row.
    """
    largest = min(max(count // 100, SMALLEST_BLOCK), LARGEST_BLOCK)
    if width is not None:
        largest = max(largest, NUMBERS_ON_ACCELERATORS // max(width, 1))
    if count <= largest:
        return count
    divisors = (size for size in range(largest, largest // 2, -1) if count % size == 0)
    return next(divisors, math.ceil(count / math.ceil(count / largest)))


def _fold_blocks(
    fn: Callable[[PyTree, list[Array], Array, Array | None], PyTree],
    rows: list[Array],
    carry: PyTree[Array],
    num_states: int,
    on_cpu: bool,
) -> PyTree[Array]:
    """`carry = fn(carry, block, first, valid)` for each block of rows, the rows from `first` on.

    All blocks have the same size. If it doesn't divide the number of rows, the last block overlaps
    the previous one, and `valid` is False for the rows in both; otherwise `valid` is None.
    """
    count = len(rows[0])
    if count == 0:
        return carry
    width = num_states + sum(math.prod(row.shape[1:]) for row in rows)
    size = block_size(count, None if on_cpu else width)
    is_narrow = any(row.itemsize < 4 and row.ndim > 1 for row in rows)
    if count == size or (count * num_states <= FEW_SCORES and not is_narrow):
        return fn(carry, rows, jnp.array(0), None)

    def body(i: Array, carry: PyTree) -> PyTree:
        first = jnp.minimum(i * size, count - size)
        block = [_sliced(row, first, size) for row in rows]
        valid = first + jnp.arange(size) >= i * size if count % size else None
        return fn(carry, block, first, valid)

    return lax.fori_loop(0, math.ceil(count / size), body, carry)


def _sliced(rows: Array, first: Array, size: int) -> Array:
    if jnp.issubdtype(rows.dtype, jnp.floating) and rows.itemsize < 4:
        # On a CPU XLA computes with narrow dtypes in float32, slices included, and would widen all
        # rows before the loop. The barrier prevents this, as the rows then depend on `first`.
        rows, first = lax.optimization_barrier((rows, first))
    return lax.dynamic_slice_in_dim(rows, first, size)


class Reduction(NamedTuple):
    """How the results of disjoint sets of rows are merged into those of their union.

    Without rows the first result is `start`, and the others are 0. `merge` joins two lists of
    results, and `across` joins those of several devices, along the given axes of the mesh. Both get
    all results at once, with the axes of a batch in front.
    """

    start: float
    merge: Callable[[list[Array], list[Array]], list[Array]]
    across: Callable[[list[Array], list[MeshAxes]], list[Array]]


def _add(a: list[Array], b: list[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _add_across(results: list[Array], axes: list[MeshAxes]) -> list[Array]:
    return [lax.psum(x, names) if names else x for x, names in zip(results, axes, strict=True)]


_SUM = Reduction(0.0, _add, _add_across)


def _maximum(a: list[Array], b: list[Array]) -> list[Array]:
    return [jnp.maximum(x, y) for x, y in zip(a, b, strict=True)]


def _maximum_across(results: list[Array], axes: list[MeshAxes]) -> list[Array]:
    return [lax.pmax(x, names) if names else x for x, names in zip(results, axes, strict=True)]


MAXIMUM = Reduction(-math.inf, _maximum, _maximum_across)


def sum_over_rows(
    fn: Callable[[Array | None, PyTree, PyTree], PyTree], rows: PyTree[Array], shared: PyTree[Array]
) -> PyTree[Array]:
    """The sums of the results of `fn(valid, block, shared)` over all blocks of `rows`.

    `fn` must leave rows that are not valid out of its sums (see `_fold_blocks`). It is compared by
    `==`, so it should be a module-level function and not a closure.
    """
    return reduce_over_rows(_SUM, fn, rows, shared)


def reduce_over_rows(
    reduction: Reduction,
    fn: Callable[[Array | None, PyTree, PyTree], PyTree],
    rows: PyTree[Array],
    shared: PyTree[Array],
) -> PyTree[Array]:
    """`fn(valid, block, shared)`, merged over all blocks; only sums have derivatives.

    As for `sum_over_rows`, `fn` leaves out rows that are not valid, and is not a closure.
    """
    flat_rows, flat_shared = jax.tree.leaves(rows), jax.tree.leaves(shared)
    on_trees = OnTrees(fn, jax.tree.structure((rows, shared)))
    is_row = (True,) * len(flat_rows) + (False,) * len(flat_shared)
    results = on_trees.shapes(is_row, [*flat_rows, *flat_shared])
    gives_row = (False,) * len(jax.tree.leaves(results))
    how = {"fn": on_trees, "is_row": is_row, "gives_row": gives_row, "reduction": reduction}
    flat = _reduce_over_rows_p.bind(*flat_rows, *flat_shared, **how)
    return jax.tree.unflatten(jax.tree.structure(results), flat)


# The primitive's rules.


def _evaluate(*arguments, on_cpu, fn, is_row, gives_row, reduction):
    """The results on one device."""
    rows = chosen(is_row, arguments)
    shared = chosen(others(is_row), arguments)

    def write(old: Array, new: Array, first: Array, valid: Array | None) -> Array:
        kept = lax.dynamic_slice_in_dim(old, first, len(new))
        return lax.dynamic_update_slice_in_dim(old, where_valid(valid, new, kept), first, 0)

    def body(carry, block, first, valid):
        merged, new_rows = carry
        results = fn(valid, *interleave(is_row, block, shared))
        pairs = zip(new_rows, chosen(gives_row, results), strict=True)
        written = [write(old, new, first, valid) for old, new in pairs]
        return reduction.merge(merged, chosen(others(gives_row), results)), written

    how = {"is_row": is_row, "gives_row": gives_row, "reduction": reduction}
    shapes = _results(*arguments, fn=fn, **how)
    merged = [jnp.zeros(s.shape, s.dtype) for s in chosen(others(gives_row), shapes)]
    merged[:1] = [jnp.full_like(x, reduction.start) for x in merged[:1]]
    new_rows = [jnp.zeros(s.shape, s.dtype) for s in chosen(gives_row, shapes)]
    batches, _ = fn.batches(len(is_row), len(gives_row))
    num_states = math.prod(batch_sizes(arguments, is_row, batches).values())
    merged, new_rows = _fold_blocks(body, rows, (merged, new_rows), num_states, on_cpu)
    return interleave(gives_row, new_rows, merged)


def _partitioned(*arguments, on_cpu, fn, is_row, gives_row, reduction):
    """The results, on all devices among which the rows and the batch are divided."""
    batches, result_batches = fn.batches(len(is_row), len(gives_row))
    how = {"fn": fn, "is_row": is_row, "gives_row": gives_row, "reduction": reduction}

    def on_one_device(*arguments):
        return _evaluate(*arguments, on_cpu=on_cpu, **how)

    axes, result_axes = map(_axes, is_row, batches), map(_axes, gives_row, result_batches)
    return partitioned(on_one_device, reduction.across, axes, result_axes)(*arguments)


def _axes(is_row: bool, batches: tuple[int, ...]) -> tuple[str, ...]:
    """The names of the leading axes of an array."""
    return ("rows",) * is_row + tuple(f"batch{i}" for i in batches)


def _results(*arguments, fn, is_row, gives_row, reduction):
    """The shapes and dtypes of the results."""
    del reduction
    count = chosen(is_row, arguments)[0].shape[0]
    results = jax.eval_shape(fn, None, *block_shapes(is_row, arguments))
    return [
        ShapedArray((count, *r.shape[1:]) if row else r.shape, r.dtype)
        for row, r in zip(gives_row, results, strict=True)
    ]


def _jvp(primals, tangents, *, fn, is_row, gives_row, reduction):
    assert reduction is _SUM
    moves = tuple(type(t) is not ad.Zero for t in tangents)
    how = {"gives_row": gives_row, "reduction": reduction}
    out = _reduce_over_rows_p.bind(*primals, fn=fn, is_row=is_row, **how)
    d_out = _reduce_over_rows_p.bind(
        *primals,
        *chosen(moves, tangents),
        fn=Tangent(fn, moves),
        is_row=(*is_row, *chosen(moves, is_row)),
        **how,
    )
    return out, d_out


def _transpose(cotangents, *arguments, fn, is_row, gives_row, reduction):
    is_linear = tuple(map(ad.is_undefined_primal, arguments))
    still = others(is_linear)
    avals = [a.aval for a in chosen(is_linear, arguments)]
    shapes = tuple((aval.shape, aval.dtype) for aval in avals)
    found = _reduce_over_rows_p.bind(
        *chosen(still, arguments),
        *map(ad.instantiate_zeros, cotangents),
        fn=Transpose(fn, is_linear, is_row, gives_row, shapes),
        is_row=(*chosen(still, is_row), *gives_row),
        gives_row=tuple(chosen(is_linear, is_row)),
        reduction=reduction,
    )
    return interleave(is_linear, found, itertools.repeat(None))


def _batch(arguments, axes, *, fn, is_row, gives_row, reduction):
    is_mapped = tuple(axis is not None for axis in axes)
    moved = [
        jnp.moveaxis(a, axis, int(row)) if mapped else a
        for a, axis, row, mapped in zip(arguments, axes, is_row, is_mapped, strict=True)
    ]
    mapped = Mapped(fn, is_row, gives_row, is_mapped)
    how = {"is_row": is_row, "gives_row": gives_row, "reduction": reduction}
    out = _reduce_over_rows_p.bind(*moved, fn=mapped, **how)
    return out, list(map(int, gives_row))


_reduce_over_rows_p = jax.extend.core.Primitive("reduce_over_rows")
_reduce_over_rows_p.multiple_results = True
dispatch.simple_impl(_reduce_over_rows_p)
_reduce_over_rows_p.def_abstract_eval(_results)
ad.primitive_jvps[_reduce_over_rows_p] = _jvp
ad.primitive_transposes[_reduce_over_rows_p] = _transpose
batching.primitive_batchers[_reduce_over_rows_p] = _batch
# A lowering with custom partitioning needs the devices, and JAX has no public way to declare it.
dispatch.prim_requires_devices_during_lowering.add(_reduce_over_rows_p)
for platform, on_cpu in (("cpu", True), (None, False)):  # None is every other platform
    rule = mlir.lower_fun(ft.partial(_partitioned, on_cpu=on_cpu), multiple_results=True)
    mlir.register_lowering(_reduce_over_rows_p, rule, platform)
