"""How a model's state moves: the vector field, and solutions of it."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ._arrays import as_float, SMALLEST, spread, widened
from .model import AbstractEnergyModel


Inputs = PyTree | Callable[[Array], PyTree] | None


class EnergyFlow(eqx.Module):
    """The vector field of a model, for your own `diffrax.diffeqsolve`.

    With u = ∂E/∂g − I and H = ∂²L/∂x²,

    | `flow` | dx/dt | |
    |---|---|---|
    | `"state"` | −H u/τ | descent along −∂E/∂x |
    | `"activation"` | −u/τ | descent along −∂E/∂g (Krotov & Hopfield) |

    dE/dt = −‖H u‖²/τ and −uᵀH u/τ are never positive. H u is one Jacobian–vector product of the
    activation.

    **Arguments:**

    - `model`: an [`hopfield_layers.AbstractEnergyModel`][].
    - `flow`: `"state"` or `"activation"`.
    - `inputs`: the external input I, which adds −Σ I·g to the energy: a tree of arrays that
        broadcast to the state, or a function of t that returns one.

    Called as `(t, x, args)`; `args` is ignored. x is a state with any batch axes the model takes.

    **Raises:** `ValueError` for an unknown flow; when called, if an input doesn't fit the state.

    ```python
    >>> import diffrax
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> flow = hl.EnergyFlow(hl.TanhLayer(3, tau=2.0), flow="activation", inputs=jnp.ones(3))
    >>> print(flow(0.0, jnp.array([0.0, 3.0, 2.0])))
    [ 0.5 -1.  -0.5]
    >>> solution = diffrax.diffeqsolve(
    ...     diffrax.ODETerm(flow), diffrax.Heun(), t0=0.0, t1=2.0, dt0=0.1, y0=jnp.zeros(3)
    ... )
    >>> print(solution.ys[-1].round(3))  # 1 − exp(−t1/τ)
    [0.632 0.632 0.632]

    ```
    """

    model: AbstractEnergyModel
    flow: str = eqx.field(default="state", static=True)
    inputs: Inputs = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        if self.flow not in ("state", "activation"):
            raise ValueError(f'Expected flow="state" or flow="activation", got {self.flow!r}.')

    def __call__(self, t: ArrayLike, x: PyTree, args: PyTree = None) -> PyTree:
        x = jax.tree.map(as_float, x)
        u = self.model.dEdg(x)
        if self.inputs is not None:
            inputs = self.inputs(jnp.asarray(t)) if callable(self.inputs) else self.inputs
            u = jax.tree.map(jnp.subtract, u, _fitted(inputs, u))
        if self.flow == "state":
            _, u = jax.jvp(self.model.activations, (x,), (u,))
        return jax.tree.map(
            lambda tau, u: jax.tree.map(lambda u: _rate(tau, u), u), self.model.tau, u
        )


def _rate(tau: ArrayLike, u: Array) -> Array:
    """−u/τ. Training may drive τ to zero or below; it then acts as a tiny one."""
    wide = widened(u)
    tau = as_float(tau).astype(wide.dtype)
    return (-wide / jnp.where(tau < SMALLEST, SMALLEST, tau)).astype(u.dtype)


def _fitted(inputs: PyTree, x: PyTree) -> PyTree:
    """`inputs` in the dtype and shapes of `x`."""
    if jax.tree.structure(inputs) != jax.tree.structure(x):
        raise ValueError(
            f"Expected inputs of the state's structure, {jax.tree.structure(x)}, got "
            f"{jax.tree.structure(inputs)}."
        )
    fit = lambda leaf, x: spread("An input", as_float(leaf).astype(x.dtype), x.shape)
    return jax.tree.map(fit, inputs, x)


def solve(
    model: Any,
    x0: PyTree,
    t1: ArrayLike,
    *,
    t0: ArrayLike = 0.0,
    dt0: ArrayLike | None = None,
    flow: str = "state",
    inputs: Inputs = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    saveat: diffrax.SaveAt | None = None,
    max_steps: int | None = 4096,
    **options: Any,
) -> diffrax.Solution:
    """Integrates τ dx/dt = −∂E/∂x, or −∂E/∂g, from x0 at t0 to t1.

    The first call compiles; further ones with other values (of x0, times, parameters, inputs,
    tolerances) and the same shapes do not. Functions are compared by identity: a new lambda does.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or any [`hopfield_layers.AbstractEnergyModel`][].
    - `x0`: the state at t0. With batch axes it is solved sample by sample, each with its own step
        sizes. Integers become floats, and float16 and bfloat16 become float32.
    - `t1`, `t0`: the end and the start, t1 > t0, in the units of τ.
    - `dt0`: the first step, in the same units. By default the step size controller chooses;
        constant steps need it.
    - `flow`: `"state"` or `"activation"`, see [`hopfield_layers.EnergyFlow`][].
    - `inputs`: the external input I: a tree of arrays that broadcast to x0, or a function of t that
        returns one for a single sample.
    - `solver`: any diffrax solver for ODEs. By default `diffrax.Tsit5()`.
    - `stepsize_controller`: any diffrax controller. By default
        `diffrax.PIDController(rtol=1e-5, atol=1e-7)`; `diffrax.ConstantStepSize()` takes steps
        of dt0.
    - `saveat`: what to save. By default the end, `diffrax.SaveAt(t1=True)`.
    - `max_steps`: the most steps to take.
    - `options`: further keywords of `diffrax.diffeqsolve`: `event`, `adjoint`, `throw`,
        `progress_meter` and so on.

    **Returns:**

    The `diffrax.Solution`, whose arrays begin with the batch axes of x0. `model.energy(sol.ys)` is
    the energy along it.

    **Raises:** `ValueError` for t1 ≤ t0, for NaN or infinities in x0, and for inputs that don't
    fit; under an outer jit the first two are an `equinox.EquinoxRuntimeError`. So is a state or
    rate that leaves the range of the dtype, and a solver that fails, for instance by running out
    of steps; `throw=False` suppresses these, and `Solution.result` tells of the latter.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.ExpLayer(3)
    >>> solution = hl.solve(layer, jnp.array([[0.5, -0.5, 1.0], [2.0, 0.0, -1.0]]), t1=100.0)
    >>> print(solution.ys.shape, layer.energy(solution.ys[:, -1]))
    (2, 1, 3) [-3. -3.]

    ```
    """
    if not isinstance(model, AbstractEnergyModel):
        raise TypeError(f"Expected an AbstractEnergyModel, a Layer for instance, got {model!r}.")
    x0 = jax.tree.map(lambda x: widened(as_float(x)), x0)
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    x0 = jax.tree.map(lambda x: _finite(x.astype(dtype)), x0)
    if stepsize_controller is None:
        stepsize_controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    if dt0 is None and isinstance(stepsize_controller, diffrax.ConstantStepSize):
        raise ValueError("Constant steps need their size, dt0.")
    t0 = jnp.asarray(t0, dtype)
    options |= {
        "solver": diffrax.Tsit5() if solver is None else solver,
        "t0": t0,
        "t1": _after(t0, jnp.asarray(t1, dtype)),
        "dt0": None if dt0 is None else jnp.asarray(dt0, dtype),
        "saveat": diffrax.SaveAt(t1=True) if saveat is None else saveat,
        "stepsize_controller": stepsize_controller,
        "max_steps": max_steps,
    }
    # Tolerances and their like become arguments of the compiled program instead of parts of it.
    to_array = lambda x: jnp.asarray(x, dtype) if isinstance(x, float | np.floating) else x
    options, inputs = jax.tree.map(to_array, (options, inputs))
    return _solve(EnergyFlow(model, flow, inputs=inputs), x0, options)


def _finite(x: Array) -> Array:
    """`x`, or an error if it is not finite."""
    with jax.ensure_compile_time_eval():
        bad = jnp.sum(~jnp.isfinite(x))
    if isinstance(bad, Tracer):
        return eqx.error_if(x, bad > 0, "Expected a finite x0, got NaN or infinite entries.")
    if int(bad) > 0:
        raise ValueError(f"Expected a finite x0, got {bad} NaN or infinite of {x.size} entries.")
    return x


def _after(t0: Array, t1: Array) -> Array:
    """`t1`, or an error unless it is a finite number greater than `t0`."""
    if t0.shape != () or t1.shape != ():
        raise ValueError(f"Expected t0 and t1 to be numbers, got shapes {t0.shape} and {t1.shape}.")
    with jax.ensure_compile_time_eval():
        bad = jnp.any(~(jnp.isfinite(t0) & (t1 > t0) & jnp.isfinite(t1)))
    if isinstance(bad, Tracer):
        return eqx.error_if(t1, bad, "Expected finite times with t1 > t0.")
    if bool(bad):
        raise ValueError(f"Expected finite times with t1 > t0, got t0 = {t0} and t1 = {t1}.")
    return t1


class _Guarded(eqx.Module):
    """A field that an adaptive solver may try anywhere.

    A trial step may go where dx/dt overflows, an exponential unit at x = 1000 say. A large finite
    rate makes the solver reject the step, where ∞ − ∞ among its stages would leave it without an
    error to go by.
    """

    field: EnergyFlow

    def __call__(self, t, x, args):
        bounded = lambda rate: jnp.clip(rate, -_fastest(rate), _fastest(rate))
        return jax.tree.map(bounded, self.field(t, x, args))


def _fastest(rate: Array) -> float:
    """A rate that leaves room to add up stages."""
    return float(jnp.finfo(rate.dtype).max) ** 0.9


def _checked(field: EnergyFlow, x0: PyTree, t0: Array, t1: Array) -> PyTree:
    """`x0`, or an error if dx/dt is NaN there, or so far beyond the range as to be misjudged."""

    def bad(x, rate):
        instant = jnp.abs(x) < jnp.finfo(rate.dtype).eps * (t1 - t0) * _fastest(rate)
        return jnp.any(~((jnp.abs(rate) < _fastest(rate)) | instant) | jnp.isnan(rate))

    found = jnp.array(jax.tree.leaves(jax.tree.map(bad, x0, field(t0, x0))))
    return eqx.error_if(x0, jnp.any(found), _BEYOND.format(dtype=t0.dtype))


@eqx.filter_jit
def _solve(flow: EnergyFlow, x0: PyTree, options: dict[str, Any]) -> diffrax.Solution:
    throw = options.get("throw", True)
    constant = isinstance(options["stepsize_controller"], diffrax.ConstantStepSize)

    def sample(x0, inputs=flow.inputs):
        field = EnergyFlow(flow.model, flow.flow, inputs=inputs)
        if throw and not constant:
            x0 = _checked(field, x0, options["t0"], options["t1"])
        term = diffrax.ODETerm(field if constant else _Guarded(field))
        solution = diffrax.diffeqsolve(term, y0=x0, **options)
        ts = solution.ts
        if not throw or not isinstance(ts, Array):
            return solution
        # Unused room for further steps is ∞ in both.
        finite = lambda y: jnp.isfinite(y).reshape(*ts.shape, -1).all(axis=-1)
        bad = [jnp.isfinite(ts) & ~finite(y) for y in jax.tree.leaves(solution.ys)]
        return eqx.error_if(solution, jnp.any(jnp.array(bad)), _BEYOND.format(dtype=ts.dtype))

    shared = flow.inputs is None or callable(flow.inputs)
    samples = (x0,) if shared else (x0, _fitted(flow.inputs, x0))
    batch = jax.eval_shape(flow.model.energy, x0).shape
    for _ in batch:
        sample = eqx.filter_vmap(sample)
    if 0 not in batch:
        return sample(*samples)

    # Nothing to solve, but the same structure, dtypes and shapes.
    def resized(tree, sizes):
        is_array = lambda x: hasattr(x, "shape")
        resize = lambda x: jnp.zeros(sizes + x.shape[len(batch) :], x.dtype)
        return jax.tree.map(lambda x: resize(x) if is_array(x) else x, tree)

    one = resized(samples, (1,) * len(batch))
    return resized(eqx.filter_eval_shape(sample, *one), batch)


_BEYOND = (
    "x or dx/dt left the range of {dtype}, or the inputs or the model's parameters are NaN. Start "
    'nearer to the bias, take smaller steps, follow flow="activation", or solve in float64 '
    '(jax.config.update("jax_enable_x64", True)).'
)
