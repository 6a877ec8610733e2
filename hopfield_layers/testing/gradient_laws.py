"""The law of derivatives with respect to parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._arrays import as_float
from ..lagrangians import as_lagrangian
from ..model import AbstractEnergyModel
from .verdict import check, Laws, Measured, not_nan, rounding


def assert_gradients(model: Any, x: PyTree) -> None:
    """Derivatives with respect to each parameter are those of central differences.

    Of L, g and E, and for a model of g, u, E, H u and τ, along one direction in each parameter.
    Computed in float64 whatever the dtype of x. The difference is extrapolated to fourth order; its
    tolerance is what the extrapolation changes and its rounding, and at a kink or beside a power,
    where it tends to its limit slower than h² or not at all, what it may still be off by.

    **Arguments:**

    - `model`: a Lagrangian, a convex callable, or a [`hopfield_layers.AbstractEnergyModel`][].
    - `x`: a state, without batch axes.

    **Raises:** `AssertionError` with the parameter's name, both derivatives, and the size of the
    violation and of its tolerance.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax, jax.numpy as jnp
    >>> from hopfield_layers.testing import assert_gradients
    >>> assert_gradients(hl.TanhLayer(2, tau=2.0, bias=jnp.ones(2)), jnp.array([0.5, -1.0]))
    >>> class LHalf(hl.LTanh):
    ...     def __call__(self, x):
    ...         return hl.LTanh(jax.lax.stop_gradient(self.beta))(x)
    >>> assert_gradients(LHalf(beta=2.0), jnp.array([0.5, -1.0]))
    Traceback (most recent call last):
    ...
    hopfield_layers.testing.verdict.Violation: gradients: Σ ∂f/∂θ·v = df(θ + hv)/dh, does not ...
    ...

    ```
    """
    model = model if isinstance(model, AbstractEnergyModel) else as_lagrangian(model)
    check(gradient_laws(model, x), {"model": model, "x": x})


def gradient_laws(model: Any, x: PyTree) -> Laws:
    """The law of each parameter at x."""
    with jax.enable_x64(True):
        wide = lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf
        model, x = jax.tree.map(wide, (model, jax.tree.map(as_float, x)))
        return _measured(model, x)


def _results(model: Any, x: PyTree) -> PyTree:
    if not isinstance(model, AbstractEnergyModel):
        return {"L(x)": model(x), "g(x)": model.activation(x), "E(x)": model.energy(x)}
    u = model.dEdg(x)
    g, force = jax.jvp(model.activations, (x,), (u,))
    return {"g(x)": g, "u(x)": u, "E(x)": model.energy(x), "H u": force, "τ": model.tau}


def _weighted(flat: Array) -> Array:
    """So that each result has its part in the sum."""
    return (1 + jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))) * flat


@eqx.filter_jit
def _measured(model: Any, x: PyTree) -> Laws:
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    values, unravel = ravel_pytree(parameters)
    paths = jax.tree_util.tree_leaves_with_path(parameters)

    def results(values, x):
        return ravel_pytree(_results(eqx.combine(unravel(values), rest), x))[0]

    def probe(values, x):
        flat = results(values, x)
        return jnp.sum(_weighted(flat)), flat

    def differences(direction):
        at = lambda h: _weighted(results(values + h * direction, x))
        ups, downs = jnp.split(jax.lax.map(at, jnp.concatenate([steps, -steps])), 2)
        h = steps[:, None]
        return (ups - downs) / (2 * h), (ups - 2 * here + downs) / h

    if not paths:
        return {}
    both = jax.value_and_grad(probe, argnums=(0, 1), has_aux=True)
    (_, flat), (exact, slopes_in_x) = both(values, x)
    here = _weighted(flat)
    # What rounding the arguments does; a derivative that is NaN explains nothing.
    arguments, slopes = (ravel_pytree(tree)[0] for tree in ((x, values), (slopes_in_x, exact)))
    moved = jnp.nan_to_num(jnp.abs(arguments * slopes), nan=0, posinf=jnp.inf)
    size = jnp.sum(jnp.abs(here)) + jnp.sum(moved)
    sizes = [leaf.size for _, leaf in paths]
    owner = jnp.repeat(jnp.arange(len(sizes)), jnp.array(sizes), total_repeat_length=sum(sizes))
    # Of the size of the parameter, so that it stays in its domain.
    scale = jnp.where(values == 0, 1, jnp.abs(values))
    direction = scale * jnp.cos(jnp.arange(values.size, dtype=values.dtype) / 2)
    steps = 2.0 ** -jnp.arange(9.0, 12.0)

    def along(i):
        own = jnp.where(owner == i, direction, 0)
        (coarse, middle, fine), (_, bend, half) = differences(own)
        better, best = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
        # Of h f″ nothing is left, but of a kink right here half of it; and of an error that falls
        # as slowly as √h, beside a power, the sum of a geometric series.
        last, before = jnp.abs(fine - middle), jnp.abs(middle - coarse)
        slower = before / jnp.where(last == 0, 1, last)  # 4 where the error falls as h²
        series = jnp.where(slower < 3.5, last / jnp.maximum(slower - 1, 2.0**-12), 0)
        change = jnp.abs(best - better) + jnp.abs(2 * half - bend) + series
        return jnp.sum(jnp.where(owner == i, exact * own, 0)), jnp.sum(best), jnp.sum(change)

    slopes, expected, changes = jax.lax.map(along, jnp.arange(len(sizes)))
    tolerances = changes + rounding(size / steps[-1])
    return {
        "finite": [not_nan({"f": flat})],
        "gradients": [
            Measured(slope, best, tolerance, {}, of="θ = model" + jax.tree_util.keystr(path))
            for (path, leaf), slope, best, tolerance in zip(
                paths, slopes, expected, tolerances, strict=True
            )
            if leaf.size
        ],
    }
