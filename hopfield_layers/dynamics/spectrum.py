"""The smallest eigenvalues of A = ∂u/∂x = I + S H on the range of H.

S = ∂²E_s/∂g² and H = ∂²L/∂x². The linearised activation flow is τ dv/dt = −A v. H A is
symmetric, so A has real eigenvalues on the range of H, those of I + H^½ S H^½, and a fixed point is
stable if they are positive. Directions that H can't move (a dead unit, the mean of a softmax's row)
have the eigenvalue 1.
"""

import functools as ft

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .flow import EnergyFlow
from .linear_systems import Product
from .state_trees import like_state


_T0 = 0.0
MAX_DENSE = 256  # the largest number of units for which the matrices are formed
NUM_DIRECTIONS = 100  # the dimension of the Krylov space for more units


def smallest_eigenvalues(field: EnergyFlow, x: PyTree[Array], count: int) -> Float[Array, " count"]:
    """The smallest of A for one sample, in ascending order, and ∞ where the rank of H is smaller.

    Clamped units are left out, as they don't move. The matrices are formed for up to 256 units. For
    more units Lanczos' method is used in the inner product aᵀ H b. It finds a multiple eigenvalue
    only once.
    """
    flat, unravel = ravel_pytree(x)
    free = jnp.ones_like(flat)
    if field.clamp is not None:
        held, _ = ravel_pytree(like_state(x, field.clamp.held, "clamp"))
        free = jnp.where(held, 0, free)
    _, metric = jax.linearize(field.model.activations, x)
    _, jacobian = jax.linearize(ft.partial(field.drive, _T0), x)

    def H(v: Array) -> Array:
        return free * ravel_pytree(metric(unravel(free * v)))[0]

    def A(v: Array) -> Array:
        return free * ravel_pytree(jacobian(unravel(free * v)))[0]

    values = _dense(A, H, flat) if flat.size <= MAX_DENSE else _lanczos(A, H, flat)
    missing = max(count - values.size, 0)
    return jnp.pad(values, (0, missing), constant_values=jnp.inf)[:count]


def _dense(A: Product, H: Product, like: Float[Array, " n"]) -> Float[Array, " n"]:
    """All eigenvalues: those of D^½ Vᵀ A V D^−½ with H = V D Vᵀ, for the columns with D > 0."""
    basis = jnp.eye(like.size, dtype=like.dtype)
    rows = jax.vmap(H)(basis)
    sizes, V = jnp.linalg.eigh((rows + rows.T) / 2)
    inside = sizes > like.size * jnp.finfo(like.dtype).eps * jnp.max(sizes, initial=0)
    roots = jnp.sqrt(jnp.where(inside, sizes, 1))
    products = V.T @ jax.vmap(A, in_axes=1, out_axes=1)(V)
    matrix = roots[:, None] * products / roots
    matrix = jnp.where(inside[:, None] & inside, (matrix + matrix.T) / 2, 0)
    # Values outside the range of H are set above all others, so that they are sorted to the end.
    outside = 1 + 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1), initial=0)
    values = jnp.linalg.eigvalsh(matrix + jnp.diag(jnp.where(inside, 0, outside)))
    return jnp.where(jnp.arange(like.size) < jnp.sum(inside), values, jnp.inf)


def _lanczos(A: Product, H: Product, like: Float[Array, " n"]) -> Float[Array, " directions"]:
    """Eigenvalues of A on the Krylov space of a random vector, with full orthogonalization."""
    size = NUM_DIRECTIONS
    eps = jnp.finfo(like.dtype).eps
    start = jax.random.normal(jax.random.key(0), like.shape, like.dtype)

    def orthogonal(v: Array, basis: Array) -> Array:
        # Orthogonalizing twice, in the inner product aᵀ H b, is enough (Kahan & Parlett).
        for _ in range(2):
            v = v - basis.T @ (basis @ H(v))
        return v

    def step(carry, _):
        basis, v, i, alive = carry
        norm = jnp.sqrt(jnp.maximum(jnp.vdot(v, H(v)), 0))
        alive = alive & (norm > 10 * eps * (1 + jnp.sqrt(jnp.vdot(v, v))))
        q = jnp.where(alive, v / jnp.where(alive, norm, 1), 0)
        basis = basis.at[i].set(q)
        product = A(q)
        return (basis, orthogonal(product, basis), i + 1, alive), (product, alive)

    carry = jnp.zeros((size, like.size), like.dtype), start, 0, jnp.array(True)
    (basis, *_), (products, alive) = jax.lax.scan(step, carry, length=size)
    matrix = jax.vmap(H)(basis) @ products.T
    matrix = (matrix + matrix.T) / 2
    outside = 1 + 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    values = jnp.linalg.eigvalsh(matrix + jnp.diag(jnp.where(alive, 0, outside)))
    return jnp.where(jnp.arange(size) < jnp.sum(alive), values, jnp.inf)
