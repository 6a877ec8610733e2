"""Trees of arrays: the same entry of all arrays, and one value for all leaves."""

from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree


_T = TypeVar("_T")


def entries(tree: _T, index: int | Array | np.ndarray) -> _T:
    """The entries of all arrays at this index of their first axis."""
    return jax.tree.map(lambda x: x[index], tree)


def filled(tree: PyTree, value: object) -> Any:
    """A tree like this one with the same value at all leaves."""
    return jax.tree.map(lambda _: value, tree)


def is_none(node: object) -> bool:
    """Whether a node of a tree is None, which is no leaf by itself."""
    return node is None
