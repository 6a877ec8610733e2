"""Functions that need much memory for each sample, evaluated for a part of a batch at a time."""

import functools as ft
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from .._meshes import is_on_mesh
from .._trees import filled


_T = TypeVar("_T")


def map_in_parts(fn: Callable[..., _T], largest: int, *arguments: PyTree[Array]) -> _T:
    """`fn(*arguments)`, which under `jax.vmap` is evaluated for part of the batch at a time.

    A part has at most `largest` samples along the innermost axis of the batch. On accelerators,
    which need large batches, and where a batch may be divided among devices it stays whole. `fn`
    may close over arrays of the batch. The result has no derivatives.
    """
    # The function below must not close over arrays that may have a batch axis.
    closed = eqx.filter_closure_convert(fn, *arguments)
    arrays, static = eqx.partition(closed, eqx.is_array)

    @custom_vmap
    def run(arrays, arguments):
        return eqx.combine(arrays, static)(*arguments)

    @run.def_vmap
    def _(size, in_batched, *operands):
        leaves, structure = jax.tree.flatten(operands)
        leaves = [jnp.asarray(x) for x in leaves]  # JAX may turn constants into numbers
        has_batch = jax.tree.leaves(in_batched)
        batched = [x for x, has in zip(leaves, has_batch, strict=True) if has]

        def sample(batched):
            rest = iter(batched)
            both = [next(rest) if has else x for x, has in zip(leaves, has_batch, strict=True)]
            arrays, arguments = structure.unflatten(both)
            return eqx.combine(arrays, static)(*arguments)

        whole = jax.vmap(sample)
        in_parts = ft.partial(jax.lax.map, sample, batch_size=_part(size, largest))
        # `jax.lax.map` can't divide arrays without entries.
        is_empty = any(x.size == 0 for x in leaves)
        if size <= largest or is_on_mesh(batched) or is_empty:
            results = whole(batched)
        else:
            results = jax.lax.platform_dependent(batched, cpu=in_parts, default=whole)
        return results, filled(results, True)

    return run(arrays, arguments)


def _part(size: int, largest: int) -> int:
    """The number of samples of a part, which divides that of the batch if possible."""
    divisors = (part for part in range(largest, largest // 2, -1) if size % part == 0)
    return next(divisors, largest)
