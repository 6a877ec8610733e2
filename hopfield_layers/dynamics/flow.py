"""The vector field of a model, with its inputs and its clamped units."""

from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Real, Shaped

from .._conversion import as_float, widened
from .._numerics.floors import floored, SMALLEST
from ..model import AbstractEnergyModel, Flow, StateLike
from .inputs import Inputs, inputs_at
from .state_trees import Clamp, like_state, sum_over_units


class EnergyFlow(eqx.Module):
    """The vector field of a model, for your own `diffrax.diffeqsolve`.

    With u = ∂E/∂g − I and H = ∂²L/∂x²,

    | `flow` | dx/dt | |
    |---|---|---|
    | `"state"` | −H u/τ | descent along −∂E/∂x |
    | `"activation"` | −u/τ | descent along −∂E/∂g (Krotov & Hopfield) |

    dE/dt is −‖H u‖²/τ and −uᵀH u/τ, which is never positive. H u is one Jacobian–vector product of
    the activation.

    **Arguments:**

    - `model`: an [`hopfield_layers.AbstractEnergyModel`][].
    - `flow`: `"state"` or `"activation"`.
    - `clamp`: the units that keep their values, dx/dt = 0: a tree of boolean masks of the state's
        structure and shapes, with or without its batch axes. It may leave out a network's layers.
    - `inputs`: the external input I, which adds −Σ I·g to the energy: a tree of arrays that
        broadcast to the state, a function of t that returns such a tree, or a path of diffrax with
        such values. It may leave out layers too. While I changes, the energy may rise.

    Called as `(t, x, args)`; `args` is ignored. x is a state with any batch axes the model takes.

    **Raises:** `ValueError` for an unknown flow; for a mask that is not boolean or doesn't have the
    structure of a state; under the activation flow, for a mask that holds some but not all of the
    units that the Lagrangian couples (a part of a softmax's row, say); and when called, if an input
    or a mask doesn't fit the state.

    Examples:
        >>> import diffrax
        >>> clamp = jnp.array([False, False, True])
        >>> layer = hl.TanhLayer(3, tau=2.0)
        >>> flow = hl.EnergyFlow(layer, flow="activation", clamp=clamp, inputs=jnp.ones(3))
        >>> solution = diffrax.diffeqsolve(
        ...     diffrax.ODETerm(flow), diffrax.Heun(), t0=0.0, t1=2.0, dt0=0.1, y0=jnp.zeros(3)
        ... )
        >>> print(solution.ys[-1].round(3))  # 1 − exp(−t1/τ)
        [0.632 0.632 0.   ]
    """

    model: AbstractEnergyModel
    flow: Flow = eqx.field(static=True)
    clamp: Clamp | None
    inputs: Inputs

    def __init__(
        self,
        model: AbstractEnergyModel,
        flow: Flow = "state",
        clamp: StateLike | Clamp | None = None,
        inputs: Inputs = None,
    ):
        if not isinstance(model, AbstractEnergyModel):
            raise TypeError(
                f"Expected an AbstractEnergyModel, a Layer for instance, got {model!r}."
            )
        if flow not in get_args(Flow):
            raise ValueError(f'Expected flow="state" or flow="activation", got {flow!r}.')
        if clamp is not None and not isinstance(clamp, Clamp):
            clamp = Clamp(model, flow, clamp)
        self.model, self.flow, self.clamp, self.inputs = model, flow, clamp, inputs

    def __call__(
        self, t: Real[ArrayLike, ""], x: StateLike, args: PyTree = None
    ) -> PyTree[Float[Array, "..."]]:
        """dx/dt, of the structure, shapes and dtypes of x."""
        x = jax.tree.map(as_float, x)
        wide = jax.tree.map(widened, x)
        force, tau = self.force(t, wide), time_constants(self.model, wide)
        return jax.tree.map(lambda force, tau, x: (force / tau).astype(x.dtype), force, tau, x)

    # The formulas for a state x in float32 or wider.

    def force(self, t: Real[ArrayLike, ""], x: PyTree[Array]) -> PyTree[Array]:
        """τ dx/dt: −H u or −u, and 0 at the clamped units."""
        return self.force_of(x, self.drive(t, x))

    def force_of(self, x: PyTree[Array], u: PyTree[Array]) -> PyTree[Array]:
        """τ dx/dt, given the drive u."""
        if self.flow == "state":
            _, u = jax.jvp(self.model.activations, (x,), (u,))
        return self.unless_held(x, jax.tree.map(jnp.negative, u))

    def unless_held(self, x: PyTree[Array], rates: PyTree[Array]) -> PyTree[Array]:
        """The rates of the free units, and 0 for the clamped ones."""
        if self.clamp is None:
            return rates
        held = like_state(x, self.clamp.held, "clamp")
        return jax.tree.map(lambda held, rate: jnp.where(held, 0, rate), held, rates)

    def drive(self, t: Real[ArrayLike, ""], x: PyTree[Array]) -> PyTree[Array]:
        """u = ∂E/∂g − I."""
        return self._less_inputs(t, x, self.model.dEdg(x))

    def energy(self, t: Real[ArrayLike, ""], x: PyTree[Array]) -> Float[Array, "*batch"]:
        """E − Σ I·g, of the shape of the batch axes."""
        return self._less_work(t, x, self.model.energy(x))

    def energy_and_drive(
        self, t: Real[ArrayLike, ""], x: PyTree[Array]
    ) -> tuple[Float[Array, "*batch"], PyTree[Array]]:
        """The energy and u, in one evaluation of the model if it has a method for that."""
        together = getattr(self.model, "energy_and_dEdg", None)
        if together is None:
            return self.energy(t, x), self.drive(t, x)
        energy, u = together(x)
        return self._less_work(t, x, energy), self._less_inputs(t, x, u)

    def energy_and_force(
        self, t: Real[ArrayLike, ""], x: PyTree[Array]
    ) -> tuple[Float[Array, "*batch"], PyTree[Array]]:
        """The energy and τ dx/dt, in one evaluation of the model if it has a method for that."""
        energy, u = self.energy_and_drive(t, x)
        return energy, self.force_of(x, u)

    def _less_inputs(self, t: Real[ArrayLike, ""], x: PyTree[Array], u: PyTree) -> PyTree[Array]:
        return u if self.inputs is None else jax.tree.map(jnp.subtract, u, self._inputs_at(t, x))

    def _less_work(self, t: Real[ArrayLike, ""], x: PyTree[Array], energy: Array) -> Array:
        if self.inputs is None:
            return energy
        work = jax.tree.map(jnp.multiply, self._inputs_at(t, x), self.model.activations(x))
        return energy - sum_over_units(work, energy)

    def _inputs_at(self, t: Real[ArrayLike, ""], x: PyTree[Array]) -> PyTree[Array]:
        return like_state(x, inputs_at(self.inputs, t), "inputs")


def time_constants(model: AbstractEnergyModel, x: PyTree[Array]) -> PyTree[Array]:
    """τ of each array of the state x, in its dtype and at least tiny."""

    def per_array(tau, x):
        return jax.tree.map(lambda x: floored(jnp.asarray(tau, x.dtype), SMALLEST), x)

    return jax.tree.map(per_array, model.tau, x)


class BoundedFlow(eqx.Module):
    """A flow with clipped rates, which make a controller reject a step on which the rates overflow.
    Without clipping, ∞ − ∞ of two stages would leave it without an error estimate.
    """

    field: EnergyFlow

    def __call__(self, t: Real[ArrayLike, ""], x: PyTree[Array], args: PyTree) -> PyTree[Array]:
        return _clipped(self.field(t, x, args))

    def force(self, t: Real[ArrayLike, ""], x: PyTree[Array]) -> PyTree[Array]:
        """τ dx/dt, clipped."""
        return _clipped(self.field.force(t, x))


def _clipped(rates: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda rate: jnp.clip(rate, -max_rate(rate), max_rate(rate)), rates)


def max_rate(rate: Shaped[Array, "..."]) -> float:
    """The largest rate of this dtype for which sums over a solver's stages stay in range."""
    return float(jnp.finfo(rate.dtype).max) ** 0.9
