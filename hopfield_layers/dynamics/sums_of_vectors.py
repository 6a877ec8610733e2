"""Sums and products of several vectors at once.

XLA on CPUs evaluates each sum by a kernel or two of its own, and vectors are often so short that
starting these takes most of the time. In chains of five layers with 290 units a sweep of block
updates takes 0.76 of the time that it takes with separate sums. In batches, where the stacked
vectors would have to be stored, the sums are separate.
"""

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float


@custom_vmap
def sums(*vectors: Float[Array, " n"]) -> tuple[Float[Array, ""], ...]:
    """The sum of each vector."""
    return tuple(jnp.sum(jnp.stack(vectors), axis=1))


@sums.def_vmap
def _(size, in_batched, *vectors):
    batched = [jnp.broadcast_to(x, (size, x.shape[-1])) for x in vectors]
    return tuple(jnp.sum(x, axis=1) for x in batched), (True,) * len(vectors)


@custom_vmap
def products(rows: tuple[Float[Array, " n"], ...], vector: Float[Array, " n"]) -> Array:
    """The product of each row with the vector."""
    return jnp.matmul(jnp.stack(rows), vector, precision="highest")


@products.def_vmap
def _(size, in_batched, rows, vector):
    terms = [jnp.broadcast_to(row * vector, (size, vector.shape[-1])) for row in rows]
    return jnp.stack([jnp.sum(x, axis=1) for x in terms], axis=1), True
