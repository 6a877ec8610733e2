"""The entmax of scores, whose threshold is sought in repeated passes over the patterns.

The formulas are those of `entmax`, but for the largest score: two passes may round it differently,
so it can't be recognized by comparison, and its share is included in the sums over all patterns.
Those of sparsemax, α = 2, are written out, as they need no logarithm: g = (d + max g)₊.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .elementary import exponent_below, scaled_exp
from .entmax import find_threshold, Units, units
from .scores import AbstractStreamed, Block, Scores, Slopes
from .softmax import finite_shift
from .streaming import MAXIMUM


class _Shares(eqx.Module):
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

    def shares(self, h: Array) -> tuple[Array, Array]:
        """g, and its derivative with respect to t."""
        if self.alpha is not None:
            g, _, ratio = self.units(h)
            return g, g / ratio
        largest_share = jnp.exp(self.t) * (1 - self.step)
        g = jnp.maximum(self.exponent(h) + largest_share, 0)
        return g, jnp.where(g > 0, largest_share, 0)


def _largest(block: Block, _: None) -> Array:
    return block.largest


@eqx.filter_custom_jvp
@jax.jit
def _threshold(scores: Scores, beta: Array, alpha: Array | None) -> tuple[Array, Array, Array]:
    """m, the t at which the shares sum to 1, and the step left at it."""
    zero = jnp.zeros_like(beta)
    largest = finite_shift(scores.reduce(MAXIMUM, _largest, None))

    def sums(t: Array) -> tuple[Array, Array]:
        shares = _Shares(beta, alpha, largest, t, zero)
        total, slope = scores.sums(_total_and_slope, shares)[1]
        return total - 1, slope

    low = -jnp.log(jnp.asarray(len(scores.rows.patterns[0]), zero.dtype))
    return largest, *find_threshold(sums, zero, low, 2.0 if alpha is None else alpha)


@_threshold.def_jvp
def _threshold_jvp(primals, tangents):
    largest, t, step = _threshold(*primals)

    def sums(scores: Scores, beta: Array, alpha: Array | None) -> tuple[Array, Array]:
        return scores.sums(_total_and_slope, _Shares(beta, alpha, largest, t, step))[1]

    (_, slope), (d_total, _) = eqx.filter_jvp(sums, primals, tangents)
    return (largest, t, step), (None, -d_total / slope, None)


def _total_and_slope(h: Array, shares: _Shares) -> tuple[None, tuple[Array, Array]]:
    return None, shares.shares(h)


def _weights_and_terms(h: Array, shares: _Shares) -> tuple[Array, tuple[Array, Array]]:
    # L = m + Σ g d/β − Ω(g)
    if shares.alpha is None:
        g, _ = shares.shares(h)
        return g, (g, g * (shares.exponent(h) + (1 - g) / 2) / shares.beta)
    g, log, _ = shares.units(h)
    order = shares.alpha - 1
    cost = (shares.exponent(h) - jnp.expm1(order * log) / (shares.alpha * order)) / shares.beta
    return g, (g, jnp.where(g > 0, scaled_exp(cost, log), 0))


class StreamedEntmax(AbstractStreamed):
    """L = max p·h − Ω(p) over the simplex, Ω(p) = Σ (pᵅ − p)/(βα(α−1)); α is None for 2."""

    beta: Float[Array, ""]
    alpha: Float[Array, ""] | None

    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        shares = _Shares(self.beta, self.alpha, *_threshold(scores, self.beta, self.alpha))
        slopes, (total, terms) = scores.sums(_weights_and_terms, shares)
        # Without any pattern both sums are 0, with NaN among the scores the slopes are NaN.
        total = jnp.where((total > 0) | jnp.isnan(shares.largest), total, 1)
        slopes = tuple(slope / total for slope in slopes)
        return shares.largest + terms, slopes
