"""The saved states and times of a solution, which diffrax declares as optional."""

from typing import Any

import diffrax
from jaxtyping import Array


def saved(solution: diffrax.Solution) -> Any:
    """The states that were saved."""
    assert solution.ys is not None
    return solution.ys


def saved_times(solution: diffrax.Solution) -> Array:
    """The times at which they were saved."""
    assert solution.ts is not None
    return solution.ts
