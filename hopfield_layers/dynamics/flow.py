"""The vector field of a model, with its inputs and its clamped units."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arrays import as_float, SMALLEST, spread, widened
from ..model import AbstractEnergyModel


Inputs = PyTree | Callable[[Array], PyTree] | None


class EnergyFlow(eqx.Module):
    """The vector field of a model, for your own `diffrax.diffeqsolve`.

    With u = ∂E/∂g − I and H = ∂²L/∂x²,

    | `flow` | dx/dt | |
    |---|---|---|
    | `"state"` | −H u/τ | descent along −∂E/∂x |
    | `"activation"` | −u/τ | descent along −∂E/∂g (Krotov & Hopfield) |

    dE/dt = −‖H u‖²/τ and −uᵀH u/τ are never positive. H u is one Jacobian–vector product of the
    activation. The units of `clamp` keep their values: their dx/dt is 0.

    **Arguments:**

    - `model`: an [`hopfield_layers.AbstractEnergyModel`][].
    - `flow`: `"state"` or `"activation"`.
    - `clamp`: the units that are held, a boolean state: a tree of masks with the structure and
        shapes of the state, with or without its batch axes.
    - `inputs`: the external input I, which adds −Σ I·g to the energy: a tree of arrays that
        broadcast to the state, or a function of t that returns one.

    Called as `(t, x, args)`; `args` is ignored. x is a state with any batch axes the model takes.

    **Raises:** `ValueError` for an unknown flow, for a mask that is not boolean or no state of the
    model, and for one that, under the activation flow, holds some but not all of the units that
    the Lagrangian couples (a part of a softmax's row, say), as the energy could then rise; when
    called, if an input or a mask doesn't fit the state.

    ```python
    >>> import diffrax
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> clamp = jnp.array([False, False, True])
    >>> layer = hl.TanhLayer(3, tau=2.0)
    >>> flow = hl.EnergyFlow(layer, flow="activation", clamp=clamp, inputs=jnp.ones(3))
    >>> print(flow(0.0, jnp.array([0.0, 3.0, 2.0])))
    [ 0.5 -1.   0. ]
    >>> solution = diffrax.diffeqsolve(
    ...     diffrax.ODETerm(flow), diffrax.Heun(), t0=0.0, t1=2.0, dt0=0.1, y0=jnp.zeros(3)
    ... )
    >>> print(solution.ys[-1].round(3))  # 1 − exp(−t1/τ)
    [0.632 0.632 0.   ]

    ```
    """

    model: AbstractEnergyModel
    flow: str = eqx.field(static=True)
    clamp: PyTree
    inputs: Inputs

    def __init__(
        self, model: Any, flow: str = "state", clamp: PyTree = None, inputs: Inputs = None
    ):
        if not isinstance(model, AbstractEnergyModel):
            raise TypeError(
                f"Expected an AbstractEnergyModel, a Layer for instance, got {model!r}."
            )
        if flow not in ("state", "activation"):
            raise ValueError(f'Expected flow="state" or flow="activation", got {flow!r}.')
        self.model = model
        self.flow = flow
        self.clamp = None if clamp is None else _unsplit(model, flow, jax.tree.map(as_mask, clamp))
        self.inputs = inputs

    def __call__(self, t: ArrayLike, x: PyTree, args: PyTree = None) -> PyTree:
        x = jax.tree.map(as_float, x)
        force = self.force(t, x)
        return jax.tree.map(_rate, times(self.model, force), force)

    def force(self, t: ArrayLike, x: PyTree) -> PyTree:
        """τ dx/dt, of the structure and shapes of x: −H u or −u, and 0 at the clamped units."""
        u = self.drive(t, x)
        if self.flow == "state":
            _, u = jax.jvp(self.model.activations, (x,), (u,))
        if self.clamp is None:
            return jax.tree.map(jnp.negative, u)
        clamp = fitted("clamp", self.clamp, x)
        return jax.tree.map(lambda held, u: jnp.where(held, 0, -u), clamp, u)

    def drive(self, t: ArrayLike, x: PyTree) -> PyTree:
        """u = ∂E/∂g − I, of the structure and shapes of x."""
        u = self.model.dEdg(x)
        if self.inputs is None:
            return u
        inputs = self.inputs(jnp.asarray(t)) if callable(self.inputs) else self.inputs
        return jax.tree.map(jnp.subtract, u, fitted("inputs", inputs, u))

    def energy(self, t: ArrayLike, x: PyTree) -> Array:
        """E − Σ I·g, of the shape of the batch axes."""
        energy = self.model.energy(x)
        if self.inputs is None:
            return energy
        inputs = self.inputs(jnp.asarray(t)) if callable(self.inputs) else self.inputs
        g = self.model.activations(x)
        return energy - total(jax.tree.map(jnp.multiply, fitted("inputs", inputs, g), g), energy)


def times(model: Any, x: PyTree) -> PyTree:
    """The time constant of each array of x, in its dtype, at least tiny where training drives it
    to zero or below.
    """

    def floored(tau, x):
        tau = as_float(tau).astype(widened(x).dtype)
        return jnp.where(tau < SMALLEST, SMALLEST, tau)

    return jax.tree.map(lambda tau, x: jax.tree.map(lambda x: floored(tau, x), x), model.tau, x)


def total(terms: PyTree, like: Array) -> Array:
    """The sum over all units, of the shape of the batch axes, `like`'s."""
    add = lambda term: jnp.sum(term, axis=tuple(range(like.ndim, term.ndim)))
    return sum(map(add, jax.tree.leaves(terms)), jnp.zeros_like(like))


def _rate(tau: Array, force: Array) -> Array:
    """force/τ."""
    return (widened(force) / tau).astype(force.dtype)


class Guarded(eqx.Module):
    """A field that an adaptive solver may try anywhere.

    A trial step may go where dx/dt overflows, an exponential unit at x = 1000 say. A large finite
    rate makes the solver reject the step, where ∞ − ∞ among its stages would leave it without an
    error to go by.
    """

    field: EnergyFlow

    @property
    def model(self):
        return self.field.model

    def __call__(self, t, x, args):
        return jax.tree.map(_bounded, self.field(t, x, args))

    def force(self, t, x):
        """τ dx/dt."""
        return jax.tree.map(_bounded, self.field.force(t, x))


def _bounded(rate: Array) -> Array:
    return jnp.clip(rate, -fastest(rate), fastest(rate))


def fastest(rate: Array) -> float:
    """A rate that leaves room to add up stages."""
    return float(jnp.finfo(rate.dtype).max) ** 0.9


def fitted(name: str, tree: PyTree, x: PyTree) -> PyTree:
    """`tree` in the structure and shapes of `x`; and in its dtypes, unless it is boolean."""
    if jax.tree.structure(tree) != jax.tree.structure(x):
        raise ValueError(
            f"Expected {name} of the state's structure, {jax.tree.structure(x)}, got "
            f"{jax.tree.structure(tree)}."
        )

    def fit(leaf, x):
        leaf = leaf if name == "clamp" else as_float(leaf).astype(x.dtype)
        return spread(f"An array of {name}", leaf, x.shape)

    return jax.tree.map(fit, tree, x)


def as_mask(leaf: ArrayLike) -> Array:
    """`leaf`, or an error if it is not boolean."""
    leaf = jnp.asarray(leaf)
    if leaf.dtype != bool:
        raise ValueError(f"Expected clamp to be boolean, got {leaf.dtype}.")
    return leaf


def _unsplit(model: Any, flow: str, clamp: PyTree) -> PyTree:
    """`clamp`, or an error if it is no state of the model, or splits what a Lagrangian couples."""
    state = jax.tree.map(lambda held: jnp.zeros(held.shape), clamp)
    try:
        jax.eval_shape(model.activations, state)
    except Exception as error:
        shapes = jax.tree.map(lambda held: held.shape, clamp)
        raise ValueError(
            f"Expected clamp to be a state of the model, got {shapes}: {error}"
        ) from error
    if flow == "state":
        return clamp
    with jax.ensure_compile_time_eval():
        units = split_units(model, clamp, state)
        split = jnp.any(jnp.array([jnp.any(leaf) for leaf in jax.tree.leaves(units)]))
    if isinstance(split, Tracer):
        return eqx.error_if(clamp, split, _SPLIT)
    if bool(split):
        raise ValueError(_SPLIT)
    return clamp


@eqx.filter_jit
def split_units(model: AbstractEnergyModel, clamp: PyTree, x: PyTree) -> PyTree:
    """The free units whose activation depends on a clamped one, for any state x of the model.

    A tangent of NaN at the clamped units shows where it does, by 0·NaN = NaN also where the
    derivative happens to vanish. Far out every bias drowns in rounding, so that a row's units are
    equal and none is off the support.
    """

    def splits(at):
        point = jax.tree.map(lambda x: jnp.full_like(x, at), x)

        def affected(tangent):
            fill = lambda held, x: jnp.where(held, tangent, 0).astype(x.dtype)
            probe = jax.tree.map(fill, clamp, point)
            return jax.tree.map(jnp.isnan, jax.jvp(model.activations, (point,), (probe,))[1])

        depends = lambda held, with_nan, without: with_nan & ~without & ~held
        return jax.tree.map(depends, clamp, affected(jnp.nan), affected(0.0))

    return jax.tree.map(jnp.logical_or, splits(0.0), splits(1e20))


_SPLIT = (
    "clamp holds some but not all of the units that a Lagrangian couples, such as a part of a "
    "softmax's row: under the activation flow the energy could then rise. Hold whole rows, or "
    'follow flow="state".'
)
