"""Functions of the scores of all patterns, one block of patterns at a time.

For a Lagrangian L of the scores h_μ = Σₖ ξᵏ_μ·gᵏ + b_μ with the activation p = ∂L/∂h, the slopes
are ∂L/∂gᵏ = Σ_μ p_μ ξᵏ_μ. Derivatives of any order evaluate the scores again (`sum_over_rows`).
"""

import abc
import dataclasses
import functools as ft
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .streaming import reduce_over_rows, Reduction, sum_over_rows


Slopes = tuple[Array, ...]


class Block(eqx.Module):
    """The scores of some patterns. Patterns that are not valid are left out of every sum."""

    h: Float[Array, " block"]
    patterns: tuple[Float[Array, "block _"], ...]
    mask: Bool[Array, " block"] | None
    valid: Bool[Array, " block"] | None

    @property
    def largest(self) -> Float[Array, ""]:
        """The largest score that is not masked. Those that are not valid are in another block."""
        h = self.h if self.mask is None else jnp.where(self.mask, self.h, -jnp.inf)
        return jnp.max(h)

    def counted(self, terms: Array) -> Array:
        """`terms`, or 0 for the patterns that are masked or not valid."""
        for flags in (self.mask, self.valid):
            terms = terms if flags is None else jnp.where(flags, terms, 0)
        return terms

    def weighted(self, p: Array) -> Slopes:
        """Σ p ξ of each layer."""
        p = self.counted(p)
        return tuple(p @ xi for xi in self.patterns)

    def total(self, terms: Array) -> Array:
        """Σ terms."""
        return jnp.sum(self.counted(terms))


class Rows(eqx.Module):
    """The patterns of each layer, of any shape and dtype, and a bias and a mask or None."""

    patterns: tuple[Array, ...]
    bias: Array | None
    mask: Bool[Array, " nhid"] | None
    # Whether masked rows may hold any value, even NaN. Setting them to 0 copies the rows.
    has_free_slots: bool = eqx.field(default=False, static=True)

    def scores(self, gs: tuple[Array, ...], valid: Array | None = None) -> Block:
        """The scores in the dtype of the flat gs. Masked scores are finite."""

        def wide(row: Array) -> Array:
            row = row.reshape(len(row), math.prod(row.shape[1:])).astype(gs[0].dtype)
            if self.mask is None or not self.has_free_slots:
                return row
            # Not 0·row, because 0·NaN is NaN.
            return jnp.where(self.mask[:, None], row, 0)

        patterns = tuple(map(wide, self.patterns))
        h = ft.reduce(
            jnp.add, [jnp.tensordot(g, xi, (0, 1)) for g, xi in zip(gs, patterns, strict=True)]
        )
        h = h if self.bias is None else h + wide(self.bias)[:, 0]
        return Block(h, patterns, self.mask, valid)


class Scores(eqx.Module):
    """The scores of one sample, whose flat activations are all of one dtype."""

    rows: Rows
    gs: tuple[Array, ...]

    def all(self) -> Block:
        """All scores at once."""
        return self.rows.scores(self.gs)

    def sums(
        self, fn: Callable[[Array, PyTree], tuple[Array | None, PyTree]], parameters: PyTree
    ) -> tuple[Slopes, PyTree]:
        """(Σ p ξ of each layer, Σ terms) with `p, terms = fn(h, parameters)`; p may be None.

        `fn` is a module-level function and not a closure, as for `sum_over_rows`.
        """
        return sum_over_rows(_Sums(fn), self.rows, (self.gs, parameters))

    def reduce(
        self, reduction: Reduction, fn: Callable[[Block, PyTree], PyTree], parameters: PyTree
    ) -> PyTree:
        """`fn(block, parameters)`, merged over all blocks; it has no derivatives.

        `fn` is a module-level function and not a closure, as for `sum_over_rows`.
        """
        return reduce_over_rows(reduction, _OfBlock(fn), self.rows, (self.gs, parameters))


@dataclasses.dataclass(frozen=True)
class _Sums:
    fn: Callable

    def __call__(self, valid: Array | None, rows: Rows, shared: PyTree) -> PyTree:
        gs, parameters = shared
        block = rows.scores(gs, valid)
        p, terms = self.fn(block.h, parameters)
        slopes = () if p is None else block.weighted(p)
        return slopes, jax.tree.map(block.total, terms)


@dataclasses.dataclass(frozen=True)
class _OfBlock:
    fn: Callable

    def __call__(self, valid: Array | None, rows: Rows, shared: PyTree) -> PyTree:
        gs, parameters = shared
        return self.fn(rows.scores(gs, valid), parameters)


class AbstractStreamed(eqx.Module):
    """A Lagrangian of scores, with its parameters."""

    @abc.abstractmethod
    def value_and_slopes(self, scores: Scores) -> tuple[Array, Slopes]:
        """L, and ∂L/∂g of each layer. XLA removes the computation of an unused one of them."""


@eqx.filter_custom_jvp
def streamed_value(lagrangian: AbstractStreamed, scores: Scores) -> Float[Array, ""]:
    """L of the scores."""
    return lagrangian.value_and_slopes(scores)[0]


@streamed_value.def_jvp
def _streamed_value_jvp(primals, tangents):
    (lagrangian, scores), (d_lagrangian, d_scores) = primals, tangents
    # The value and the slopes are evaluated in one pass over the patterns.
    value, slopes = lagrangian.value_and_slopes(scores)
    pairs = zip(slopes, d_scores.gs, strict=True)
    tangent = sum((slope @ dg for slope, dg in pairs if dg is not None), jnp.zeros_like(value))
    if jax.tree.leaves((d_lagrangian, d_scores.rows)):

        def of_parameters(lagrangian: AbstractStreamed, rows: Rows) -> Array:
            return lagrangian.value_and_slopes(Scores(rows, scores.gs))[0]

        primals, tangents = (lagrangian, scores.rows), (d_lagrangian, d_scores.rows)
        tangent += eqx.filter_jvp(of_parameters, primals, tangents)[1]
    return value, tangent
