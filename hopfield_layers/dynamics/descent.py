"""Step size control by the energy."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .flow import EnergyFlow, total


def energy_descent(controller: Any, model: Any) -> diffrax.AbstractStepSizeController:
    """Rejects every step on which the energy rises, and makes it shorter: E(x₁) ≤ E(x₀).

    Descent then holds on the accepted steps by construction, for every solver and for constant
    steps of any size. Where E(x₁) − E(x₀) drowns in the rounding of E, its sign is that of
    ½ Σ (u₀ + u₁)(g₁ − g₀), which doesn't cancel; where that drowns too the step is accepted, so
    that nothing is rejected for ever. A step costs one evaluation of the energy, and one of ∂E/∂g
    and g where the solver doesn't end its steps with these.

    **Arguments:**

    - `controller`: any diffrax step size controller, adaptive or constant. Constant steps become
        shorter where they must, and meet their grid again.
    - `model`: the model that is solved. In your own `diffrax.diffeqsolve` its
        [`hopfield_layers.EnergyFlow`][] if there are inputs; they must not depend on t.

    **Returns:**

    A step size controller for `diffrax.diffeqsolve`, [`hopfield_layers.solve`][] and
    [`hopfield_layers.relax`][], for t1 > t0.

    **Raises:** `TypeError` if the arguments are not as above; `ValueError` for inputs that depend
    on t.

    ```python
    >>> import diffrax
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.IdentityLayer(2)
    >>> constant = hl.energy_descent(diffrax.ConstantStepSize(), layer)
    >>> solution = hl.solve(  # Euler's steps of 100 τ lead uphill, to E = 1e4
    ...     layer, jnp.ones(2), 200.0, dt0=100.0, solver=diffrax.Euler(),
    ...     stepsize_controller=constant,
    ... )
    >>> print(bool(layer.energy(solution.ys[-1]) <= layer.energy(jnp.ones(2))))
    True

    ```
    """
    if not isinstance(controller, diffrax.AbstractStepSizeController):
        raise TypeError(f"Expected a step size controller of diffrax, got {controller!r}.")
    flow = model if isinstance(model, EnergyFlow) else EnergyFlow(model)
    _check_inputs(flow)
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        return _AdaptiveDescent(controller, flow)  # pyright: ignore[reportCallIssue]
    return _ConstantDescent(controller, flow)


def descend_on(controller: PyTree, flow: EnergyFlow) -> PyTree:
    """`controller`, with its energies those of the flow that is solved, inputs and all."""

    def of_flow(node):
        if not is_descent(node):
            return node
        _check_inputs(flow)
        return eqx.tree_at(lambda c: c.flow, node, flow)

    return jax.tree.map(of_flow, controller, is_leaf=is_descent)


def is_descent(node: Any) -> bool:
    """Whether this is a controller of [`hopfield_layers.energy_descent`][]."""
    return isinstance(node, _AbstractDescent)


def _check_inputs(flow: EnergyFlow) -> None:
    if callable(flow.inputs):
        raise ValueError("The energy may rise with inputs that depend on t: expected arrays.")


_SHRINK, _GROW = 0.25, 2.0


class Point(eqx.Module):
    """What tells, at the ends of a step, whether it leads downhill; not differentiated."""

    g: PyTree
    u: PyTree
    energy: Array


def point(flow: EnergyFlow, t: Any, x: PyTree, u: PyTree = None) -> Point:
    """That of the state x, where u may be known already."""
    constant = lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf
    flow, x, u = jax.tree.map(constant, (flow, x, u))
    u = flow.drive(t, x) if u is None else u
    return Point(flow.model.activations(x), u, flow.energy(t, x))


class _DescentState(eqx.Module):
    start: Point
    inner: PyTree  # the controller's own state
    end: Array  # where the controller wants the step to end
    longest: Array  # the longest step that the energy allows


class _AbstractDescent(diffrax.AbstractStepSizeController):
    """Rejects steps on which the energy rises, and leaves the others to `controller`."""

    controller: eqx.AbstractVar[Any]
    flow: eqx.AbstractVar[EnergyFlow]

    def wrap(self, direction):
        return eqx.tree_at(lambda c: c.controller, self, self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order, start=None):
        end, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        end = jnp.asarray(end, jnp.result_type(t0, t1))
        start = point(self.flow, t0, y0) if start is None else start
        return end, _DescentState(start, inner, end, jnp.full_like(end, jnp.inf))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state, after=None
    ):
        """As the controller, unless the energy rises; `after` is the point at the end, if known."""
        state: _DescentState = controller_state
        keep, next_t0, end, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        if not isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController):
            # A step that was made shorter doesn't count before it gets where it was to end.
            arrived = t1 >= state.end
            next_t0 = t1
            end, inner = where(arrived, (end, inner), (state.end, state.inner))
        after = point(self.flow, t1, y1_candidate) if after is None else after
        falls = _falls(y0, state.start, y1_candidate, after)
        uphill = keep & ~falls
        end, inner = where(uphill, (state.end, state.inner), (end, inner))
        next_t0 = jnp.where(uphill, t0, next_t0)
        keep = keep & falls
        longest = jnp.where(keep, _GROW * state.longest, state.longest)
        longest = jnp.where(uphill, _SHRINK * (t1 - t0), longest)
        next_t1 = jnp.minimum(end, next_t0 + longest)
        state = _DescentState(where(keep, after, state.start), inner, end, longest)
        return keep, next_t0, next_t1, made_jump, state, result


class _ConstantDescent(_AbstractDescent):
    controller: Any
    flow: EnergyFlow


class _AdaptiveDescent(_AbstractDescent, diffrax.AbstractAdaptiveStepSizeController):
    controller: Any
    flow: EnergyFlow

    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm


def where(condition: Any, a: PyTree, b: PyTree) -> PyTree:
    """`jnp.where` of trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)


def _falls(x0: PyTree, start: Point, x1: PyTree, end: Point) -> Array:
    """Whether the energy of no sample rises."""
    rise = end.energy - start.energy
    eps = jnp.finfo(rise.dtype).eps
    units = sum(x.size for x in jax.tree.leaves(x0)) // max(rise.size, 1)

    def size(x, point):
        products = jax.tree.map(lambda x, g: jnp.abs(x * g), x, point.g)
        return jnp.abs(point.energy) + total(products, rise)

    def work(x0, x1, g0, g1, u0, u1):
        u, turn = (u0 + u1) / 2, g1 - g0
        noise = (abs(x0) + abs(x1)) * abs(turn) + abs(u) * (abs(g0) + abs(g1))
        return u * turn - 8 * eps * noise

    rounding = (8 + units**0.5) * eps * (size(x0, start) + size(x1, end))
    works = jax.tree.map(work, x0, x1, start.g, end.g, start.u, end.u)
    falls = jnp.where(rise < -rounding, True, (rise <= rounding) & (total(works, rise) <= 0))
    return jnp.all(jnp.where(jnp.isfinite(rounding), falls, end.energy <= start.energy))
