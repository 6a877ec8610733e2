"""L of the scores of hidden units, streamed over blocks of patterns where L allows it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from .._meshes import check_axes, on_each_device
from .._numerics.scores import AbstractStreamed, Scores, Slopes, streamed_value
from .._numerics.streamed_entmax import StreamedEntmax
from .._numerics.streamed_softmax import StreamedSoftmax
from .._numerics.streaming import block_size
from .base import AbstractElementwise, AbstractLagrangian, AbstractWideLagrangian, pure
from .callables import CallableLagrangian
from .simplex import LEntmax, LGhostmax, LSoftmax, LSparsemax


# Lagrangians whose activation vanishes far below the largest score.
_SIMPLEX = (LSoftmax, LGhostmax, LSparsemax, LEntmax)


def value_of_scores(lagrangian: AbstractLagrangian, scores: Scores) -> Float[Array, ""]:
    """L of the scores that are not masked."""
    check_axes(scores, "a memory and its states")
    streamed, mask = _streamed(lagrangian, scores), scores.rows.mask
    if streamed is not None:
        return on_each_device(streamed_value, streamed, scores)
    h = scores.all().h
    if mask is None:
        return row_value(lagrangian, h)
    if not lagrangian.coupled_axes(1):
        return jnp.sum(jnp.where(mask, _each(lagrangian, h), 0))
    # A masked score is set far below all others, but no difference of scores may overflow.
    any_left = jnp.any(mask)
    lowest = jnp.where(any_left, -(float(jnp.finfo(h.dtype).max) ** 0.9), 0).astype(h.dtype)
    return jnp.where(any_left, row_value(lagrangian, jnp.where(mask, h, lowest)), 0)


def row_value(lagrangian: AbstractLagrangian, h: Array) -> Float[Array, ""]:
    """L of a row of hidden units, whose derivative is the activation in closed form."""
    # A function may close over a traced value, and a custom rule would lose its derivative.
    if isinstance(lagrangian, CallableLagrangian):
        return pure(lagrangian).value(h)
    return _row_value(lagrangian, h)


@eqx.filter_custom_jvp
def _row_value(lagrangian: AbstractLagrangian, h: Array) -> Array:
    return pure(lagrangian).value(h)


@_row_value.def_jvp
def _row_value_jvp(primals, tangents):
    (lagrangian, h), (d_lagrangian, dh) = primals, tangents
    tangent = jnp.zeros((), h.dtype)
    if dh is not None:
        tangent += jnp.sum(pure(lagrangian).activation(h) * dh)
    if jax.tree.leaves(d_lagrangian):

        def of_parameters(lagrangian: AbstractLagrangian) -> Array:
            return pure(lagrangian).value(h)

        tangent += eqx.filter_jvp(of_parameters, (lagrangian,), (d_lagrangian,))[1]
    return _row_value(lagrangian, h), tangent


def as_mask(
    mask: Shaped[ArrayLike, "..."] | None,
    lagrangian: AbstractLagrangian,
    shape: tuple[int, ...],
    axes: str,
) -> Bool[Array, "..."] | None:
    """`mask` as an array, or an error if it doesn't fit the shape, the dtype or the Lagrangian."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != bool or mask.shape != shape:
        got = f"{mask.dtype}{list(mask.shape)}"
        raise ValueError(f"Expected a boolean mask of shape {shape}, {axes}, got {got}.")
    if not isinstance(lagrangian, _SIMPLEX) and lagrangian.coupled_axes(1):
        raise ValueError(
            "A mask needs a Lagrangian that can leave a unit out: one with a term per unit, or one "
            f"whose activations are 0 far below the largest score. {lagrangian!r} is neither."
        )
    return mask


# Sparsemax and entmax read the patterns several times, and so do derivatives of other Lagrangians.
# They form all scores at once if these need no more memory than this many states.
_STATES_OF_SCORES = 16


def _streamed(lagrangian: AbstractLagrangian, scores: Scores) -> AbstractStreamed | None:
    """The Lagrangian as a sum over blocks of scores, or None if all scores are formed at once."""
    count, units = len(scores.rows.patterns[0]), sum(map(len, scores.gs))
    # A function may close over a traced value, whose derivative would be lost.
    if block_size(count) == count or isinstance(lagrangian, CallableLagrangian):
        return None
    if isinstance(lagrangian, AbstractWideLagrangian):
        lagrangian = lagrangian._in_domain(scores.gs[0].dtype)
    online = isinstance(lagrangian, LSoftmax | LGhostmax)
    if not online and count <= _STATES_OF_SCORES * units:
        return None
    match lagrangian:
        case LSoftmax(beta=beta):
            return StreamedSoftmax(beta, ghost=False)
        case LGhostmax(beta=beta):
            return StreamedSoftmax(beta, ghost=True)
        case LSparsemax(beta=beta):
            return StreamedEntmax(beta, None)
        case LEntmax(beta=beta, alpha=alpha):
            return StreamedEntmax(beta, alpha)
    has_terms = not lagrangian.coupled_axes(1)
    arrays = all(map(eqx.is_array, jax.tree.leaves(lagrangian)))
    return _StreamedTerms(lagrangian) if has_terms and arrays else None


class _StreamedTerms(AbstractStreamed):
    """A Lagrangian with a term per unit."""

    lagrangian: AbstractLagrangian

    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        slopes, value = scores.sums(_activations_and_terms, self.lagrangian)
        return value, slopes


def _activations_and_terms(h: Array, lagrangian: AbstractLagrangian) -> tuple[Array, Array]:
    return pure(lagrangian).activation(h), _each(lagrangian, h)


def _each(lagrangian: AbstractLagrangian, h: Array) -> Array:
    """The term of each unit."""
    if isinstance(lagrangian, AbstractElementwise):
        return lagrangian._in_domain(h.dtype)._value_terms(h)
    return jax.vmap(row_value, (None, 0))(lagrangian, h[:, None])
