"""The abstract classes of Lagrangians, with the conversions and parameter checks they share."""

import abc
import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from .._conversion import as_float, check_range, widened
from .._numerics.floors import clipped, SMALLEST


# Domains of numeric fields. `above` is checked at construction. At run time a value below `floor`
# (or below the field `min_<name>`) is replaced by that bound, and a value above `ceiling` by it.
FINITE = {"above": -math.inf}
POSITIVE = {"above": 0.0, "floor": SMALLEST}
ABOVE_1 = {"above": 1.0, "floor": 1 + 1e-6}
FLOOR = {"above": 0.0}


class AbstractLagrangian(eqx.Module):
    """A convex scalar function L(x) of a state x of any shape, g = ∂L/∂x, E = Σ x·g − L(x).

    A Lagrangian takes one state and no batch axes: [`hopfield_layers.Layer`][] adds them, and
    `jax.vmap` does so for bare Lagrangians. With arrays as parameters its methods are not hashable:
    `jax.jit(lagrangian.energy)` fails, `equinox.filter_jit(lagrangian.energy)` works. To write one
    of your own, subclass this and define all four methods, or pass a plain callable wherever a
    Lagrangian is expected (see [`hopfield_layers.as_lagrangian`][]).

    Source: Krotov & Hopfield, "Large associative memory problem in neurobiology and machine
    learning" (ICLR 2021), arXiv:2008.06996; Krotov, "Hierarchical associative memory",
    arXiv:2107.06446.

    Examples:
        >>> class LQuartic(hl.AbstractLagrangian):
        ...     def __call__(self, x):
        ...         return jnp.sum(x**4) / 4
        ...     def activation(self, x):
        ...         return x**3
        ...     def energy(self, x):
        ...         return 3 * jnp.sum(x**4) / 4
        ...     def coupled_axes(self, ndim):
        ...         return ()
        >>> print(hl.Layer(LQuartic(), 2).energy(jnp.array([1.0, 1.0])))
        1.5
    """

    @abc.abstractmethod
    def __call__(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, ""]:
        """L(x), a scalar."""

    @abc.abstractmethod
    def activation(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, "*state"]:
        """g = ∂L/∂x, of the shape of x."""

    @abc.abstractmethod
    def energy(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, ""]:
        """E = Σ x·g − L(x) = L*(g), a scalar ≥ −L(0)."""

    @abc.abstractmethod
    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of a state of `ndim` axes along which gᵢ depends on xⱼ, j ≠ i.

        `()` if each gᵢ depends on xᵢ alone, `tuple(range(ndim))` if it depends on all units.
        """

    def __repr__(self) -> str:
        return pformat(self)


class AbstractWideLagrangian(AbstractLagrangian):
    """A Lagrangian whose formulas are pure functions of a state z in float32 or wider.

    The public methods convert a state of any real dtype and return results of that dtype. In the
    formulas the scalar parameters have the dtype of z, and are within their domains.
    """

    def __check_init__(self):
        for field in dataclasses.fields(self):
            if "above" in field.metadata:
                check_range(self, field.name, getattr(self, field.name), field.metadata["above"])

    @abc.abstractmethod
    def _value_terms(self, z: Array) -> Array:
        """The terms of L, or their sum."""

    @abc.abstractmethod
    def _activation_formula(self, z: Array) -> Array:
        """g."""

    @abc.abstractmethod
    def _energy_terms(self, z: Array) -> Array:
        """The terms of E, or their sum."""

    def _in_domain(self, dtype: DTypeLike):
        """The same Lagrangian with its scalar parameters in `dtype` and within their domains."""
        within = self
        for name, domain in scalar_parameters(self).items():
            scalar = getattr(self, name)
            if jnp.ndim(scalar) != 0:
                raise ValueError(
                    f"A Lagrangian's parameter is a scalar, got shape {jnp.shape(scalar)}: use "
                    "jax.vmap for a batch of parameters."
                )
            floor = getattr(self, f"min_{name}", domain["floor"])
            scalar = clipped(scalar.astype(dtype), floor, domain.get("ceiling", math.inf))
            within = eqx.tree_at(operator.attrgetter(name), within, scalar)
        return within

    def _value(self, z: Array) -> Array:
        return jnp.sum(self._in_domain(z.dtype)._value_terms(z))

    def _activation(self, z: Array) -> Array:
        return self._in_domain(z.dtype)._activation_formula(z)

    def _energy(self, z: Array) -> Array:
        return jnp.sum(self._in_domain(z.dtype)._energy_terms(z))

    def __call__(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, ""]:
        return self._converted(self._value, x)

    def activation(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, "*state"]:
        return self._converted(self._activation, x)

    def energy(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, ""]:
        return self._converted(self._energy, x)

    def _converted(self, formula: Callable[[Array], Array], x: ArrayLike) -> Array:
        x = as_float(x)
        # Only called for its check, which raises an error for an axis that x doesn't have.
        self.coupled_axes(x.ndim)
        return formula(widened(x)).astype(x.dtype)


class AbstractElementwise(AbstractWideLagrangian):
    """A Lagrangian with one term per unit."""

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return ()


class AbstractRowwise(AbstractWideLagrangian):
    """A Lagrangian that is a sum over the rows along `axis`."""

    axis: eqx.AbstractVar[int]

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        if not -ndim <= self.axis < ndim:
            raise ValueError(
                f"{type(self).__name__} acts along axis {self.axis}, which a state of {ndim} axes "
                "does not have."
            )
        return (self.axis % ndim,)


def scalar_parameters(lagrangian: AbstractLagrangian) -> dict[str, Mapping[str, float]]:
    """The names of the parameters that are one number each, and their domains."""
    fields = dataclasses.fields(lagrangian)
    return {field.name: field.metadata for field in fields if "floor" in field.metadata}


class PureLagrangian(NamedTuple):
    """L, g and E as functions of one state in float32 or wider, without conversions or checks."""

    value: Callable[[Array], Array]
    activation: Callable[[Array], Array]
    energy: Callable[[Array], Array]


def pure(lagrangian: AbstractLagrangian) -> PureLagrangian:
    """The formulas of one of our Lagrangians, or the public methods of a user's Lagrangian."""
    if isinstance(lagrangian, AbstractWideLagrangian):
        return PureLagrangian(lagrangian._value, lagrangian._activation, lagrangian._energy)
    return PureLagrangian(lagrangian.__call__, lagrangian.activation, lagrangian.energy)


def pformat(module: PyTree) -> str:
    """Equinox's representation with the numbers of scalar parameters shown."""

    def show(leaf):
        if eqx.is_inexact_array(leaf) and leaf.shape == () and not isinstance(leaf, Tracer):
            return float(str(np.asarray(leaf)))  # the shortest digits of its own dtype
        return leaf

    return eqx.tree_pformat(jax.tree.map(show, module))
