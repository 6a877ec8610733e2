"""The log-sum-exp of scores, and its slopes, in one pass over the patterns (an online softmax).

A subset of the patterns is summarized by its largest score m, the sum S = Σ exp(β(h − m)) and
Σ exp(β(h − m)) ξ. The summaries of two disjoint subsets, blocks or the shards of several devices,
are merged into that of their union, in any order. The sum of the terms of at most 1/2 is kept
besides S. Where one pattern outweighs all others, these are all terms but that of m, and S − 1 and
with it ln S are accurate.

Source: Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018), arXiv:1805.02867;
Dao et al., "FlashAttention" (NeurIPS 2022), arXiv:2205.14135.
"""

import functools as ft
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .elementary import exponent_below, log1p_ratio
from .partitioned import MeshAxes
from .scores import AbstractStreamed, Block, Scores, Slopes
from .softmax import finite_shift
from .streaming import Reduction


class Part(NamedTuple):
    """The summary of some patterns. Without patterns `largest` is −∞ and all else is 0."""

    largest: Float[Array, "*batch"]  # m
    beta: Float[Array, "*batch"]
    others: Float[Array, "*batch"]  # S − 1, if S < 1.25
    total: Float[Array, "*batch"]  # S
    slopes: tuple[Float[Array, "*batch units"], ...]  # Σ exp(β(h − m)) ξ

    @classmethod
    def of(cls, flat: list[Array]) -> "Part":
        """The summary with these arrays."""
        largest, beta, others, total, *slopes = flat
        return cls(largest, beta, others, total, tuple(slopes))

    def flat(self) -> list[Array]:
        """The arrays of the summary as a list."""
        return [*self[:4], *self.slopes]

    def sums_at(self, largest: Array, beta: Array) -> tuple[Array, ...]:
        """All sums, with m replaced by the largest score of a union."""
        ratio = jnp.exp(beta * (self.largest - finite_shift(largest)))
        others = jnp.where(self.largest == largest, self.others, ratio * self.total)
        return others, ratio * self.total, *(ratio[..., None] * s for s in self.slopes)


def merge(a: Part, b: Part) -> Part:
    """The summary of the union of two disjoint sets of patterns."""
    largest, beta = jnp.maximum(a.largest, b.largest), jnp.maximum(a.beta, b.beta)
    pairs = zip(a.sums_at(largest, beta), b.sums_at(largest, beta), strict=True)
    return Part.of([largest, beta, *(x + y for x, y in pairs)])


def _merge_flat(a: list[Array], b: list[Array]) -> list[Array]:
    return merge(Part.of(a), Part.of(b)).flat()


def _merge_across(results: list[Array], axes: list[MeshAxes]) -> list[Array]:
    """The summary of all devices' patterns from each device's, by one maximum and one sum."""
    part, (names, *_) = Part.of(results), axes
    if not names:
        return results
    largest = jax.lax.pmax(part.largest, names)
    return [largest, part.beta, *jax.lax.psum(part.sums_at(largest, part.beta), names)]


_UNION = Reduction(-math.inf, _merge_flat, _merge_across)


def _part(block: Block, beta: Array) -> list[Array]:
    largest = block.largest
    e = block.counted(jnp.exp(beta * (block.h - finite_shift(largest))))
    # The terms of at most 1/2: by arithmetic, which XLA on CPUs does within the sum. The results of
    # a comparison would take as much memory as the scores.
    others = jnp.sum(e * (1 - jnp.round(e)))
    slopes = tuple(e @ xi for xi in block.patterns)
    return Part(largest, beta, others, jnp.sum(e), slopes).flat()


class _Moments(NamedTuple):
    """m, S and the slopes Σ exp(β(h − m)) ξ/S, including the ghost; without scores 0, and S = 1."""

    largest: Array
    total: Array
    rest: Array  # S − 1, which needs one pass more than S
    slopes: Slopes


@eqx.filter_custom_jvp
@ft.partial(jax.jit, static_argnums=2)
def _moments(scores: Scores, beta: Array, ghost: bool) -> _Moments:
    part = Part.of(scores.reduce(_UNION, _part, beta))
    if ghost:
        one, zero = jnp.ones_like(beta), jnp.zeros_like(beta)
        nothing = tuple(map(jnp.zeros_like, scores.gs))
        part = merge(part, Part(zero, beta, zero, one, nothing))
    is_empty = part.largest == -jnp.inf
    # Below 1.25 no other term exceeds 1/2, even if the largest isn't exactly 1: XLA may contract
    # h − m into one operation, in which h isn't rounded.
    rest = jnp.where(part.total < 1.25, part.others, part.total - 1)
    rest = jnp.where(is_empty, 0, rest)
    total = jnp.where(is_empty, 1, part.total)
    slopes = tuple(s / total for s in part.slopes)
    return _Moments(finite_shift(part.largest), total, rest, slopes)


@_moments.def_jvp
def _moments_jvp(primals, tangents):
    """L and the slopes do not depend on the choice of m, so its tangent may be chosen freely.

    The mean of dh is chosen, which makes the slopes' tangent accurate near a vertex, where all
    relevant dh are almost equal to this mean.
    """
    (scores, beta, ghost), (d_scores, d_beta, _) = primals, tangents
    moments = _moments(*primals)
    pairs = zip(moments.slopes, d_scores.gs, strict=True)
    d_largest = sum((s @ dg for s, dg in pairs if dg is not None), jnp.zeros_like(beta))
    sums = ft.partial(_sums, ghost=ghost)
    primals, tangents = (scores, beta, moments.largest), (d_scores, d_beta, d_largest)
    _, (d_slopes, d_total) = eqx.filter_jvp(sums, primals, tangents)
    pairs = zip(d_slopes, moments.slopes, strict=True)
    d_slopes = tuple((d - slope * d_total) / moments.total for d, slope in pairs)
    return moments, _Moments(d_largest, d_total, d_total, d_slopes)


def _sums(scores: Scores, beta: Array, largest: Array, ghost: bool) -> tuple[Slopes, Array]:
    """Σ exp(β(h − m)) ξ and S for a given m."""
    slopes, total = scores.sums(_exponentials, (beta, largest))
    return slopes, total + jnp.exp(-beta * largest) if ghost else total


def _exponentials(h: Array, parameters: tuple[Array, Array]) -> tuple[Array, Array]:
    beta, largest = parameters
    e = jnp.exp(exponent_below(beta, h, largest))
    return e, e


class StreamedSoftmax(AbstractStreamed):
    """L = ln Σ exp(βh)/β, which includes the ghost's score 0 if there is a ghost."""

    beta: Float[Array, ""]
    ghost: bool = eqx.field(static=True)

    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        largest, _, rest, slopes = _moments(scores, self.beta, self.ghost)
        return largest + log1p_ratio(rest) * rest / self.beta, slopes
