"""The log-sum-exp of scores, and its slopes, in one pass over the patterns (an online softmax).

A subset of the patterns is summarized by its largest score m, the sum S = Σ exp(β(h − m)) and
Σ exp(β(h − m)) ξ. The summaries of two disjoint subsets, blocks or the shards of several devices,
are merged into that of their union, in any order. S is kept as the number of scores equal to m and
the sum of the others, so that ln S keeps its digits where one pattern outweighs all others.

Source: Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018), arXiv:1805.02867;
Dao et al., "FlashAttention" (NeurIPS 2022), arXiv:2205.14135.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .elementary import exponent_below, log1p_ratio
from .scores import AbstractStreamed, Block, Scores, Slopes
from .softmax import finite_shift


class Part(NamedTuple):
    """The summary of a subset of the patterns."""

    largest: Float[Array, ""]  # m, −∞ for none
    ties: Float[Array, ""]  # the number of scores equal to it
    others: Float[Array, ""]  # Σ exp(β(h − m)) of the others
    total: Float[Array, ""]  # S, in one pass less over a block than the two above
    slopes: Slopes  # Σ exp(β(h − m)) ξ


def merge(beta: Array, a: Part, b: Part) -> Part:
    """The summary of the union of two disjoint subsets."""
    largest = jnp.maximum(a.largest, b.largest)
    shift = finite_shift(largest)
    x, y = jnp.exp(beta * (a.largest - shift)), jnp.exp(beta * (b.largest - shift))
    a_leads, b_leads = a.largest == largest, b.largest == largest
    ties = jnp.where(a_leads, a.ties, 0) + jnp.where(b_leads, b.ties, 0)
    others = x * a.others + jnp.where(a_leads, 0, x * a.ties)
    others += y * b.others + jnp.where(b_leads, 0, y * b.ties)
    slopes = tuple(x * s + y * t for s, t in zip(a.slopes, b.slopes, strict=True))
    return Part(largest, ties, others, x * a.total + y * b.total, slopes)


def _part(beta: Array, block: Block) -> Part:
    largest = block.largest
    e = block.counted(jnp.exp(beta * (block.h - finite_shift(largest))))
    is_largest = block.h == largest
    ties = block.total(is_largest.astype(e.dtype))
    others = jnp.sum(jnp.where(is_largest, 0, e))
    return Part(largest, ties, others, jnp.sum(e), tuple(e @ xi for xi in block.patterns))


class _Moments(NamedTuple):
    """m, S − 1 and the slopes Σ exp(β(h − m)) ξ/S, the ghost's score 0 included; 0 of nothing."""

    largest: Array
    rest: Array
    slopes: Slopes


@eqx.filter_custom_jvp
@functools.partial(jax.jit, static_argnums=2)
def _moments(scores: Scores, beta: Array, ghost: bool) -> _Moments:
    # The sum starts with the ghost, if there is one.
    largest, ghosts = jnp.array(0 if ghost else -jnp.inf, beta.dtype), jnp.array(ghost, beta.dtype)
    none = jnp.zeros_like(ghosts), ghosts, tuple(map(jnp.zeros_like, scores.gs))
    start = Part(largest, ghosts, *none)
    part = scores.fold(lambda part, block: merge(beta, part, _part(beta, block)), start)
    is_empty = part.largest == -jnp.inf
    rest = jnp.where(is_empty, 0, part.ties - 1 + part.others)
    total = jnp.where(is_empty, 1, part.total)
    return _Moments(finite_shift(part.largest), rest, tuple(s / total for s in part.slopes))


@_moments.def_jvp
def _moments_jvp(primals, tangents):
    """L and the slopes do not depend on the choice of m, so its tangent may be chosen freely.

    Following the mean of what dg changes in h keeps the digits of the slopes' tangent beside a
    vertex, where all dh that matter are almost that mean.
    """
    (scores, beta, ghost), (d_scores, d_beta, _) = primals, tangents
    moments = _moments(*primals)
    pairs = zip(moments.slopes, d_scores.gs, strict=True)
    d_largest = sum((s @ dg for s, dg in pairs if dg is not None), jnp.zeros_like(beta))
    sums = functools.partial(_sums, ghost=ghost)
    primals, tangents = (scores, beta, moments.largest), (d_scores, d_beta, d_largest)
    _, (d_slopes, d_total) = eqx.filter_jvp(sums, primals, tangents)
    pairs = zip(d_slopes, moments.slopes, strict=True)
    d_slopes = tuple((d - slope * d_total) / (1 + moments.rest) for d, slope in pairs)
    return moments, _Moments(d_largest, d_total, d_slopes)


def _sums(scores: Scores, beta: Array, largest: Array, ghost: bool) -> tuple[Slopes, Array]:
    """Σ exp(β(h − m)) ξ and S for a given m."""
    slopes, total = scores.sums(_exponentials, (beta, largest))
    return slopes, total + jnp.exp(-beta * largest) if ghost else total


def _exponentials(h: Array, parameters: tuple[Array, Array]) -> tuple[Array, Array]:
    beta, largest = parameters
    e = jnp.exp(exponent_below(beta, h, largest))
    return e, e


class StreamedSoftmax(AbstractStreamed):
    """L = ln Σ exp(βh)/β, with the ghost's score 0 among the scores if there is one."""

    beta: Float[Array, ""]
    ghost: bool = eqx.field(static=True)

    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        largest, rest, slopes = _moments(scores, self.beta, self.ghost)
        return largest + log1p_ratio(rest) * rest / self.beta, slopes
