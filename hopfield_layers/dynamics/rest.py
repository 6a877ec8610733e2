"""Tolerances and results of relaxations, and the loop over their steps."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .state_trees import largest
from .while_loop import while_loop


_State = TypeVar("_State", bound=tuple)


class Rest(NamedTuple):
    """The state at which a relaxation ended."""

    x: PyTree[Array]
    energy: Float[Array, ""]
    residual: Float[Array, ""]  # the largest |τ dx/dt|
    converged: Bool[Array, ""]
    time: Float[Array, ""] | None  # None where no flow was followed
    num_steps: Int[Array, ""]


class Tolerance(eqx.Module):
    """A unit is at rest where |τ dx/dt| < atol + rtol |x|."""

    rtol: Any
    atol: Any

    def distance(self, force: PyTree[Array], x: PyTree[Array]) -> Array:
        """The largest |τ dx/dt| in units of its bound, less than 1 at rest."""
        return largest(
            jax.tree.map(lambda f, x: f / (self.atol + self.rtol * jnp.abs(x)), force, x)
        )


# A power of the largest number of the dtype. Squares may overflow there, but where activations are
# bounded a rest may be as far away.
FAR = 0.6


def limit_of(size: Float[Array, ""]) -> Float[Array, ""]:
    """The |x| beyond which the energy is assumed to have no lower bound, given |x| at the start."""
    return jnp.maximum(float(jnp.finfo(size.dtype).max) ** FAR, 1e3 * size)


def known_values(x: Array | np.ndarray) -> np.ndarray:
    """x, with 0 for the entries that other processes hold."""
    if not isinstance(x, Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    known = np.zeros(x.shape, x.dtype)
    for shard in x.addressable_shards:
        known[shard.index] = shard.data
    return known


def of_samples(mask: Bool[ArrayLike, "*batch"]) -> str:
    """The part of an error message that lists the samples of a mask; empty without batch axes."""
    mask = np.asarray(mask)
    if mask.ndim == 0:
        return ""
    which = np.argwhere(mask)
    first = ", ".join(str(tuple(map(int, index))) for index in which[:5])
    some = "among them " if len(which) > 5 else ""
    return f" in {len(which)} of {mask.size} samples, {some}{first}"


def until_rest(
    is_moving: Callable[[_State], Array],
    step: Callable[[_State], _State],
    start: _State,
    max_steps: int,
    meter: diffrax.AbstractProgressMeter,
) -> _State:
    """Takes steps while `is_moving`, and shows their number as a share of `max_steps` on `meter`.

    The last entry of a state is the number of steps.
    """

    def metered(carry):
        state, shown = carry
        state = step(state)
        return state, meter.step(shown, state[-1] / max_steps)

    state, shown = while_loop(lambda carry: is_moving(carry[0]), metered, (start, meter.init()))
    meter.close(shown)
    return state
