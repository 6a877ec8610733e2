"""Linear systems with the Jacobian of a drive, A = ∂u/∂x = I + S H, S = ∂²E_s/∂g², H = ∂²L/∂x².

In the inner product ⟨a, b⟩ = aᵀ H b the operator A is self-adjoint, because H A = H + H S H is
symmetric, and at a stable fixed point it is positive. Conjugate gradients in this inner product
therefore solve A d = b with one product with A and one with H for each iteration, without a matrix
or a basis of directions. The inner product doesn't depend on units with H = 0; d = b − S (H d)
gives these afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


Product = Callable[[Array], Array]
# The number of samples whose systems are solved at a time on a CPU. A product with A needs twice
# the memory of a drive for the scores of patterns. With 64 in place of 128 the derivative of a
# batch of 1024 takes two thirds of the time in a chain of five layers, and in memories 1 to 1.2
# times.
LARGEST_PART = 64


class _Iteration(NamedTuple):
    solution: Array
    residual: Array
    direction: Array
    metric_direction: Array  # H times the direction
    square: Float[Array, ""]  # ⟨residual, residual⟩
    is_positive: Bool[Array, ""]  # whether the curvature was positive in all directions so far
    num_steps: Int[Array, ""]


class Solution(NamedTuple):
    """The result of conjugate gradients."""

    value: Float[Array, " n"]
    is_solved: Bool[Array, ""]
    num_steps: Int[Array, ""]


def conjugate_gradients(
    operator: Product, metric: Product, b: Float[Array, " n"], rtol: float, max_steps: int
) -> Solution:
    """Solves A d = b for A self-adjoint in ⟨a, b⟩ = aᵀ H b; tells whether the residual is small.

    It stops if H or the curvature is not positive along a direction. b = 0 gives 0.
    """
    size = jnp.max(jnp.abs(b), initial=0.0)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)

    def step(state: _Iteration):
        product = operator(state.direction)
        curvature = jnp.vdot(state.metric_direction, product)
        is_positive = curvature > 0
        length = jnp.where(is_positive, state.square / jnp.where(is_positive, curvature, 1), 0)
        residual = state.residual - length * product
        metric_residual = metric(residual)
        square = jnp.vdot(residual, metric_residual)
        ratio = square / state.square
        return _Iteration(
            state.solution + length * state.direction,
            residual,
            residual + ratio * state.direction,
            metric_residual + ratio * state.metric_direction,
            jnp.where(is_positive, square, state.square),
            is_positive,
            state.num_steps + 1,
        )

    unit = b / size
    metric_unit = metric(unit)
    square = jnp.vdot(unit, metric_unit)
    zero = jnp.zeros_like(unit)
    first = _Iteration(zero, unit, unit, metric_unit, square, jnp.array(True), jnp.array(0))

    def is_solved(state: _Iteration):
        return jnp.abs(state.square) <= rtol**2 * first.square

    def continues(state: _Iteration):
        possible = state.is_positive & (state.square > 0) & (state.num_steps < max_steps)
        return possible & ~is_solved(state)

    last = jax.lax.while_loop(continues, step, first)
    return Solution(last.solution * size, is_solved(last), last.num_steps)
