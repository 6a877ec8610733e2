"""What the dynamics needs to know of a model."""

import abc

import equinox as eqx
from jaxtyping import Array, PyTree


class AbstractEnergyModel(eqx.Module):
    """A state x with an energy E and activations g = ∂L/∂x: a layer, a network, or your own model.

    | | |
    |---|---|
    | `model.energy(x)` | E, of the shape of the batch axes of x, `()` without any |
    | `model.activations(x)` | g = ∂L/∂x, of the structure and shapes of x |
    | `model.dEdg(x)` | u = ∂E/∂g, likewise |
    | `model.tau` | τ > 0 in units of t, a tree of numbers that is a prefix of x |

    The state is any tree of arrays. L must be convex in each: then E falls along both flows of
    [`hopfield_layers.EnergyFlow`][]. A model whose energy is a scalar for every state has no batch
    axes.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> class Springs(hl.AbstractEnergyModel):
    ...     stiffness: float
    ...     tau: float = 1.0
    ...     def energy(self, x):
    ...         return jnp.sum(self.stiffness * x**2, axis=-1) / 2
    ...     def activations(self, x):
    ...         return x
    ...     def dEdg(self, x):
    ...         return self.stiffness * x
    >>> solution = hl.solve(Springs(2.0), jnp.array([1.0, 3.0]), t1=20.0)
    >>> print(bool(jnp.all(abs(solution.ys) < 1e-6)))
    True

    ```
    """

    tau: eqx.AbstractVar[PyTree]

    @abc.abstractmethod
    def energy(self, x: PyTree, /) -> Array:
        """E(x), of the shape of the batch axes."""

    @abc.abstractmethod
    def activations(self, x: PyTree, /) -> PyTree:
        """g = ∂L/∂x."""

    @abc.abstractmethod
    def dEdg(self, x: PyTree, /) -> PyTree:
        """u = ∂E/∂g."""
