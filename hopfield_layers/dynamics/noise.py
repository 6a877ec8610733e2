"""Brownian noise for steps that are never rejected, and the controller that takes such steps."""

from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray, PyTree, Real

from .inputs import bends_and_jumps, ConstantSteps, Inputs


class Noise(diffrax.AbstractBrownianPath):
    """Increments of Brownian motion, drawn afresh for each step by the time at which it starts.

    They are right for a solver that evaluates each step once, over its whole length, and rejects
    none. `diffrax.UnsafeBrownianPath` is the same, but has no reverse mode: here the increment of a
    step that is replayed is the same again, for the start of the step is. `VirtualBrownianTree`
    allows rejected steps, for 8 to 20 times the CPU time on cheap models.
    """

    levy_area: type[diffrax.BrownianIncrement | diffrax.SpaceTimeLevyArea] = eqx.field(static=True)
    shapes: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    key: PRNGKeyArray

    @classmethod
    def of(cls, solver: diffrax.AbstractSolver, x: PyTree[Array], key: PRNGKeyArray) -> "Noise":
        """Noise in every unit of x, with the areas that the solver needs."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        needed = getattr(solver, "minimal_levy_area", diffrax.BrownianIncrement)
        enough = issubclass(diffrax.BrownianIncrement, needed)
        area = diffrax.BrownianIncrement if enough else diffrax.SpaceTimeLevyArea
        return cls(shapes=shapes, key=key, levy_area=area)

    @property
    def t0(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return -jnp.inf

    @property
    def t1(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return jnp.inf

    def evaluate(
        self,
        t0: Real[ArrayLike, ""],
        t1: Real[ArrayLike, ""] | None = None,
        left: bool = True,
        use_levy: bool = False,
    ) -> PyTree[Array]:
        """W(t1) − W(t0), and with `use_levy` the space-time area of the step."""
        if t1 is None:
            raise ValueError("Noise has increments only: pass both ends of the step.")
        start = jax.lax.stop_gradient(jnp.asarray(t0))
        dt = jax.lax.stop_gradient(jnp.asarray(t1) - start)
        key = self.key
        for word in jnp.atleast_1d(jax.lax.bitcast_convert_type(start, jnp.uint32)):
            key = jax.random.fold_in(key, word)
        of_W, of_H = jax.random.split(key)
        W = self._normal(of_W, jnp.sqrt(dt))
        if not use_levy:
            return W
        dts = jax.tree.map(lambda x: dt.astype(x.dtype), W)
        if self.levy_area is diffrax.BrownianIncrement:
            return diffrax.BrownianIncrement(dt=dts, W=W)
        return diffrax.SpaceTimeLevyArea(dt=dts, W=W, H=self._normal(of_H, jnp.sqrt(dt / 12)))

    def _normal(self, key: PRNGKeyArray, std: Array) -> PyTree[Array]:
        shapes, structure = jax.tree.flatten(self.shapes)
        keys = jax.random.split(key, len(shapes))
        return structure.unflatten(
            [
                std.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)
                for key, x in zip(keys, shapes, strict=True)
            ]
        )


class StepsOfGivenSize(diffrax.AbstractStepSizeController):
    """Constant steps, which end early at given times and where the inputs jump or bend.

    No step is rejected. Of diffrax's own controllers only adaptive ones can end at given times, and
    it doesn't take those together with Euler's method for noise.
    """

    size: Real[Array, ""]
    clipped: diffrax.ClipStepSizeController

    @classmethod
    def to(
        cls, times: Sequence[Array], inputs: Inputs, size: Real[Array, ""]
    ) -> "StepsOfGivenSize":
        """Steps of this size that end at these times, `(times,)` each, and at the inputs' own."""
        bends, jumps = bends_and_jumps(inputs)
        times = [*times, *([] if bends is None else [bends])]
        step_ts = jnp.sort(jnp.concatenate(times)) if times else None
        return cls(size, diffrax.ClipStepSizeController(ConstantSteps(), step_ts, jumps))

    def wrap(self, direction):
        return StepsOfGivenSize(self.size, self.clipped.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        # Diffrax would check the sign of its own dt0 on the host.
        return self.clipped.init(terms, t0, t1, y0, self.size, args, func, error_order)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        return self.clipped.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
