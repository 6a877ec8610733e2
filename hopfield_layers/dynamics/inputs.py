"""External inputs that change in time, and the times at which a step has to end for them."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, PyTree, Real, Shaped

from .._conversion import as_float
from .._trees import entries
from ..model import StateLike


Inputs = StateLike | Callable[[Array], StateLike] | diffrax.AbstractPath | None


class PiecewiseConstantInterpolation(diffrax.AbstractGlobalInterpolation):
    """yⱼ for tⱼ ≤ t < tⱼ₊₁, and after the last time its y: `inputs=` of pulses and stimuli.

    [`hopfield_layers.solve`][] ends a step right before each tⱼ and begins the next one right after
    it, so that no pulse is stepped over, however short.

    **Arguments:**

    - `ts`: the increasing times, `(times,)`, in the units of t. The first one is at or before t0.
    - `ys`: a tree of arrays `(times, ...)`, the input from each of the times on.

    **Raises:** `ValueError` if the numbers of times differ.

    Examples:
        >>> ts, ys = jnp.array([0.0, 150.0, 150.5]), jnp.array([0.0, 9.0, 0.0])
        >>> pulse = hl.PiecewiseConstantInterpolation(ts, ys)
        >>> print(pulse.evaluate(150.2), pulse.evaluate(151.0))
        9.0 0.0
        >>> solution = hl.solve(hl.IdentityLayer(2), jnp.zeros(2), 151.0, inputs=pulse)
        >>> print(solution.ys[0].round(3))  # 9 (1 − exp(−0.5)) exp(−0.5)
        [2.148 2.148]
    """

    ts: Real[Array, " times"] = eqx.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        converter=jnp.asarray
    )
    ys: PyTree[Shaped[Array, "..."]]

    def __check_init__(self):
        _check_lengths(self.ts, self.ys)

    @property
    def ts_size(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.ts)

    def evaluate(
        self,
        t0: Real[ArrayLike, ""],
        t1: Real[ArrayLike, ""] | None = None,
        left: bool = False,
    ) -> PyTree[Array]:
        """The value at t0, or the value at t1 minus that at t0.

        **Arguments:** the times, and `left`: whether to take the value before a jump at that time.

        **Returns:** a tree like ys without the axis of the times.

        Examples:
            >>> path = hl.PiecewiseConstantInterpolation(jnp.arange(2.0), jnp.array([3.0, 5.0]))
            >>> print(path.evaluate(1.0), path.evaluate(1.0, left=True), path.evaluate(0.0, 1.0))
            5.0 3.0 2.0
        """
        if t1 is not None:
            start, end = (self.evaluate(t, left=left) for t in (t0, t1))
            return jax.tree.map(jnp.subtract, end, start)
        index = jnp.searchsorted(self.ts, t0, side="left" if left else "right") - 1
        return entries(self.ys, jnp.maximum(index, 0))


class InputsWithJumps(eqx.Module):
    """A function of t that jumps at known times, at which a solver ends its step.

    A solver evaluates a plain function only at its stages. While nothing else changes, its steps
    become long, and a pulse that lies between two stages is stepped over without any error.

    **Arguments:**

    - `fn`: a function of t, whose values broadcast to the state of one sample.
    - `jump_ts`: the times of the jumps, `(jumps,)`, in the units of t.

    **Raises:** `ValueError` if `jump_ts` doesn't have exactly one axis.

    Examples:
        >>> pulse = lambda t: 50.0 * ((t > 150.0) & (t < 150.001))
        >>> inputs = hl.InputsWithJumps(pulse, jump_ts=jnp.array([150.0, 150.001]))
        >>> solution = hl.solve(hl.IdentityLayer(1), jnp.zeros(1), 151.0, inputs=inputs)
        >>> print(solution.ys[0].round(3))  # 0.05 exp(−0.999)
        [0.018]
    """

    fn: Callable[[Array], StateLike]
    jump_ts: Real[Array, " jumps"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if self.jump_ts.ndim != 1:
            raise ValueError(f"Expected jump_ts of one axis, got shape {self.jump_ts.shape}.")

    def __call__(self, t: Array) -> StateLike:
        """fn(t)."""
        return self.fn(t)


def _check_lengths(ts: Array, ys: PyTree[Array]) -> None:
    for y in jax.tree.leaves(ys):
        if jnp.ndim(ts) != 1 or jnp.ndim(y) < 1 or len(ts) != len(y) or len(ts) == 0:
            raise ValueError(
                "Expected times of one axis and as many values, got shapes "
                f"{jnp.shape(ts)} and {jnp.shape(y)}."
            )


def depends_on_time(inputs: Inputs) -> bool:
    """Whether these inputs are a function or a path of diffrax."""
    return callable(inputs) or isinstance(inputs, diffrax.AbstractPath)


def inputs_at(inputs: Inputs, t: Real[ArrayLike, ""]) -> StateLike | None:
    """The inputs at the time t, or right after t if they jump there."""
    if isinstance(inputs, diffrax.AbstractPath):
        return inputs.evaluate(jnp.asarray(t), left=False)
    return inputs(jnp.asarray(t)) if callable(inputs) else inputs


def with_times_in(inputs: Any, dtype: DTypeLike) -> Any:
    """The inputs with the times of their grid or jumps in the dtype of t."""
    if isinstance(inputs, diffrax.AbstractGlobalInterpolation):
        times = attrgetter("ts")
    elif isinstance(inputs, InputsWithJumps):
        times = attrgetter("jump_ts")
    else:
        return inputs
    return eqx.tree_at(times, inputs, replace_fn=lambda ts: as_float(ts).astype(dtype))


def values_on_grid(inputs: Inputs) -> PyTree[Array] | None:
    """The values of an interpolation on a grid, with the axis of times first; otherwise None."""
    if isinstance(inputs, diffrax.LinearInterpolation | PiecewiseConstantInterpolation):
        return inputs.ys
    return None


def split_samples(inputs: Any, x0: PyTree[Array], batch: tuple[int, ...]) -> tuple[Any, Any]:
    """Inputs that differ between samples, with the batch axes first, and inputs that all share.

    `equinox.combine` puts the two together.
    """
    if not depends_on_time(inputs):
        return inputs, None
    if (ys := values_on_grid(inputs)) is None or not batch:
        return None, inputs

    def batch_first(y, x):
        num_axes = y.ndim - 1 - (x.ndim - len(batch))
        if num_axes <= 0:
            return None
        axes = (1,) * (len(batch) - num_axes)
        y = jnp.reshape(y, (len(y), *axes, *y.shape[1:]))
        y = jnp.broadcast_to(y, (len(y), *batch, *y.shape[1 + len(batch) :]))
        return jnp.moveaxis(y, 0, len(batch))

    like = {name: x0[name] for name in ys} if isinstance(x0, dict) else x0
    own = jax.tree.map(batch_first, ys, like)
    shared = jax.tree.map(lambda y, own: y if own is None else None, ys, own)
    varying = eqx.tree_at(attrgetter("ts", "ys"), inputs, (None, own))
    return varying, eqx.tree_at(attrgetter("ys"), inputs, shared)


def bends_and_jumps(inputs: Inputs) -> tuple[Array | None, Array | None]:
    """The times at which the inputs bend and those at which they jump, if they are known."""
    if isinstance(inputs, diffrax.LinearInterpolation):
        return inputs.ts, None
    if isinstance(inputs, PiecewiseConstantInterpolation):
        return None, inputs.ts
    return None, inputs.jump_ts if isinstance(inputs, InputsWithJumps) else None


def steps_to_inputs(
    controller: diffrax.AbstractStepSizeController, inputs: Inputs
) -> diffrax.AbstractStepSizeController:
    """The controller, modified so that steps end at the times where the inputs jump or bend."""
    bends, jumps = bends_and_jumps(inputs)
    is_smooth = bends is None and (jumps is None or len(jumps) == 0)
    if is_smooth or isinstance(controller, diffrax.StepTo):
        return controller
    if isinstance(controller, diffrax.ConstantStepSize):
        controller = ConstantSteps()
    if not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise ValueError(
            "Expected an adaptive step size controller, or constant steps, for inputs that change "
            f"at given times, got {type(controller).__name__}."
        )
    return diffrax.ClipStepSizeController(controller, bends, jumps)


class ConstantSteps(diffrax.AbstractAdaptiveStepSizeController):
    """Constant steps as an adaptive controller, because diffrax shortens the steps of no other."""

    # For root finders that use the controller's tolerances.
    rtol: Any = 1e-5  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: Any = 1e-7  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: Callable[[PyTree], Array] = optx.rms_norm

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + dt0, dt0

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        end = t1 + controller_state
        return True, t1, end, False, controller_state, diffrax.RESULTS.successful


def grid_errors(inputs: Inputs, t0: Array, t1: Array) -> dict[str, Bool[Array, ""]]:
    """Whether a grid of times isn't increasing, and whether it doesn't cover t0 to t1."""
    if isinstance(inputs, InputsWithJumps):
        return {_NOT_FINITE: ~jnp.all(jnp.isfinite(inputs.jump_ts))}
    if not isinstance(inputs, diffrax.AbstractGlobalInterpolation):
        return {}
    ts = inputs.ts
    ends = isinstance(inputs, PiecewiseConstantInterpolation) | (t1 <= ts[-1])
    increasing = jnp.all(jnp.diff(ts) > 0) & jnp.all(jnp.isfinite(ts))
    return {_NOT_INCREASING: ~increasing, _BEYOND_GRID: ~((ts[0] <= t0) & ends)}


_NOT_FINITE = "Expected finite jump_ts."
_NOT_INCREASING = "Expected finite, increasing times ts of the inputs."
_BEYOND_GRID = (
    "The inputs are given from ts[0] to ts[-1], but the solve begins earlier or ends later."
)
