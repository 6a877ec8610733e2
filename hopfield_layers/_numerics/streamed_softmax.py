"""The log-sum-exp of scores, and its slopes, in one pass over the patterns (an online softmax).

A part of the patterns is known by its largest score m, by the sum S = Σ exp(β(h − m)) and by
Σ exp(β(h − m)) ξ. Two parts, disjoint blocks or the shards of several devices, merge into the same
of both, in any order. S is kept as the number of scores equal to m and the sum of the others, so
that ln S keeps its digits where one pattern outweighs all others.

Source: Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018), arXiv:1805.02867;
Dao et al., "FlashAttention" (NeurIPS 2022), arXiv:2205.14135.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .elementary import log1p_ratio
from .scores import AbstractStreamed, Block, Scores, Slopes
from .softmax import finite_shift


class Part(NamedTuple):
    """What is known of a part of the patterns: for L, or for the slopes, which need no ties."""

    largest: Float[Array, ""]  # −∞ for a part without patterns
    ties: Float[Array, ""] | None  # the number of scores equal to it
    others: Float[Array, ""]  # Σ exp(β(h − m)) of the others, without ties that of all
    slopes: Slopes  # Σ exp(β(h − m)) ξ


def merge(beta: Array, a: Part, b: Part) -> Part:
    """The same of both parts."""
    largest = jnp.maximum(a.largest, b.largest)
    shift = finite_shift(largest)
    x, y = jnp.exp(beta * (a.largest - shift)), jnp.exp(beta * (b.largest - shift))
    others = x * a.others + y * b.others
    slopes = tuple(x * s + y * t for s, t in zip(a.slopes, b.slopes, strict=True))
    if a.ties is None or b.ties is None:
        return Part(largest, None, others, slopes)
    a_leads, b_leads = a.largest == largest, b.largest == largest
    ties = jnp.where(a_leads, a.ties, 0) + jnp.where(b_leads, b.ties, 0)
    others += jnp.where(a_leads, 0, x * a.ties) + jnp.where(b_leads, 0, y * b.ties)
    return Part(largest, ties, others, slopes)


def _part(beta: Array, block: Block, with_slopes: bool) -> Part:
    # The patterns that are not valid have been in a part before, so they may be the largest.
    if block.mask is None:
        largest = shift = jnp.max(block.h)
    else:
        largest = jnp.max(jnp.where(block.mask, block.h, -jnp.inf))
        shift = finite_shift(largest)
    e = block.counted(jnp.exp(beta * (block.h - shift)))
    if with_slopes:
        return Part(largest, None, jnp.sum(e), tuple(e @ xi for xi in block.patterns))
    is_largest = block.h == largest
    ties = block.total(is_largest.astype(e.dtype))
    return Part(largest, ties, jnp.sum(jnp.where(is_largest, 0, e)), ())


class _Moments(NamedTuple):
    """m, S − 1 and the slopes Σ exp(β(h − m)) ξ/S, the ghost's score 0 included; 0 of nothing."""

    largest: Array
    rest: Array
    slopes: Slopes


@eqx.filter_custom_jvp
def _moments(scores: Scores, beta: Array, ghost: bool, with_slopes: bool) -> _Moments:
    # Before any pattern there is nothing but the ghost.
    largest, ghosts = jnp.array(0 if ghost else -jnp.inf, beta.dtype), jnp.array(ghost, beta.dtype)
    if with_slopes:
        start = Part(largest, None, ghosts, tuple(map(jnp.zeros_like, scores.gs)))
    else:
        start = Part(largest, ghosts, jnp.zeros_like(ghosts), ())
    part = scores.fold(
        lambda part, block: merge(beta, part, _part(beta, block, with_slopes)), start
    )
    ties = 0 if part.ties is None else part.ties
    rest = jnp.where(part.largest == -jnp.inf, 0, ties - 1 + part.others)
    slopes = tuple(slope / (1 + rest) for slope in part.slopes)
    return _Moments(finite_shift(part.largest), rest, slopes)


@_moments.def_jvp
def _moments_jvp(primals, tangents):
    """Where m goes is free, as long as the other moments go with it.

    Following the mean of dh keeps the digits of the slopes' tangent beside a vertex, where all dh
    that matter are almost that mean.
    """
    (scores, beta, ghost, with_slopes), (d_scores, d_beta, *_) = primals, tangents
    moments = _moments(*primals)
    total, zero = 1 + moments.rest, jnp.zeros_like(beta)

    def d_sums(d_beta: Array | None, d_largest: Array, with_slopes: bool):
        sums = functools.partial(_sums, ghost=ghost, with_slopes=with_slopes)
        primals, tangents = (scores, beta, moments.largest), (d_scores, d_beta, d_largest)
        return eqx.filter_jvp(sums, primals, tangents)[1]

    if with_slopes and jax.tree.leaves(d_scores.rows):
        d_largest = d_sums(None, zero, False)[1] / (beta * total)
    else:
        pairs = zip(moments.slopes, d_scores.gs, strict=False)
        d_largest = sum((slope @ dg for slope, dg in pairs if dg is not None), zero)
    d_slopes, d_total = d_sums(d_beta, d_largest, with_slopes)
    pairs = zip(d_slopes, moments.slopes, strict=True)
    d_slopes = tuple((d - slope * d_total) / total for d, slope in pairs)
    return moments, _Moments(d_largest, d_total, d_slopes)


def _sums(scores, beta, largest, *, ghost, with_slopes):
    """Σ exp(β(h − m)) ξ and S for a given m."""
    fn = _exponentials if with_slopes else _exponentials_alone
    slopes, total = scores.sums(fn, (beta, largest))
    return slopes, total + jnp.exp(-beta * largest) if ghost else total


def _exponentials(h, parameters):
    beta, largest = parameters
    e = jnp.exp(beta * (h - largest))
    return e, e


def _exponentials_alone(h, parameters):
    return None, _exponentials(h, parameters)[1]


class StreamedSoftmax(AbstractStreamed):
    """L = ln Σ exp(βh)/β, with the ghost's score 0 among the scores if there is one."""

    beta: Float[Array, ""]
    ghost: bool = eqx.field(static=True)

    def value(self, scores: Scores) -> Array:
        moments = _moments(scores, self.beta, self.ghost, False)
        return moments.largest + log1p_ratio(moments.rest) * moments.rest / self.beta

    def slopes(self, scores: Scores) -> Slopes:
        return _moments(scores, self.beta, self.ghost, True).slopes
