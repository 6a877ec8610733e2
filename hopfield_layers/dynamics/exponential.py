"""Exponential integrators for the activation flow."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .flow import EnergyFlow, Guarded, times


class _Interpolation(diffrax.AbstractLocalInterpolation):
    """x(t₀ + s) = x₀ + Σₖ (s/h)ᵏ wₖ(s/τ) cₖ: what the leak makes of a polynomial T."""

    t0: Any
    t1: Any
    x0: PyTree
    tau: PyTree
    coefficients: list[PyTree]

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        part = (t0 - self.t0) / jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)

        def at(x, tau, *coefficients):
            weights = _weights((t0 - self.t0) / tau)
            return x + sum(
                part**k * w * c for k, (w, c) in enumerate(zip(weights, coefficients, strict=False))
            )

        return jax.tree.map(at, self.x0, self.tau, *self.coefficients)


class AbstractExponential(diffrax.AbstractAdaptiveSolver):
    """dx/dt = (T(x) − x)/τ, with the leak −x/τ solved exactly: all that a method adds is how T
    changes during a step.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = _Interpolation

    @abc.abstractmethod
    def _stages(self, x: PyTree, z: PyTree, d0: PyTree, pull: Callable[..., PyTree]) -> Any:
        """x₁, the polynomial's coefficients, and the error as a function of T(x₁) − x₀.

        `d0` is T(x₀) − x₀, and `pull(part, y)` is T(y) − x₀ at that part of the step.
        """

    def init(self, terms, t0, t1, y0, args):
        """τ dx/dt at t₀, which the first step begins with."""
        return _force(terms, t0, y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """A step, which ends with τ dx/dt at t₁ for the next to begin with."""
        f0 = solver_state
        if made_jump is not False:
            f0 = jax.lax.cond(made_jump, lambda: _force(terms, t0, y0), lambda: solver_state)
        tau = times(_flow(terms).model, y0)
        h = terms.contr(t0, t1)

        def gap(y, f):
            return jax.tree.map(lambda x, y, f: (y - x) + f, y0, y, f)

        def pull(part, y):
            return gap(y, _force(terms, t0 + part * (t1 - t0), y))

        z = jax.tree.map(lambda tau: h / tau, tau)
        y1, coefficients, error = self._stages(y0, z, gap(y0, f0), pull)
        f1 = _force(terms, t1, y1)
        # Backwards in time h is negative, while t₁ − t₀ is positive.
        signed = jax.tree.map(lambda tau: tau * jnp.where(h < 0, -1, 1).astype(tau.dtype), tau)
        dense = {"x0": y0, "tau": signed, "coefficients": coefficients}
        return y1, error(gap(y1, f1)), dense, f1, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """dx/dt."""
        return terms.vf(t0, y0, args)


class ETD2RK(AbstractExponential):
    """x₁ = a + h φ₂(−h/τ) (N(a) − N(x₀)), a = x₀ + h φ₁(−h/τ) dx/dt, for `flow="activation"`.

    The second-order exponential time differencing Runge–Kutta method for dx/dt = −x/τ + N(x), exact
    in the leak −(x − b)/τ with each layer's own τ, however large the step. h ≫ τ turns a into the
    point T(x₀) = x₀ + τ dx/dt that the leak heads for, the update of a modern Hopfield network, and
    x₁ into T(T(x₀)). Here φ₁(z) = (eᶻ − 1)/z and φ₂(z) = (eᶻ − 1 − z)/z². Two evaluations of dx/dt
    a step. x₁ − a, the distance to the embedded first-order method, is the error estimate, and the
    dense output is the method's own, of second order.

    For where a trajectory ends, with loose tolerances, see [`hopfield_layers.relax`][]; for how it
    gets there use [`hopfield_layers.ETD4RK`][].

    In `diffrax.diffeqsolve` the term must be `diffrax.ODETerm(EnergyFlow(model, "activation"))`.

    **Raises:** `ValueError` for any other term.

    Source: Cox & Matthews, "Exponential time differencing for stiff systems", J. Comput. Phys. 176
    (2002), equations 21 and 22.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.TanhLayer(2, tau=jnp.array([1e-3, 1.0]))
    >>> solution = hl.solve(layer, jnp.ones(2), 1.0, flow="activation", solver=hl.ETD2RK())
    >>> print(solution.ys[-1].round(5))  # exp(−t1/τ)
    [0.      0.36788]

    ```
    """

    def order(self, terms):
        """2."""
        return 2

    def _stages(self, x, z, d0, pull):
        def first(x, z, d0):
            return x + _weights(z)[0] * d0

        a = jax.tree.map(first, x, z, d0)
        bend = jax.tree.map(jnp.subtract, pull(1.0, a), d0)
        error = jax.tree.map(lambda z, bend: _weights(z)[1] * bend, z, bend)
        return jax.tree.map(jnp.add, a, error), [d0, bend], lambda d1: error


class ETD4RK(AbstractExponential):
    """The fourth-order sibling of [`hopfield_layers.ETD2RK`][], for accurate trajectories.

    With N = N(x₀), Nₐ, N_b, N_c at the stages, φₖ at −h/τ, and ψₖ at −h/2τ,

    | | |
    |---|---|
    | a | x₀ + (h/2) ψ₁ dx/dt |
    | b | a + h ψ₂ (Nₐ − N) |
    | c | x₀ + h φ₁ dx/dt + 2h φ₂ (N_b − N) |
    | x₁ | x₀ + h [φ₁ dx/dt + φ₂ (2Nₐ + 2N_b − 3N − N_c) + 4φ₃ (N − Nₐ − N_b + N_c)] |

    Four evaluations of dx/dt a step. The error estimate is that of an embedded third-order method,
    h (4φ₃ − φ₂)(N_c − N(x₁)), but at least a hundredth of that of the second-order method c, for
    steps that jump over something that is over at their end. The dense output is of third order.

    **Raises:** `ValueError` for a term that is not of an [`hopfield_layers.EnergyFlow`][] with
    `flow="activation"`.

    Source: Krogstad, "Generalized integrating factor methods for stiff PDEs", J. Comput. Phys. 203
    (2005); for the embedding in x₁, Whalen, Brio & Moloney, "Exponential time-differencing with
    embedded Runge–Kutta adaptive step control", J. Comput. Phys. 280 (2015).

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.TanhLayer(2, tau=jnp.array([1e-3, 1.0]))
    >>> solution = hl.solve(layer, jnp.ones(2), 1.0, flow="activation", solver=hl.ETD4RK())
    >>> print(solution.ys[-1].round(5))  # exp(−t1/τ)
    [0.      0.36788]

    ```
    """

    def order(self, terms):
        """4."""
        return 4

    def _stages(self, x, z, d0, pull):
        def at_a(x, z, d0):
            return x + _weights(z / 2)[0] * d0

        def at_b(a, z, d0, da):
            return a + 2 * _weights(z / 2)[1] * (da - d0)

        def at_c(x, z, d0, db):
            return x + _weights(z)[0] * d0 + 2 * _weights(z)[1] * (db - d0)

        def at_end(x, z, d0, bend, curve):
            return x + sum(w * c for w, c in zip(_weights(z), (d0, bend, curve), strict=True))

        a = jax.tree.map(at_a, x, z, d0)
        da = pull(0.5, a)
        b = jax.tree.map(at_b, a, z, d0, da)
        db = pull(0.5, b)
        c = jax.tree.map(at_c, x, z, d0, db)
        dc = pull(1.0, c)
        bend = jax.tree.map(lambda d0, da, db, dc: 2 * (da + db) - 3 * d0 - dc, d0, da, db, dc)
        curve = jax.tree.map(lambda d0, da, db, dc: 4 * (d0 - da - db + dc), d0, da, db, dc)
        y1 = jax.tree.map(at_end, x, z, d0, bend, curve)

        def error(d1):
            def of(z, dc, d1, y1, c):
                third = (4 * _weights(z)[2] - _weights(z)[1]) * (dc - d1)
                return jnp.maximum(jnp.abs(third), 0.01 * jnp.abs(y1 - c))

            return jax.tree.map(of, z, dc, d1, y1, c)

        return y1, [d0, bend, curve], error


def _flow(terms: Any) -> EnergyFlow | Guarded:
    """The flow in the term, which diffrax and `solve` wrap."""
    while hasattr(terms, "term"):
        terms = terms.term
    flow: Any = getattr(terms, "vector_field", None)
    field = flow.field if isinstance(flow, Guarded) else flow
    if not isinstance(field, EnergyFlow) or field.flow != "activation":
        found = f'flow="{field.flow}"' if isinstance(field, EnergyFlow) else repr(field)
        raise ValueError(
            "Exponential solvers are for the activation flow: expected an EnergyFlow with "
            f'flow="activation", got {found}.'
        )
    return flow


def _force(terms: Any, t: Any, x: PyTree) -> PyTree:
    """τ dx/dt, which is finite where dx/dt overflows."""
    flow = _flow(terms)
    while hasattr(terms, "term"):
        t, terms = t * getattr(terms, "direction", 1), terms.term
    return flow.force(t, x)


def _weights(z: Array) -> tuple[Array, Array, Array]:
    """z φ₁(−z), z φ₂(−z) and z φ₃(−z), to the last digits for every z."""
    rise = -jnp.expm1(-z)
    small = jnp.abs(z) < 2
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    # z φ₃(−z) = z/3! − z²/4! + …, and φₖ₋₁ = 1/(k − 1)! − z φₖ.
    curl = jnp.zeros_like(z)
    for k in range(28, 2, -1):
        curl = near / k * (1 - curl)
    curl = curl / 2
    lag = near * (0.5 - curl)
    lag = jnp.where(small, lag, 1 - rise / far)
    return rise, lag, jnp.where(small, curl, 0.5 - lag / far)
