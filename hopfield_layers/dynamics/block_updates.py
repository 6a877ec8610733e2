"""Relaxation by accelerated block updates."""

from collections.abc import Callable
from operator import attrgetter, index
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._trees import filled
from ..model import AbstractEnergyModel
from .anderson import extrapolated, History, no_history, pushed
from .descent import energy_change, StepEnd
from .flow import EnergyFlow, time_constants
from .implicit_steps import implicit_steps, Measured
from .rest import limit_of, Rest, Tolerance, until_rest
from .state_trees import largest, tree_where
from .sums_of_vectors import products


class BlockUpdates(eqx.Module):
    """x ← x − ω u, block after block, with Anderson acceleration: the default of `relax`.

    u = ∂E/∂g − I is the drive and ω the damping. With ω = 1 a block moves to b + I − ∂E_s/∂g, the
    point at which it would be at rest if all other blocks kept still. The blocks of a
    [`hopfield_layers.HAM`][] are sets of layers of which no two are joined by a connection; where
    −E_s is convex in the activations of a block, its update is a step of the concave–convex
    procedure, and the energy can't rise. In a model without blocks all arrays move at once.

    The fastest block moves first. A sweep then moves every block in turn, at about the cost of one
    drive and one energy. From the last `history` sweeps, Anderson's method extrapolates to the
    point at which a sweep would move nothing, except where sweeps are long, as compared with x and
    u at the start, and hardly get shorter: there 1.4 times the displacement is tried. While sweeps
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

    history: int = eqx.field(default=5, converter=index, static=True)
    damping: float = eqx.field(default=1.0, converter=float, static=True)

    def __check_init__(self):
        if self.history < 0:
            raise ValueError(f"Expected a history of at least 0, got {self.history}.")
        if not 0 < self.damping <= 1:
            raise ValueError(f"Expected a damping with 0 < damping ≤ 1, got {self.damping}.")


class _Sweep(NamedTuple):
    """A state as a flat vector, and the results of a sweep from there."""

    x: Float[Array, " n"]
    # g, the energy, and the drive u of each block when it moves, as rounded in x unless the sweep
    # only measures.
    end: StepEnd
    distance: Float[Array, ""]  # the largest |u| in units of the tolerance, see `_sweep`
    residual: Float[Array, ""] | None  # the largest |u|, None for several blocks
    damping: Float[Array, ""]


class _State(NamedTuple):
    kept: _Sweep
    candidate: Float[Array, " n"]
    measures: Bool[Array, ""]  # whether the next sweep measures the candidate, and moves nothing
    is_plain: Bool[Array, ""]  # whether the candidate is that of a plain sweep
    is_return: Bool[Array, ""]  # whether the candidate is `kept`, swept again with a smaller ω
    is_done: Bool[Array, ""]
    least_energy: Float[Array, ""]  # of all states that were kept
    size: Float[Array, ""]  # ‖u‖ of `kept`
    # ‖x‖ or ‖u‖ at the start, whichever is larger. Where the squares overflow it is infinite: no
    # state is then far from a fixed point, and |x| has no limit.
    size_at_start: Float[Array, ""]
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
# A state is far from a fixed point where a sweep moves it by more than this share of ‖x‖ or ‖u‖ at
# the start, hardly less than the sweep before, and not back. Sweeps are then not nearly linear, and
# Anderson's method often leads uphill. From 64 initial states, chains of scales 0.5, 1, 2 and 3
# take 46, 59, 47 and 39 sweeps on average, and 46, 60, 52 and 43 without this. To forget the
# history wherever displacements grow would save 2 to 6 %, but one of 1024 states then takes 1000.
_FAR_SHARE = 0.02
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
        blocks = blocks_of(self.field.model, x0)
        flat, unravel = ravel_pytree(x0)
        moves_first = self._in_fastest_block(x0, blocks)

        def sweep(x, damping, measures):
            return self._sweep(x, damping, measures, blocks, unravel)

        def step(state: _State):
            return self._step(state, sweep, moves_first)

        state = until_rest(
            lambda state: ~state.is_done,
            step,
            self._start(flat, sweep),
            self._max_sweeps,
            self.meter,
        )
        kept = state.kept
        # With several blocks the last sweep only measured, and u is not rounded.
        residual = largest(kept.end.u) if kept.residual is None else kept.residual
        at = Measured(kept.x, kept.end, residual, kept.distance)
        limit = limit_of(state.size_at_start)
        return implicit_steps(
            self.field, at, unravel, state.num_steps, self.tolerance, limit, self.max_steps
        )

    @property
    def _max_sweeps(self) -> int:
        """The most sweeps."""
        return min(self.max_steps, _MOST_SWEEPS)

    def _in_fastest_block(self, x0: PyTree[Array], blocks: list[PyTree[bool]]) -> Bool[Array, " n"]:
        """Which units belong to the fastest block, which moves first.

        This block sees the initial states of the others, which would otherwise be overwritten.
        """
        taus = time_constants(self.field.model, x0)
        slowest = [_largest_of(taus, block) for block in blocks]
        # Of equally fast blocks the last one, because layers of hidden units tend to come last.
        fastest = len(blocks) - 1 - jnp.argmin(jnp.array(slowest[::-1]))
        block_of = jax.tree.map(lambda x, *moves: np.full(x.shape, moves.index(True)), x0, *blocks)
        return np.concatenate([i.ravel() for i in jax.tree.leaves(block_of)]) == fastest

    def _start(self, x0: Array, sweep: Callable[..., _Sweep]) -> _State:
        """The state before the first sweep, which measures x0."""
        damping = jnp.asarray(self.method.damping, x0.dtype)
        yes, no, zero = jnp.array(True), jnp.array(False), jnp.zeros((), jnp.int32)
        # Only the shapes of `kept` are used, because the first step measures x0.
        unknown = jax.tree.map(jnp.zeros_like, jax.eval_shape(sweep, x0, damping, yes))
        one, history = jnp.ones((), x0.dtype), no_history(self.method.history, x0)
        return _State(
            kept=unknown,
            candidate=x0,
            measures=yes,
            is_plain=yes,
            is_return=no,
            is_done=no,
            least_energy=jnp.full_like(unknown.end.energy, jnp.inf),
            size=one,
            size_at_start=jnp.linalg.norm(x0),
            damping=damping,
            history=history,
            stretch=one,
            successes=zero,
            num_steps=jnp.zeros((), int),
        )

    def _step(
        self, state: _State, sweep: Callable[..., _Sweep], moves_first: Bool[Array, " n"]
    ) -> _State:
        """Sweeps from the candidate, keeps or rejects it, and chooses the next one.

        The first sweep measures a state without a displacement. So does the last one, unless a
        model of one block is at rest, as its sweeps measure the states from which they start.
        """
        kept, damping, measures = state.kept, state.damping, state.measures
        is_first = measures & (state.num_steps == 0)
        new = sweep(state.candidate, damping, measures)
        keep = measures | _is_better(state, new)

        # Anderson's method needs two states that were swept with the same damping. x0 was only
        # measured.
        is_pair = keep & ~state.is_return & (state.num_steps > 0) & (kept.damping == damping)
        u, last_u = new.end.u, kept.end.u
        square, product = products((u, last_u), u)
        size, last_size = jnp.sqrt(square), state.size
        du = u - last_u
        history = pushed(state.history, is_pair, du, new.x - kept.x - damping * du)
        repeats = (product > _PARALLEL * size * last_size) & (size > 0.9 * last_size)
        size_at_start = jnp.maximum(state.size_at_start, jnp.where(is_first, size, 0))
        is_slow = (size > _SLOW_SHARE * last_size) & (product > 0)
        is_far = (size > _FAR_SHARE * size_at_start) & is_slow
        stretch = jnp.where(is_pair & repeats, 2 * state.stretch, 1)

        fails = ~keep & state.is_plain
        successes = jnp.where(keep, state.successes + 1, 0)
        grows = (successes >= _PATIENCE) & (damping < self.method.damping)
        next_damping = jnp.where(fails, damping / 2, jnp.where(grows, 2 * damping, damping))
        kept = tree_where(keep, new, kept)

        num_steps = state.num_steps + jnp.where(measures, 0, 1)
        stuck = next_damping < 1e-4 * self.method.damping
        in_range = (largest(kept.x) < limit_of(size_at_start)) & jnp.isfinite(kept.distance)
        size = jnp.where(keep, size, last_size)
        rests = kept.distance < 1  # with several blocks an estimate, see `_sweep`
        # Without a displacement, as rounded in x, sweeps make no more progress.
        ends = rests | (size == 0) | stuck | ~in_range | (num_steps >= self._max_sweeps)
        is_done = (rests & (kept.residual is not None)) | (measures & (ends | ~is_first))

        accelerates = keep & ((history.num_changes > 0) | (stretch > 1)) & ~ends
        u = kept.end.u
        plain = kept.x - damping * jnp.where(is_first & ~moves_first, 0, u)
        stretched = kept.x - jnp.maximum(stretch, _OVERRELAXATION) * damping * u
        is_stretched = (stretch > 1) | is_far
        further = jnp.where(is_stretched, stretched, extrapolated(history, u, plain))
        candidate = jnp.where(accelerates, further, jnp.where(fails | ends, kept.x, plain))
        return _State(
            kept,
            candidate,
            measures=ends,
            is_plain=~accelerates,
            is_return=fails,
            is_done=is_done,
            least_energy=jnp.minimum(state.least_energy, jnp.where(keep, new.end.energy, jnp.inf)),
            size=size,
            size_at_start=size_at_start,
            damping=next_damping,
            history=history,
            stretch=stretch,
            successes=jnp.where(grows, 0, successes),
            num_steps=num_steps,
        )

    def _sweep(
        self, x: Array, damping: Array, measures: Array, blocks: list, unravel: Callable
    ) -> _Sweep:
        """The state x, and its displacement when every block moves in turn by −ω u.

        The drive of a later block is that after the earlier ones have moved, so that for several
        blocks the distance at x is an estimate. With one block, or if the sweep only measures x, it
        is exact.
        """
        step = jnp.where(measures, 0, damping)
        start = unravel(x)
        energy, force = self.field.energy_and_force(_T0, start)
        total = jax.tree.map(jnp.zeros_like, start)
        for i, block in enumerate(blocks):
            if i > 0:
                moved = jax.tree.map(lambda x, move: x + step * move, start, total)
                force = self.field.force(_T0, moved)
            total = jax.tree.map(lambda moves, new, old: new if moves else old, block, force, total)
        g, force = (ravel_pytree(tree)[0] for tree in (self.field.model.activations(start), total))
        # As rounded in x: Anderson's method would otherwise extrapolate from rounding errors.
        move = jnp.where(measures, force, ((x + damping * force) - x) / damping)
        distance = self.tolerance.distance(force, x)
        residual = largest(force) if len(blocks) == 1 else None
        return _Sweep(x, StepEnd(g, -move, energy), distance, residual, damping)


_T0 = np.zeros(())  # the flow doesn't change with t


def _is_better(state: _State, new: _Sweep) -> Bool[Array, ""]:
    """Whether the energy falls, or is level and the distance is not larger, or x is the same.

    The energy is compared with the least one so far, so that rises within rounding don't add up.
    """
    kept = state.kept
    start = eqx.tree_at(attrgetter("energy"), kept.end, state.least_energy)
    change = energy_change(kept.x, start, new.x, new.end)
    level = (change < 1) & (new.distance <= kept.distance)
    overflows = ~jnp.isfinite(new.end.energy) & jnp.isfinite(start.energy)
    return jnp.isfinite(new.distance) & ~overflows & ((change < 0) | level | state.is_return)


def blocks_of(model: AbstractEnergyModel, x: PyTree[Array]) -> list[PyTree[bool]]:
    """For each block of the model a tree of booleans like x, True for the arrays that move."""
    if not callable(declared := getattr(model, "blocks", None)):
        return [filled(x, True)]

    def spread(moves, x):
        return filled(x, bool(moves))

    blocks = [jax.tree.map(spread, block, x) for block in declared()]  # pyright: ignore[reportGeneralTypeIssues]
    counts = [sum(moves) for moves in zip(*map(jax.tree.leaves, blocks), strict=True)]
    if set(counts) != {1}:
        raise ValueError(f"Expected each array of the state in exactly one block, got {blocks}.")
    return blocks


def _largest_of(tree: PyTree[Array], block: PyTree[bool]) -> Array:
    """The largest entry of the arrays that move."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(block), strict=True)
    return jnp.max(jnp.array([jnp.max(x, initial=0) for x, moves in pairs if moves]), initial=0)
