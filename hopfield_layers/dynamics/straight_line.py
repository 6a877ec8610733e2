"""Explicit Runge–Kutta steps as straight-line code.

diffrax runs the stages of a step in a loop, which writes each stage to a buffer and reads all of
them. On a CPU a step of the same tableau without that loop takes about half the time, and the
derivative of a step needs no loop either. Once diffrax unrolls the stages, this file can go.
"""

import functools as ft
import operator
from collections.abc import Sequence
from typing import ClassVar

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


class StraightLine(diffrax.AbstractAdaptiveSolver):
    """A solver of diffrax with its own tableau, order and interpolation, but an unrolled step."""

    solver: diffrax.AbstractERK

    term_structure: ClassVar = diffrax.AbstractTerm

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return terms.vf(t0, y0, args) if self._reuses(terms, t0, t1, y0, args) else None

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)

    @property
    def _tableau(self) -> diffrax.ButcherTableau:
        tableau = self.solver.tableau
        assert isinstance(tableau, diffrax.ButcherTableau)
        return tableau

    def _reuses(self, terms, t0, t1, y0, args):
        """Whether the last stage, at x₁, is reused as the first stage of the next step."""
        return self._tableau.fsal and not terms.is_vf_expensive(t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step: kᵢ = h f(t₀ + cᵢ h, x₀ + Σ aᵢⱼ kⱼ), x₁ = x₀ + Σ bᵢ kᵢ."""
        tableau = self._tableau
        control = terms.contr(t0, t1)
        reuses = self._reuses(terms, t0, t1, y0, args)

        def rates(t, y):
            return terms.vf(t, y, args) if reuses else terms.vf_prod(t, y, args, control)

        def product(f):
            return terms.prod(f, control) if reuses else f

        # Trace the rates once for all stages.
        rates = eqx.filter_closure_convert(rates, t0, y0)
        f = solver_state if reuses else rates(t0, y0)
        if reuses and made_jump is not False:
            is_new = eqxi.unvmap_any(made_jump)
            f = jax.lax.cond(is_new, ft.partial(rates, t0, y0), lambda: solver_state)
        ks, y = [product(f)], y0
        for c, a in zip(tableau.c, tableau.a_lower, strict=True):
            t = t1 if c == 1 else t0 + jnp.asarray(c, jnp.result_type(t0, t1)) * (t1 - t0)
            y = jax.tree.map(jnp.add, y0, _combination(a, ks))
            f = rates(t, y)
            ks.append(product(f))
        y1 = y if tableau.ssal else jax.tree.map(jnp.add, y0, _combination(tableau.b_sol, ks))
        dense = {"y0": y0, "y1": y1, "k": jax.tree.map(lambda *k: jnp.stack(k), *ks)}
        state = f if reuses else None
        return y1, _combination(tableau.b_error, ks), dense, state, diffrax.RESULTS.successful


def _combination(weights: np.ndarray, ks: Sequence[PyTree[Array]]) -> PyTree[Array]:
    """Σ wᵢ kᵢ, without the terms of weight 0."""

    def total(*ks):
        products = [w.astype(k.dtype) * k for w, k in zip(weights, ks, strict=True) if w != 0]
        # A method without an error estimate has weights that are all 0.
        return ft.reduce(operator.add, products) if products else jnp.zeros_like(ks[0])

    return jax.tree.map(total, *ks)


def straight_line(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """The solver, with unrolled steps if it is one of diffrax's explicit Runge–Kutta methods."""
    is_stock = getattr(type(solver), "step", None) is diffrax.AbstractERK.step
    is_single = isinstance(getattr(solver, "tableau", None), diffrax.ButcherTableau)
    if isinstance(solver, diffrax.AbstractERK) and is_stock and is_single:
        return StraightLine(solver)
    return solver
