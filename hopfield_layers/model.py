"""The interface between models and the dynamics, and the types of states as users pass them."""

import abc
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree


# NumPy's arrays need no conversion: a compiled program takes them faster than JAX's own.
AnyArray = Array | np.ndarray
Flow = Literal["state", "activation"]
# A state, or another tree with the structure of a state, as users pass it: any tree of arrays.
StateLike = ArrayLike | Mapping[Any, Any] | tuple[Any, ...] | list[Any] | eqx.Module


class AbstractEnergyModel(eqx.Module):
    """A state x with an energy E and activations g = ∂L/∂x: a layer, a network, or your own model.

    | | |
    |---|---|
    | `model.energy(x)` | E, of the shape of the batch axes of x, `()` without any |
    | `model.activations(x)` | g = ∂L/∂x, of the structure and shapes of x |
    | `model.dEdg(x)` | u = ∂E/∂g, of the structure and shapes of x |
    | `model.tau` | τ > 0 in units of t, a tree of numbers that is a prefix of x |
    | `model.coupled(held)` | optional: the units whose activation depends on a unit of `held` |
    | `model.blocks()` | optional: the arrays that [`hopfield_layers.BlockUpdates`][] joins |
    | `model.energy_and_dEdg(x)` | optional: both, if they are cheaper together |
    | `model.synaptic_slopes(g)` | optional: ∂E_s/∂g = u − z of one sample, for faster gradients |

    The state is any tree of arrays. E falls along both flows of [`hopfield_layers.EnergyFlow`][] if
    L is a sum of convex functions, one for each array. A model whose energy is a scalar for every
    state has no batch axes.

    `coupled` takes and returns a tree of booleans like x. In the activation flow a clamp must not
    hold a unit whose activation depends on a free unit; without this method all units of an array
    are assumed to depend on one another. `blocks` returns trees of booleans that are prefixes of x,
    each array being True in exactly one; without it all arrays are updated at once. With
    `synaptic_slopes` the derivatives of [`hopfield_layers.relax`][] are computed by conjugate
    gradients, without it by GMRES.

    Examples:
        >>> class Springs(hl.AbstractEnergyModel):
        ...     stiffness: jax.Array
        ...     tau: float = 1.0
        ...     def energy(self, x):
        ...         return jnp.sum(self.stiffness * x**2, axis=-1) / 2
        ...     def activations(self, x):
        ...         return x
        ...     def dEdg(self, x):
        ...         return self.stiffness * x
        >>> print(hl.solve(Springs(jnp.array(2.0)), jnp.array([1.0, 3.0]), t1=0.5).ys.round(1))
        [[0.4 1.1]]
    """

    tau: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def energy(self, x: PyTree, /) -> Float[Array, "*batch"]:
        """E(x), of the shape of the batch axes."""

    @abc.abstractmethod
    def activations(self, x: PyTree, /) -> PyTree[Float[Array, "..."]]:
        """g = ∂L/∂x."""

    @abc.abstractmethod
    def dEdg(self, x: PyTree, /) -> PyTree[Float[Array, "..."]]:
        """u = ∂E/∂g."""
