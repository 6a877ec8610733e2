"""What a Lagrangian is, and what the closed forms share."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arrays import as_float, check_range, widened


# What parameters must be greater than when they are given; any other need only be finite.
_LEAST = {"n": 1.0, "p": 1.0, "alpha": 1.0, "scale": 0.0, "gamma": 0.0, "min_beta": 0.0}


class AbstractLagrangian(eqx.Module):
    """A convex scalar function L(x) of a state x of any shape.

    | | |
    |---|---|
    | `lagrangian(x)` | L(x), a scalar |
    | `lagrangian.activation(x)` | g = ∂L/∂x, of the shape of x |
    | `lagrangian.energy(x)` | E = Σ x·g − L(x) = L*(g), a scalar ≥ −L(0) |

    A Lagrangian knows nothing of batches: [`hopfield_layers.Layer`][] adds leading axes, `jax.vmap`
    does so for bare Lagrangians. For one of your own, subclass this and write all three; or pass a
    plain callable wherever a Lagrangian is expected (see [`hopfield_layers.as_lagrangian`][]).

    Source: Krotov & Hopfield, "Large associative memory problem in neurobiology and machine
    learning" (ICLR 2021), arXiv:2008.06996; Krotov, "Hierarchical associative memory",
    arXiv:2107.06446.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> class LQuartic(hl.AbstractLagrangian):
    ...     def __call__(self, x):
    ...         return jnp.sum(x**4) / 4
    ...     def activation(self, x):
    ...         return x**3
    ...     def energy(self, x):
    ...         return 3 * jnp.sum(x**4) / 4
    >>> print(hl.Layer(LQuartic(), 2).energy(jnp.array([1.0, 1.0])))
    1.5

    ```
    """

    @abc.abstractmethod
    def __call__(self, x: ArrayLike) -> Array:
        """L(x), a scalar."""

    @abc.abstractmethod
    def activation(self, x: ArrayLike) -> Array:
        """g = ∂L/∂x, of the shape of x."""

    @abc.abstractmethod
    def energy(self, x: ArrayLike) -> Array:
        """E = Σ x·g − L(x), a scalar."""

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of a state of `ndim` axes along which gᵢ depends on xⱼ, j ≠ i.

        All of them unless overridden; none if g acts on each unit alone.
        """
        return tuple(range(ndim))

    def __repr__(self) -> str:
        return pformat(self)


class AbstractClosedForm(AbstractLagrangian):
    """A Lagrangian that is a sum of terms: one per unit, or one per row along an axis.

    Subclasses write the terms for a state in float32 or wider; the results have the state's dtype.
    """

    def __check_init__(self):
        for name, value in vars(self).items():
            check_range(self, name, value, above=_LEAST.get(name, -math.inf))

    @abc.abstractmethod
    def _value(self, z: Array) -> Array:
        """The terms of L."""

    @abc.abstractmethod
    def _activation(self, z: Array) -> Array:
        """g."""

    @abc.abstractmethod
    def _energy(self, z: Array) -> Array:
        """The terms of E."""

    @abc.abstractmethod
    def _sum(self, terms: Array) -> Array:
        """Their sum."""

    def __call__(self, x: ArrayLike) -> Array:
        x = as_float(x)
        self.coupled_axes(x.ndim)
        return self._sum(self._value(widened(x))).astype(x.dtype)

    def activation(self, x: ArrayLike) -> Array:
        x = as_float(x)
        self.coupled_axes(x.ndim)
        return self._activation(widened(x)).astype(x.dtype)

    def energy(self, x: ArrayLike) -> Array:
        x = as_float(x)
        self.coupled_axes(x.ndim)
        return self._sum(self._energy(widened(x))).astype(x.dtype)


class AbstractElementwise(AbstractClosedForm):
    """A Lagrangian with one term per unit."""

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return ()

    def _sum(self, terms: Array) -> Array:
        return jnp.sum(terms)


class AbstractRowwise(AbstractClosedForm):
    """A Lagrangian with one term per row along `axis`."""

    axis: eqx.AbstractVar[int]

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        if not -ndim <= self.axis < ndim:
            raise ValueError(
                f"{type(self).__name__} acts along axis {self.axis}, which a state of {ndim} axes "
                "does not have."
            )
        return (self.axis % ndim,)

    def _sum(self, terms: Array) -> Array:
        # The terms have either sign: no partial sum may leave the range if the whole doesn't.
        scale = 2.0 ** max(terms.size - 1, 0).bit_length()
        total = jnp.sum(terms)
        return jnp.where(jnp.isfinite(total), total, jnp.sum(terms / scale) * scale)


class CallableLagrangian(AbstractLagrangian):
    """A convex callable; its activation and energy come by automatic differentiation."""

    parameters: PyTree
    rest: Any = eqx.field(static=True)

    def __init__(self, fn: Callable[..., Any]):
        self.parameters, self.rest = eqx.partition(fn, eqx.is_array)

    def _value(self, z: Array) -> Array:
        fn: Any = eqx.combine(self.parameters, self.rest)
        value = jnp.asarray(fn(z))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                "A Lagrangian returns a real scalar, its sum over all units; the given callable "
                f"returned {value.dtype}{list(value.shape)} for a state of shape {z.shape}."
            )
        return value.astype(z.dtype)

    def __call__(self, x: ArrayLike) -> Array:
        x = as_float(x)
        return self._value(widened(x)).astype(x.dtype)

    def activation(self, x: ArrayLike) -> Array:
        x = as_float(x)
        return jax.grad(self._value)(widened(x)).astype(x.dtype)

    def energy(self, x: ArrayLike) -> Array:
        x = as_float(x)
        z = widened(x)
        value, g = jax.value_and_grad(self._value)(z)
        product = jnp.sum(z * g)
        # Where both overflow so does E, of a callable that grows faster than |x|.
        beyond = (product == jnp.inf) & (value == jnp.inf)
        return jnp.where(beyond, jnp.inf, product - value).astype(x.dtype)

    def __repr__(self) -> str:
        return f"as_lagrangian({pformat(eqx.combine(self.parameters, self.rest))})"


def as_lagrangian(fn: Any) -> AbstractLagrangian:
    """Makes a Lagrangian of a plain convex callable; a Lagrangian is returned as it is.

    g = ∇fn(x) and E = Σ x·g − fn(x) come by automatic differentiation, so they are as accurate as
    `fn` and its derivative are. The arrays in a callable that is a pytree (an `eqx.Module`, a
    `jax.tree_util.Partial`) stay trainable parameters; a function is compared by identity, so a new
    lambda compiles anew.

    **Arguments:**

    - `fn`: a convex function from a state of any shape to a real scalar.

    **Returns:**

    An [`hopfield_layers.AbstractLagrangian`][], a valid argument of `jax.jit`.

    **Raises:** `TypeError` if `fn` is not callable, `ValueError` when it returns no real scalar.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> huber = hl.as_lagrangian(lambda x: jnp.sum(jnp.sqrt(1 + x**2)))
    >>> print(hl.Layer(huber, 3).energy_bound())
    -3.0

    ```
    """
    if isinstance(fn, AbstractLagrangian):
        return fn
    if isinstance(fn, type):
        raise TypeError(
            f"Expected a Lagrangian, got the class {fn.__name__}: pass an instance, "
            f"{fn.__name__}(...), or set init_lagrangian=True."
        )
    if not callable(fn):
        raise TypeError(f"Expected a Lagrangian or a convex callable, got {fn!r}.")
    return CallableLagrangian(fn)


def pformat(module: PyTree) -> str:
    """Equinox's representation with the numbers of scalar parameters shown."""

    def show(leaf):
        scalar = eqx.is_array(leaf) and leaf.shape == () and eqx.is_inexact_array(leaf)
        if not scalar or isinstance(leaf, Tracer):
            return leaf
        return float(str(np.asarray(leaf)))  # the shortest digits of its own dtype

    return eqx.tree_pformat(jax.tree.map(show, module))


def cast(parameter: Array, z: Array, floor: float) -> Array:
    """A scalar parameter in the dtype of `z`, or `floor` where it is below."""
    if jnp.ndim(parameter) != 0:
        raise ValueError(
            f"A Lagrangian's parameter is a scalar, got shape {jnp.shape(parameter)}: use jax.vmap "
            "for a batch of parameters."
        )
    parameter = parameter.astype(z.dtype)
    return jnp.where(parameter < floor, floor, parameter)
