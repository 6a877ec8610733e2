"""Pictures of Lagrangians."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .._conversion import as_float
from ..lagrangians import as_lagrangian
from ..synapses.base import LagrangianLike
from ._drawing import BOUND, canvas


def plot_lagrangian(
    lagrangian: LagrangianLike,
    x: ArrayLike | None = None,
    *,
    direction: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws L, g = dL/dx and E = x·g − L against x, and the bound −L(0).

    The state is a single unit x, or x·d along a direction d; the plotted g is then Σ dᵢgᵢ.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `x`: where to draw it, an array of one axis. By default from −3 to 3.
    - `direction`: d, an array of the state's shape. By default a single unit.
    - `ax`: the axes to draw into, which are returned.

    **Raises:** `TypeError` if `lagrangian` is not a Lagrangian; `ValueError` for fewer than two x,
    or if the Lagrangian acts along an axis that the direction doesn't have.

    Examples:
        >>> ax = hl.plotting.plot_lagrangian(hl.LSoftmax(beta=2.0), direction=[1.0, 0.0, 0.0])
        >>> [line.get_label() for line in ax.lines]
        ['L', 'g', 'E', '−L(0)']
    """
    lagrangian = as_lagrangian(lagrangian)
    x = as_float(np.linspace(-3, 3, 301) if x is None else np.asarray(x))
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"Expected x of one axis with at least two points, got shape {x.shape}.")
    d = as_float(np.asarray(1.0 if direction is None else direction))
    d = d[None] if d.ndim == 0 else d

    def along(s):
        z = s * d
        return lagrangian(z), jnp.sum(d * lagrangian.activation(z)), lagrangian.energy(z)

    curves = jax.jit(jax.vmap(along))(x.astype(jnp.result_type(x, d)))
    bound = 0.0 - float(lagrangian(jnp.zeros_like(d)))  # and not −0
    ax = canvas(ax)
    # Unlike colours, dashes and dots survive a black and white print.
    for label, curve, dashes in zip("LgE", curves, ("-", "-.", ":"), strict=True):
        ax.plot(np.asarray(x), np.asarray(curve), dashes, label=label)
    ax.axhline(bound, **BOUND, label="−L(0)")
    ax.set_xlabel("unit x" if direction is None else "x along the direction")
    ax.legend(frameon=False)
    return ax
