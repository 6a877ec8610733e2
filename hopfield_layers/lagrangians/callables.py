"""Plain convex callables as Lagrangians."""

import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import wadler_lindig as wl
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ..model import AbstractEnergyModel
from .base import AbstractLagrangian, AbstractWideLagrangian


class CallableLagrangian(AbstractWideLagrangian):
    """A convex callable, with activation and energy by automatic differentiation."""

    leaves: PyTree
    static: PyTree = eqx.field(static=True)
    axes: tuple[int, ...] | None = eqx.field(static=True)

    def _value_terms(self, z):
        value = jnp.asarray(eqx.combine(self.leaves, self.static)(z))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                "A Lagrangian returns a real scalar, its sum over all units; the given callable "
                f"returned {value.dtype}{list(value.shape)} for a state of shape {z.shape}."
            )
        return value.astype(z.dtype)

    def _activation_formula(self, z):
        return jax.grad(self._value_terms)(z)

    def _energy_terms(self, z):
        value, g = jax.value_and_grad(self._value_terms)(z)
        product = jnp.sum(z * g)
        # Where both overflow, so does E, because the callable grows faster than |x| there.
        overflows = (product == jnp.inf) & (value == jnp.inf)
        return jnp.where(overflows, jnp.inf, product - value)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        axes = range(ndim) if self.axes is None else self.axes
        if not all(-ndim <= axis < ndim for axis in axes):
            raise ValueError(
                f"Expected coupled_axes among the {ndim} axes of the state, got {self.axes}."
            )
        return tuple(axis % ndim for axis in axes)

    def __pdoc__(self, **options) -> wl.AbstractDoc:
        fn = wl.pdoc(eqx.combine(self.leaves, self.static), **options)
        return wl.TextDoc("as_lagrangian(") + fn + wl.TextDoc(")")


def as_lagrangian(
    fn: Callable[..., ArrayLike], coupled_axes: tuple[int, ...] | None = None
) -> AbstractLagrangian:
    """Makes a Lagrangian of a plain convex callable; a Lagrangian is returned as it is.

    g = ∇fn(x) and E = Σ x·g − fn(x) are computed by automatic differentiation, as accurately as
    `fn` and its derivative. If the callable is a pytree (an `eqx.Module`, a
    `jax.tree_util.Partial`), its arrays are trainable parameters; floats are saved and loaded with
    them, and stay Python numbers under `equinox.filter_jit`. Functions are compared by identity, so
    that a new lambda is compiled again.

    **Arguments:**

    - `fn`: a convex function from a state of any shape to a real scalar.
    - `coupled_axes`: the axes along which gᵢ depends on other xⱼ: `()` for a sum of terms per unit,
        `(-1,)` for a sum of terms per row. By default all axes, so that a clamp must hold all units
        of a layer or none.

    **Returns:** A [`hopfield_layers.AbstractLagrangian`][], a valid argument of `jax.jit`.

    **Raises:** `TypeError` if `fn` is a layer or not callable, or `coupled_axes` is not a tuple of
    axes; when called, `ValueError` if `fn` doesn't return a real scalar or the state doesn't have
    the axes.

    Examples:
        >>> huber = hl.as_lagrangian(lambda x: jnp.sum(jnp.sqrt(1 + x**2)))
        >>> print(hl.Layer(huber, 3).energy_bound())
        -3.0
    """
    if isinstance(fn, AbstractLagrangian):
        if coupled_axes is not None:
            raise TypeError(f"{type(fn).__name__} declares its own coupled axes.")
        return fn
    if isinstance(fn, AbstractEnergyModel):
        raise TypeError(f"Expected a Lagrangian, got a {type(fn).__name__}: pass layer.lagrangian.")
    if isinstance(fn, type):
        raise TypeError(
            f"Expected a Lagrangian, got the class {fn.__name__}: pass an instance, "
            f"{fn.__name__}(...), or set init_lagrangian=True."
        )
    if not callable(fn):
        raise TypeError(f"Expected a Lagrangian or a convex callable, got {fn!r}.")
    try:
        axes = None if coupled_axes is None else tuple(map(operator.index, coupled_axes))
    except TypeError:
        raise TypeError(
            f"Expected a tuple of axes, (0,) for instance, got {coupled_axes!r}."
        ) from None
    # `eqx.tree_serialise_leaves` saves floats that are leaves, `eqx.filter_jit` doesn't trace them.
    parts = eqx.partition(fn, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, float))
    return CallableLagrangian(*parts, axes)
