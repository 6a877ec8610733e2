"""Relaxation by accelerated block updates."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..model import AbstractEnergyModel
from .anderson import extrapolated, History, no_history, pushed
from .descent import energy_change, StepEnd
from .flow import EnergyFlow, time_constants
from .implicit_steps import implicit_steps
from .rest import limit_of, Rest, Tolerance, until_rest
from .state_trees import largest, tree_where


class BlockUpdates(eqx.Module):
    """x ← x − ω u, block after block, with Anderson acceleration: the default of `relax`.

    u = ∂E/∂g − I is the drive and ω the damping. With ω = 1 a block moves to b + I − ∂E_s/∂g, the
    point at which it would be at rest if all other blocks kept still. The blocks of a
    [`hopfield_layers.HAM`][] are sets of layers of which no two are joined by a connection; where
    −E_s is convex in the activations of a block, its update is a step of the concave–convex
    procedure, and the energy can't rise. In a model without blocks all arrays move at once.

    The fastest block moves first. A sweep then moves every block in turn, at about the cost of one
    drive and one energy. While sweeps are long, as compared with x and u at the start, and hardly
    get shorter, 1.4 times the displacement is tried. Otherwise, from the last `history` sweeps,
    Anderson's method extrapolates to the point at which a sweep would move nothing. While sweeps
    repeat about the same displacement, two times it, four times it and so on are tried. A state in
    which the energy has risen by more than rounding error is rejected: an extrapolation is replaced
    by the plain sweep, and a plain sweep by one with half the damping. If these make no progress
    either, after 1000 sweeps, or if not all units rest after a sweep whose displacements are within
    the tolerance, implicit steps follow: (λ + I + S H) δ = −u with S = ∂²E_s/∂g² and H = ∂²L/∂x²,
    where λ grows until the energy falls. Each step takes up to 100 products with S H.

    This is a solver for [`hopfield_layers.relax`][] with `flow="activation"`. Its fixed point is
    downhill of x0, but need not be the attractor to which the flow leads.

    **Arguments:**

    - `history`: the number of earlier sweeps to extrapolate from, 0 for none.
    - `damping`: the largest ω, between 0 and 1.

    **Raises:** `ValueError` for a negative history, or a damping out of its range.

    Source: Yuille & Rangarajan, "The concave–convex procedure", Neural Computation 15 (2003);
    Walker & Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).

    Examples:
        >>> synapse = hl.DenseSynapse((3, 2), W=jnp.ones((3, 2)))
        >>> layers = {"x": hl.TanhLayer(3), "y": hl.TanhLayer(2)}
        >>> ham = hl.HAM(layers, {"W": synapse}, [(("x", "y"), "W")])
        >>> x0 = {"x": jnp.ones(3), "y": jnp.zeros(2)}
        >>> print(hl.relax(ham, x0, solver=hl.BlockUpdates(history=3)).converged)
        True
    """

    history: int = eqx.field(default=5, converter=operator.index, static=True)
    damping: float = eqx.field(default=1.0, converter=float, static=True)

    def __check_init__(self):
        if self.history < 0:
            raise ValueError(f"Expected a history of at least 0, got {self.history}.")
        if not 0 < self.damping <= 1:
            raise ValueError(f"Expected a damping with 0 < damping ≤ 1, got {self.damping}.")


class _Sweep(NamedTuple):
    """A state as a flat vector, and the results of a sweep from there."""

    x: Float[Array, " n"]
    end: StepEnd  # g, the drive u of each block when it moves, and the energy
    distance: Float[Array, ""]  # the largest |u| in units of the tolerance, see `_sweep`
    damping: Float[Array, ""]


class _State(NamedTuple):
    kept: _Sweep
    candidate: Float[Array, " n"]
    is_plain: Bool[Array, ""]  # whether the candidate is that of a plain sweep
    is_return: Bool[Array, ""]  # whether the candidate is `kept`, swept again with a smaller ω
    damping: Float[Array, ""]
    history: History
    stretch: Float[Array, ""]  # the factor of the displacement, usually 1
    successes: Int[Array, ""]  # states that were kept since the damping changed
    num_steps: Int[Array, ""]


# The number of consecutive states that are kept before the damping is doubled again.
_PATIENCE = 8
# The least cosine of the angle between two displacements of about the same direction. Past saddles,
# where displacements turn slowly and grow, Anderson's method would lead back. In chains of five
# layers (`benchmarks.relaxation`) 0.7 takes 14 to 18 % fewer sweeps than 0.99, and 0.5 as many.
_PARALLEL = 0.7
# A state is far from a fixed point where a sweep moves its units, by the root mean square, by more
# than this share of the largest |x| or |u| at the start, hardly less than the sweep before, and not
# back. Sweeps are then not nearly linear, and Anderson's method often leads uphill. From 24 initial
# states, chains of scales 0.5, 1, 2 and 3 take 54, 61, 50 and 41 sweeps on average, and 55, 62, 58
# and 43 without this.
_FAR_SHARE = 0.01
_SLOW_SHARE = 0.7
_OVERRELAXATION = 1.4
# The most sweeps before implicit steps follow, which are better for a slow descent.
_MOST_SWEEPS = 1000


class Updates(eqx.Module):
    """Block updates of one sample, until every unit is within its tolerance or progress ends."""

    field: EnergyFlow
    method: BlockUpdates
    tolerance: Tolerance
    max_steps: int
    meter: diffrax.AbstractProgressMeter

    def run(self, x0: PyTree[Array]) -> Rest:
        """The final state, after sweeps and, if these don't suffice, implicit steps."""
        _, unravel = ravel_pytree(x0)
        blocks = blocks_of(self.field.model, x0)

        def is_moving(state: _State):
            # For several blocks the distance is an estimate, see `_sweep`: the final state is
            # measured by `implicit_steps`.
            at_rest = state.kept.distance < 1
            stuck = state.damping < 1e-4 * self.method.damping
            in_range = (largest(state.kept.x) < limit) & jnp.isfinite(state.kept.distance)
            return ~(at_rest | stuck) & in_range

        def step(state: _State):
            return self._step(state, blocks, unravel, far)

        start = self._start(x0, blocks)
        limit = limit_of((start.kept.x, start.kept.end.u))
        far = _FAR_SHARE * start.kept.x.size**0.5 * largest((start.kept.x, start.kept.end.u))
        most = min(self.max_steps, _MOST_SWEEPS)
        state = until_rest(is_moving, step, start, most, self.meter)
        x = unravel(state.kept.x)
        return implicit_steps(self.field, x, state.num_steps, self.tolerance, limit, self.max_steps)

    def _start(self, x0: PyTree[Array], blocks: list[PyTree[bool]]) -> _State:
        """The state before the first sweep, in which only the fastest block moves.

        This block sees the initial states of the others, which would otherwise be overwritten.
        """
        energy, force = self.field.energy_and_force(_T0, x0)
        g = self.field.model.activations(x0)
        taus = time_constants(self.field.model, x0)
        slowest = [_largest_of(taus, block) for block in blocks]
        # Of equally fast blocks the last one, because layers of hidden units tend to come last.
        fastest = len(blocks) - 1 - jnp.argmin(jnp.array(slowest[::-1]))
        first = jax.tree.map(
            lambda force, *moves: jnp.where(jnp.array(moves)[fastest], force, 0), force, *blocks
        )
        x, move, g, flat_force = (ravel_pytree(tree)[0] for tree in (x0, first, g, force))
        end = StepEnd(g, -flat_force, energy)
        damping = jnp.asarray(self.method.damping, x.dtype)
        kept = _Sweep(x, end, self.tolerance.distance(flat_force, x), damping)
        yes, no, zero = jnp.array(True), jnp.array(False), jnp.zeros((), int)
        history = no_history(self.method.history, x)
        one, successes = jnp.ones((), x.dtype), jnp.zeros((), jnp.int32)
        candidate = x + damping * move
        return _State(kept, candidate, yes, no, damping, history, one, successes, zero)

    def _step(
        self, state: _State, blocks: list[PyTree[bool]], unravel: Callable, far: Array
    ) -> _State:
        """Sweeps from the candidate, keeps or rejects it, and chooses the next one.

        A state from which a sweep moves by more than `far` is far from a fixed point.
        """
        kept, damping = state.kept, state.damping
        new = self._sweep(state.candidate, damping, blocks, unravel)
        change = energy_change(kept.x, kept.end, new.x, new.end)
        level = (change < 1) & (new.distance <= kept.distance)
        overflows = ~jnp.isfinite(new.end.energy) & jnp.isfinite(kept.end.energy)
        is_finite = jnp.isfinite(new.distance) & ~overflows
        keep = is_finite & ((change < 0) | level | state.is_return)

        # Anderson's method needs two states that were swept with the same damping.
        is_pair = keep & ~state.is_return & (state.num_steps > 0) & (kept.damping == damping)
        u, last_u = new.end.u, kept.end.u
        du = u - last_u
        history = pushed(state.history, is_pair, du, new.x - kept.x - damping * du)
        size, last_size = jnp.linalg.norm(u), jnp.linalg.norm(last_u)
        product = jnp.vdot(u, last_u)
        repeats = (product > _PARALLEL * size * last_size) & (size > 0.9 * last_size)
        is_far = (size > far) & (size > _SLOW_SHARE * last_size) & (product > 0)
        stretch = jnp.where(is_pair & repeats, 2 * state.stretch, 1)

        fails = ~keep & state.is_plain
        successes = jnp.where(keep, state.successes + 1, 0)
        grows = (successes >= _PATIENCE) & (damping < self.method.damping)
        next_damping = jnp.where(fails, damping / 2, jnp.where(grows, 2 * damping, damping))
        # The least energy so far, so that rises within rounding don't add up.
        least = eqx.tree_at(
            lambda end: end.energy, new.end, jnp.minimum(new.end.energy, kept.end.energy)
        )
        kept = tree_where(keep, new._replace(end=least), kept)

        accelerates = keep & (jnp.any(history.is_used) | (stretch > 1))
        u = kept.end.u
        plain = kept.x - damping * u
        stretched = kept.x - jnp.maximum(stretch, _OVERRELAXATION) * damping * u
        is_stretched = (stretch > 1) | is_far
        further = jnp.where(is_stretched, stretched, extrapolated(history, u, plain))
        candidate = jnp.where(accelerates, further, jnp.where(fails, kept.x, plain))
        return _State(
            kept,
            candidate,
            ~accelerates,
            fails,
            next_damping,
            history,
            stretch,
            jnp.where(grows, 0, successes),
            state.num_steps + 1,
        )

    def _sweep(self, x: Array, damping: Array, blocks: list, unravel: Callable) -> _Sweep:
        """The state x, and its displacement when every block moves in turn.

        The drive of a later block is that after the earlier ones have moved, so that for several
        blocks the distance at x is an estimate.
        """
        start = moved = unravel(x)
        energy, force = self.field.energy_and_force(_T0, start)
        for i, block in enumerate(blocks):
            force = force if i == 0 else self.field.force(_T0, moved)
            moved = jax.tree.map(
                lambda moves, x, force: x + damping * force if moves else x, block, moved, force
            )
        move = (ravel_pytree(moved)[0] - x) / damping
        g, _ = ravel_pytree(self.field.model.activations(start))
        end = StepEnd(g, -move, energy)
        return _Sweep(x, end, self.tolerance.distance(move, x), damping)


_T0 = np.zeros(())  # the flow doesn't change with t


def blocks_of(model: AbstractEnergyModel, x: PyTree[Array]) -> list[PyTree[bool]]:
    """For each block of the model a tree of booleans like x, True for the arrays that move."""
    if not callable(declared := getattr(model, "blocks", None)):
        return [jax.tree.map(lambda _: True, x)]

    def spread(moves, x):
        return jax.tree.map(lambda _: bool(moves), x)

    blocks = [jax.tree.map(spread, block, x) for block in declared()]  # pyright: ignore[reportGeneralTypeIssues]
    counts = [sum(moves) for moves in zip(*map(jax.tree.leaves, blocks), strict=True)]
    if set(counts) != {1}:
        raise ValueError(f"Expected each array of the state in exactly one block, got {blocks}.")
    return blocks


def _largest_of(tree: PyTree[Array], block: PyTree[bool]) -> Array:
    """The largest entry of the arrays that move."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(block), strict=True)
    return jnp.max(jnp.array([jnp.max(x, initial=0) for x, moves in pairs if moves]), initial=0)
