"""Exponential integrators for the activation flow."""

import abc
import functools as ft
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from equinox.internal import ω
from jaxtyping import Array, PyTree

from .._numerics.phi_functions import phi_functions, PhiFunctions
from ..model import AbstractEnergyModel
from .flow import BoundedFlow, EnergyFlow, time_constants


class _Interpolation(diffrax.AbstractLocalInterpolation):
    """x(t₀ + s) = x₀ + Σₖ (s/h)ᵏ⁻¹ (s/τ)φₖ(−s/τ) cₖ, exact in the leak for a polynomial T."""

    t0: Any
    t1: Any
    x0: PyTree[Array]
    tau: PyTree[Array]
    coefficients: tuple[PyTree[Array], ...]

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return (self.evaluate(t1) ** ω - self.evaluate(t0) ** ω).ω
        elapsed = t0 - self.t0
        fraction = elapsed / jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)
        x, phis = self.x0**ω, _phi((self.tau**ω).call(lambda tau: elapsed / tau))
        for k, (phi, coefficient) in enumerate(zip(phis, self.coefficients, strict=False)):
            x = x + fraction**k * phi * coefficient**ω
        return x.ω


def _phi(z: Any) -> PhiFunctions:
    """The φ-functions of each leaf of a tree. The trees are wrapped in ω for arithmetic."""
    return PhiFunctions(*(z.call(lambda z, k=k: phi_functions(z)[k]) for k in range(3)))


class AbstractExponential(diffrax.AbstractAdaptiveSolver):
    """dx/dt = (T(x) − x)/τ, in which the leak −x/τ is solved exactly. A method only approximates
    how T(x), the state towards which the leak decays, changes during a step.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = _Interpolation

    @abc.abstractmethod
    def _stages(self, x, z, d0, pull: Callable) -> tuple[Any, tuple, Callable]:
        """x₁, the coefficients of the dense output, and the error as a function of T(x₁) − x₀.

        z is h/τ, d0 is T(x) − x, and `pull(fraction, y)` is T(y) − x at this fraction of the step.
        """

    def init(self, terms, t0, t1, y0, args):
        """τ dx/dt at t₀, from which the first step starts."""
        _, force = _model_and_force(terms)
        return force(t0, y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """A step, which returns τ dx/dt at t₁ for the next step."""
        model, force = _model_and_force(terms)
        f0 = solver_state
        if made_jump is not False:
            f0 = jax.lax.cond(made_jump, ft.partial(force, t0, y0), lambda: solver_state)
        x, h, tau = y0**ω, terms.contr(t0, t1), time_constants(model, y0) ** ω

        def pull(fraction, y):
            return (y - x) + force(t0 + fraction * (t1 - t0), y.ω) ** ω

        z = tau.call(lambda tau: h / tau)
        x1, coefficients, error = self._stages(x, z, f0**ω, pull)
        f1 = force(t1, x1.ω)
        # In backward time h is negative, while t₁ − t₀ is positive.
        signed = tau.call(lambda tau: jnp.where(h < 0, -tau, tau))
        dense = {"x0": y0, "tau": signed.ω, "coefficients": tuple(c.ω for c in coefficients)}
        return x1.ω, error((x1 - x) + f1**ω).ω, dense, f1, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class ETD2RK(AbstractExponential):
    """x₁ = a + h φ₂(−h/τ) (N(a) − N(x₀)), a = x₀ + h φ₁(−h/τ) dx/dt, for `flow="activation"`.

    The second-order exponential time differencing Runge–Kutta method for dx/dt = −x/τ + N(x). It is
    exact in the leak −(x − b)/τ with each layer's own τ, however large the step. For h ≫ τ, a is
    the point T(x₀) = x₀ + τ dx/dt towards which the leak decays, which is the update of a modern
    Hopfield network, and x₁ is T(T(x₀)). Here φ₁(z) = (eᶻ − 1)/z and φ₂(z) = (eᶻ − 1 − z)/z². A
    step takes two evaluations of dx/dt. The error estimate is x₁ − a, and the dense output is of
    second order.

    It suits [`hopfield_layers.relax`][], which needs only the end of a trajectory; for the
    trajectory itself use [`hopfield_layers.ETD4RK`][].

    **Raises:** `ValueError` for terms except `diffrax.ODETerm(EnergyFlow(model, "activation"))`.

    Source: Cox & Matthews, "Exponential time differencing for stiff systems", J. Comput. Phys. 176
    (2002), equations 21 and 22.

    Examples:
        >>> layer = hl.TanhLayer(2, tau=jnp.array([1e-3, 1.0]))
        >>> solution = hl.solve(layer, jnp.ones(2), 1.0, flow="activation", solver=hl.ETD2RK())
        >>> print(solution.ys[-1].round(5))  # exp(−t1/τ)
        [0.      0.36788]
    """

    def order(self, terms):
        return 2

    def _stages(self, x, z, d0, pull):
        phi = _phi(z)
        a = x + phi.phi1 * d0
        bend = pull(1.0, a) - d0
        correction = phi.phi2 * bend
        return a + correction, (d0, bend), lambda d1: correction


class ETD4RK(AbstractExponential):
    """A fourth-order method like [`hopfield_layers.ETD2RK`][], for accurate trajectories.

    With N = N(x₀), with Nₐ, N_b and N_c at the stages, φₖ at −h/τ and ψₖ = φₖ at −h/2τ,

    | | |
    |---|---|
    | a | x₀ + (h/2) ψ₁ dx/dt |
    | b | a + h ψ₂ (Nₐ − N) |
    | c | x₀ + h φ₁ dx/dt + 2h φ₂ (N_b − N) |
    | x₁ | x₀ + h [φ₁ dx/dt + φ₂ (2Nₐ + 2N_b − 3N − N_c) + 4φ₃ (N − Nₐ − N_b + N_c)] |

    A step takes four evaluations of dx/dt. The error estimate is that of an embedded third-order
    method, h (4φ₃ − φ₂)(N_c − N(x₁)), but at least a hundredth of the estimate for the second-order
    method c, which matters for steps that are long enough to skip a transient. The dense output is
    of third order.

    **Raises:** as in [`hopfield_layers.ETD2RK`][].

    Source: Krogstad, "Generalized integrating factor methods for stiff PDEs", J. Comput. Phys. 203
    (2005); for the embedding in x₁, Whalen, Brio & Moloney, "Exponential time-differencing with
    embedded Runge–Kutta adaptive step control", J. Comput. Phys. 280 (2015).

    Examples:
        >>> layer = hl.TanhLayer(2, tau=jnp.array([1e-3, 1.0]))
        >>> solution = hl.solve(layer, jnp.ones(2), 1.0, flow="activation", solver=hl.ETD4RK())
        >>> print(solution.ys[-1].round(5))  # exp(−t1/τ)
        [0.      0.36788]
    """

    def order(self, terms):
        return 4

    def _stages(self, x, z, d0, pull):
        phi, psi = _phi(z), _phi(z / 2)
        a = x + psi.phi1 * d0
        da = pull(0.5, a)
        b = a + 2 * psi.phi2 * (da - d0)
        db = pull(0.5, b)
        c = x + phi.phi1 * d0 + 2 * phi.phi2 * (db - d0)
        dc = pull(1.0, c)
        bend = 2 * (da + db) - 3 * d0 - dc
        curve = 4 * (d0 - da - db + dc)
        x1 = x + phi.phi1 * d0 + phi.phi2 * bend + phi.phi3 * curve

        def error(d1):
            third_order = abs((4 * phi.phi3 - phi.phi2) * (dc - d1))
            return jax.tree.map(jnp.maximum, third_order.ω, (0.01 * abs(x1 - c)).ω) ** ω

        return x1, (d0, bend, curve), error


def _model_and_force(terms: diffrax.AbstractTerm) -> tuple[AbstractEnergyModel, Callable]:
    """The model of a term, which diffrax may have wrapped, and τ dx/dt as a function of t and x."""
    direction = getattr(terms, "direction", 1)
    rates: Any = getattr(getattr(terms, "term", terms), "vector_field", None)
    field = rates.field if isinstance(rates, BoundedFlow) else rates
    if not isinstance(field, EnergyFlow) or field.flow != "activation":
        found = f'flow="{field.flow}"' if isinstance(field, EnergyFlow) else repr(field)
        raise ValueError(
            "Exponential solvers are for the activation flow: expected an EnergyFlow with "
            f'flow="activation", got {found}.'
        )

    def force(t, x):
        return rates.force(t * direction, x)  # this is finite where dx/dt overflows

    return field.model, force
