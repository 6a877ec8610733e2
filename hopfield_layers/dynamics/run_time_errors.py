"""Errors that depend on the values of arrays.

Where the values are known, Python raises the errors. Under an outer transformation the values are
unknown, and the compiled program has to call Python. A program for several devices can't do so: the
other devices would wait for the one that fails, until the process is aborted (Equinox issue 1232).
There the results are NaN instead.
"""

import functools as ft
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.custom_partitioning import custom_partitioning
from jaxtyping import Array, Bool, Int

from .._meshes import is_under_shard_map


_T = TypeVar("_T")


class Errors(eqx.Module):
    """The messages of the errors that a program checks for, and the index of the first it found."""

    messages: tuple[str, ...] = eqx.field(static=True)
    index: Int[Array, ""]  # −1 for none

    @classmethod
    def of(cls, flags: Mapping[str, Bool[Array, ""]]) -> "Errors":
        """The errors of a dict from messages to flags, which are True for an error."""
        # The last flag stands for no error.
        failed = jnp.array([*flags.values(), True])
        first = jnp.argmax(failed)
        return cls(tuple(flags), jnp.where(first == len(flags), -1, first))

    def __or__(self, other: "Errors") -> "Errors":
        later = jnp.where(other.index < 0, -1, other.index + len(self.messages))
        index = jnp.where(self.index < 0, later, self.index)
        return Errors(self.messages + other.messages, index)


# These are functions because calling a method of a Module takes some 20 µs more, in every solve.


def known_error(errors: Errors) -> str | None:
    """The message of the error, or None if there is none or its index is traced."""
    if isinstance(errors.index, Tracer) or (index := np.asarray(errors.index).item()) < 0:
        return None
    return errors.messages[index]


def raised_in(errors: Errors, tree: _T) -> _T:
    """`tree`, or at run time the error if there is one and its index is traced."""
    if not isinstance(errors.index, Tracer):
        return tree
    index = eqxi.unvmap_max(errors.index)

    def raise_error(failed: Array, index: Array) -> Array:
        return eqx.branched_error_if(jnp.ones(()), failed, index, errors.messages)

    return unless(index >= 0, tree, raise_error, index)


def unless(
    failed: Bool[Array, ""], tree: _T, raise_error: Callable[..., Array], *arguments: Array
) -> _T:
    """`tree`, or the error that `raise_error(failed, *arguments)` raises if `failed` is True.

    `raise_error` returns 1 otherwise. A program for several devices returns NaN instead of raising
    the error.
    """

    def nan(failed: Array, *_: Array) -> Array:
        return jnp.where(failed, jnp.nan, jnp.ones(()))

    def partition(mesh, arguments, result):
        return mesh, nan, result.sharding, tuple(argument.sharding for argument in arguments)

    def rule(mesh, arguments, results):
        axes = [" ".join(f"a{i}{j}" for j in range(a.rank)) for i, a in enumerate(arguments)]
        return f"{', '.join(axes)} ->"

    if is_under_shard_map():
        one = nan(failed)
    else:
        # On one device this is `raise_error` itself.
        check = custom_partitioning(raise_error)
        check.def_partition(partition, sharding_rule=rule)
        one = check(failed, *arguments)
    # Only a scalar passes through the check, so that no array is gathered for it.
    return jax.tree.map(ft.partial(_where, one == 1), tree)


def nan_like(x: Array) -> Array:
    """NaN, or the largest integer, of x's shape and dtype."""
    is_float = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.full_like(x, jnp.nan if is_float else jnp.iinfo(x.dtype).max)


def _where(is_right: Array, x: Any) -> Any:
    if not eqx.is_array(x) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return x & is_right if x.dtype == bool else jnp.where(is_right, x, nan_like(x))
