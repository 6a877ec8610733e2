"""The entmax of scores, whose threshold is sought in repeated passes over the patterns.

The formulas are those of `entmax`, but for the largest score: two passes may round it differently,
so it can't be recognized by comparison, and its share is included in the sums over all patterns.
Those of sparsemax, α = 2, are written out, as they need no logarithm: g = (d + max g)₊.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._trees import filled
from .elementary import exponent_below, scaled_exp
from .entmax import find_threshold, Units, units
from .scores import AbstractStreamed, Block, Scores, Slopes
from .softmax import finite_shift
from .streaming import MAXIMUM


class _Shares(NamedTuple):
    """What determines the share g of a pattern by its score h; α is None for sparsemax."""

    beta: Array
    alpha: Array | None
    largest: Array  # m
    t: Array
    step: Array

    def exponent(self, h: Array) -> Array:
        return exponent_below(self.beta, h, self.largest)

    def units(self, h: Array) -> Units:
        return units(self.exponent(h), self.t, self.step, self.alpha)

    def sparsemax(self, h: Array) -> Array:
        """g for α = 2."""
        g = self.exponent(h) + jnp.exp(self.t) * (1 - self.step)
        return jnp.where(g <= 0, 0, g)


def _largest(block: Block, _: None) -> Array:
    return block.largest


class _Result(NamedTuple):
    """The shares at their threshold, and the sums over them."""

    shares: _Shares
    value: Array  # L − m
    slopes: Slopes  # Σ g ξ


def _sums(scores: Scores, shares: _Shares) -> tuple[Slopes, tuple[Array, Array]]:
    return scores.sums(_weights_and_terms, shares)


@eqx.filter_custom_jvp
@jax.jit
def _result(scores: Scores, beta: Array, alpha: Array | None) -> _Result:
    zero = jnp.zeros_like(beta)
    largest = finite_shift(scores.reduce(MAXIMUM, _largest, None))

    def excess(t: Array) -> tuple[Array, Array]:
        shares = _Shares(beta, alpha, largest, t, zero)
        total, slope = scores.sums(_total_and_slope, shares)[1]
        return total - 1, slope if alpha is not None else jnp.exp(t) * slope

    low = -jnp.log(jnp.asarray(len(scores.rows.patterns[0]), zero.dtype))
    t, step = find_threshold(excess, zero, low, alpha)
    shares = _Shares(beta, alpha, largest, t, step)
    slopes, (total, value) = _sums(scores, shares)
    # Without any pattern both sums are 0, with NaN among the scores the slopes are NaN.
    total = jnp.where((total > 0) | jnp.isnan(largest), total, 1)
    return _Result(shares, value, tuple(slope / total for slope in slopes))


@_result.def_jvp
def _result_jvp(primals, tangents):
    """The change at fixed t, in one pass, and that with t, which keeps Σ g at 1.

    The choice of m changes t but not g, so its tangent may be chosen: it is Σ g ξ·dg, the mean of
    what dg changes in h, as in `streamed_softmax`.
    """
    (scores, beta, _), (d_scores, d_beta, d_alpha) = primals, tangents
    result = _result(*primals)
    pairs = zip(result.slopes, d_scores.gs, strict=True)
    d_largest = sum((s @ dg for s, dg in pairs if dg is not None), jnp.zeros_like(beta))
    primals = (scores, result.shares)
    # Tangents of None are 0.
    still_scores, still = filled(primals, None)
    moves = still._replace(beta=d_beta, alpha=d_alpha, largest=d_largest)
    _, change = eqx.filter_jvp(_sums, primals, (d_scores, moves))
    by_t = (still_scores, still._replace(t=jnp.ones_like(beta)))
    _, slope = eqx.filter_jvp(_sums, primals, by_t)
    # Without any pattern both are 0.
    d_t = -change[1][0] / jnp.where(slope[1][0] > 0, slope[1][0], 1)
    d_slopes, (_, d_value) = jax.tree.map(lambda a, b: a + d_t * b, change, slope)
    return result, _Result(moves._replace(t=d_t), d_value, d_slopes)


def _total_and_slope(h: Array, shares: _Shares) -> tuple[None, tuple[Array, Array]]:
    """g and g/ratio; for sparsemax the latter is divided by max g, so that its sum is a count."""
    if shares.alpha is None:
        g = shares.sparsemax(h)
        return None, (g, (g > 0).astype(g.dtype))
    g, _, ratio = shares.units(h)
    return None, (g, g / ratio)


def _weights_and_terms(h: Array, shares: _Shares) -> tuple[Array, tuple[Array, Array]]:
    # L = m + Σ g d/β − Ω(g)
    if shares.alpha is None:
        g = shares.sparsemax(h)
        return g, (g, g * (shares.exponent(h) + (1 - g) / 2) / shares.beta)
    g, log, _ = shares.units(h)
    assert log is not None
    order = shares.alpha - 1
    cost = (shares.exponent(h) - jnp.expm1(order * log) / (shares.alpha * order)) / shares.beta
    return g, (g, jnp.where(g > 0, scaled_exp(cost, log), 0))


class StreamedEntmax(AbstractStreamed):
    """L = max p·h − Ω(p) over the simplex, Ω(p) = Σ (pᵅ − p)/(βα(α−1)); α is None for 2."""

    beta: Float[Array, ""]
    alpha: Float[Array, ""] | None

    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        result = _result(scores, self.beta, self.alpha)
        return result.shares.largest + result.value, result.slopes
