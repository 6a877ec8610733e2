"""Step size control by the energy."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Real

from ..model import AbstractEnergyModel
from .flow import EnergyFlow
from .inputs import depends_on_time
from .options import check_tools
from .state_trees import sum_over_units, tree_where, without_derivatives
from .sums_of_vectors import sums


_T = TypeVar("_T")


def energy_descent(
    controller: diffrax.AbstractStepSizeController, model: AbstractEnergyModel | EnergyFlow
) -> diffrax.AbstractStepSizeController:
    """Rejects every step on which the energy rises, and makes it shorter: E(x₁) ≤ E(x₀).

    Descent then holds by construction, for every solver and for constant steps of any size. Where
    E(x₁) − E(x₀) is below the rounding error of E, its sign is taken from ½ Σ (u₀ + u₁)(g₁ − g₀),
    which doesn't cancel. If that is below rounding too, the step is accepted, so that no step is
    rejected for ever. A step costs one evaluation of E, and of ∂E/∂g and g unless the solver ends
    its step with these.

    **Arguments:**

    - `controller`: any of diffrax. Constant steps return to multiples of dt0 after shorter ones.
    - `model`: the model that is solved. If there are inputs, pass its
        [`hopfield_layers.EnergyFlow`][] instead in your own `diffrax.diffeqsolve`. Inputs must not
        depend on t.

    **Returns:** a step size controller of diffrax, for t1 > t0.

    **Raises:** `TypeError` or `ValueError` if the arguments are not as above.

    Examples:
        >>> import diffrax
        >>> layer = hl.IdentityLayer(2)
        >>> euler = {"solver": diffrax.Euler(), "dt0": 100.0}  # by itself this leads to E = 1e4
        >>> constant = hl.energy_descent(diffrax.ConstantStepSize(), layer)
        >>> solution = hl.solve(layer, jnp.ones(2), 200.0, stepsize_controller=constant, **euler)
        >>> print(bool(layer.energy(solution.ys[-1]) <= layer.energy(jnp.ones(2))))
        True
    """
    check_tools(None, controller)
    field = model if isinstance(model, EnergyFlow) else EnergyFlow(model)
    descent = _ConstantDescent(controller, field)
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        tolerances = {name: getattr(controller, name) for name in ("rtol", "atol", "norm")}
        descent = _AdaptiveDescent(controller=controller, field=field, **tolerances)
    return descend_along(field, descent)


def descend_along(field: EnergyFlow, controller: _T) -> _T:
    """`controller` with the energy of this vector field, which includes that of its inputs."""

    def replace(node):
        if not is_descent(node):
            return node
        if depends_on_time(field.inputs):
            raise ValueError("The energy may rise with inputs that depend on t: expected arrays.")
        return eqx.tree_at(attrgetter("field"), node, field)

    return jax.tree.map(replace, controller, is_leaf=is_descent)


def is_descent(node: object) -> bool:
    """Whether this is a controller of [`hopfield_layers.energy_descent`][]."""
    return isinstance(node, _AbstractDescent)


class StepEnd(eqx.Module):
    """The values at an end of a step that decide whether the energy falls; not differentiated."""

    g: PyTree[Array]
    u: PyTree[Array]
    energy: Float[Array, "*batch"]


def step_end(
    field: EnergyFlow, t: Real[ArrayLike, ""], x: PyTree, u: PyTree | None = None
) -> StepEnd:
    """The end of a step at the state x; u may be passed if it is known already."""
    field, x, u = without_derivatives((field, x, u))
    energy, u = field.energy_and_drive(t, x) if u is None else (field.energy(t, x), u)
    return StepEnd(field.model.activations(x), u, energy)


class _DescentState(eqx.Module):
    start: StepEnd
    inner: PyTree  # the state of the wrapped controller
    end: Array  # the end that the wrapped controller chose for the step
    longest: Array  # the longest step that the energy allows


class _AbstractDescent(diffrax.AbstractStepSizeController):
    """Rejects steps on which the energy rises, and leaves the others to `controller`."""

    controller: eqx.AbstractVar[diffrax.AbstractStepSizeController]
    field: eqx.AbstractVar[EnergyFlow]

    def wrap(self, direction):
        return eqx.tree_at(attrgetter("controller"), self, self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order, start=None):
        """Like the wrapped controller; `start` is the `StepEnd` at y0, if it is known."""
        end, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        end = jnp.asarray(end, jnp.result_type(t0, t1))
        start = step_end(self.field, t0, y0) if start is None else start
        return end, _DescentState(start, inner, end, jnp.full_like(end, jnp.inf))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state, after=None
    ):
        """Like the wrapped controller, unless the energy rises; `after` is the `StepEnd` at y1."""
        state: _DescentState = controller_state
        keep, next_t0, end, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        if not isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController):
            # A shortened step is only complete once later steps have reached its intended end.
            next_t0 = t1
            end, inner = tree_where(t1 >= state.end, (end, inner), (state.end, state.inner))
        after = step_end(self.field, t1, y1_candidate) if after is None else after
        falls = jnp.all(energy_change(y0, state.start, y1_candidate, after) < 1)
        uphill, keep = keep & ~falls, keep & falls
        before = t0, state.end, state.inner
        next_t0, end, inner = tree_where(uphill, before, (next_t0, end, inner))
        longest = jnp.where(keep, 2 * state.longest, state.longest)
        longest = jnp.where(uphill, (t1 - t0) / 4, longest)
        state = _DescentState(tree_where(keep, after, state.start), inner, end, longest)
        return keep, next_t0, jnp.minimum(end, next_t0 + longest), made_jump, state, result


class _ConstantDescent(_AbstractDescent):
    controller: diffrax.AbstractStepSizeController
    field: EnergyFlow


class _AdaptiveDescent(_AbstractDescent, diffrax.AbstractAdaptiveStepSizeController):
    controller: diffrax.AbstractStepSizeController
    field: EnergyFlow
    rtol: Any  # the tolerances of `controller`, for implicit solvers
    atol: Any
    norm: Callable[[PyTree], Array]


def energy_change(x0: PyTree[Array], start: StepEnd, x1: PyTree[Array], end: StepEnd) -> Array:
    """−1 if the energy of a sample falls, 1 if it rises, and a value between if that is uncertain.

    Where rounding hides the sign of the difference, the sign of ½ Σ (u₀ + u₁)(g₁ − g₀) is used,
    which doesn't cancel; where rounding may hide that too, half of this sign, or 0.
    """
    # The result is a sign, so that no derivative is lost. `custom_vmap` can't be transposed.
    x0, x1 = without_derivatives((x0, x1))
    rise = end.energy - start.energy
    eps = jnp.finfo(rise.dtype).eps
    num_units = sum(x.size for x in jax.tree.leaves(x0)) // max(rise.size, 1)

    def terms(x0, x1, g0, g1, u0, u1):
        """The size of the energies, the work, and the size of its rounding errors."""
        size = jnp.abs(x0 * g0) + jnp.abs(x1 * g1)
        noise = 2 * (abs(x0) + abs(x1)) * abs(g1 - g0) + abs(u0 + u1) * (abs(g0) + abs(g1))
        return size, (u0 + u1) * (g1 - g0), noise

    trees = x0, x1, start.g, end.g, start.u, end.u
    of_arrays = [terms(*arrays) for arrays in zip(*map(jax.tree.leaves, trees), strict=True)]
    if isinstance(x0, Array) and x0.ndim == 1 and rise.ndim == 0:
        size, work, noise = sums(*of_arrays[0])
    else:
        size, work, noise = (sum_over_units(term, rise) for term in zip(*of_arrays, strict=True))
    rounding = (8 + num_units**0.5) * eps * (jnp.abs(start.energy) + jnp.abs(end.energy) + size)
    # The factors stand outside of the sums, where XLA on CPUs would store them for each unit.
    works, noises = work / 2, 4 * eps * noise
    by_work = jnp.where(jnp.abs(works) <= noises, 0.5, 1) * jnp.sign(works)
    change = jnp.where(jnp.abs(rise) <= rounding, by_work, jnp.sign(rise))
    by_energy = jnp.where(end.energy <= start.energy, jnp.where(rise < 0, -1, 0), 1)
    return jnp.where(jnp.isfinite(rounding), change, by_energy)
