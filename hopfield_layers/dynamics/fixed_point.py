"""States at rest, differentiated as fixed points by the implicit function theorem."""

import functools as ft

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .block_updates import Updates
from .flow import EnergyFlow
from .flow_to_rest import FlowToRest
from .linear_systems import conjugate_gradients, LARGEST_PART
from .map_in_parts import map_in_parts
from .newton_krylov import Krylov
from .rest import FAR, limit_of, of_samples
from .run_time_errors import unless
from .state_trees import largest, like_state, on_vectors, tree_where, without_derivatives


_T0 = np.zeros(())  # the flow doesn't change with t
# The numbers of samples that are relaxed, or whose systems GMRES solves, at a time on a CPU. This
# bounds the memory, which is some 25 times that of x for a relaxation and more than twice as much
# for GMRES. It also saves time, as vectors of fewer samples fit in the caches: a batch of 1024
# takes 0.8 of the time in a chain of five layers, and in memories 0.93 to 1.02.
_LARGEST_PART_OF_SEARCH = 128
_LARGEST_PART_OF_GMRES = 16


@eqx.filter_custom_jvp
def settle(
    search: Updates | FlowToRest, x0: PyTree[Array], throw: bool
) -> tuple[PyTree, Array, dict]:
    """x at rest, its energy, and further attributes, which have no derivatives."""
    rest = map_in_parts(search.run, _LARGEST_PART_OF_SEARCH, x0)
    x, energy, residual, converged, time, num_steps = rest
    residual = jnp.where(jnp.isnan(residual), jnp.inf, residual)
    lowest = -(float(jnp.finfo(energy.dtype).max) ** FAR)
    flat, flat0 = (ravel_pytree(tree)[0] for tree in (x, x0))
    is_unbounded = ~converged & ((largest(flat) > limit_of(largest(flat0))) | (energy < lowest))
    attributes = {"residual": residual, "converged": converged, "time": time}
    return x, energy, attributes | {"num_steps": num_steps, "is_unbounded": is_unbounded}


@settle.def_jvp
def _(primals, tangents):
    """The implicit function theorem for the condition c(x, θ) = 0: ∂c/∂x dx = −∂c/∂θ dθ."""
    x, energy, attributes = settle(*primals)
    (search, x0, throw), (d_search, *_) = primals, tangents
    # Where a value overflows, derivatives at x would turn a cotangent of 0 into NaN.
    sizes = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(x)]
    finite = jnp.isfinite(sum(sizes, energy + attributes["residual"]))
    at = tree_where(finite, x, jax.tree.map(jnp.zeros_like, x))

    def condition(*parameters):
        return _condition(at, parameters)

    _, change = eqx.filter_jvp(condition, primals[:2], tangents[:2])
    minus = jax.tree.map(lambda x, d: jnp.zeros_like(x) if d is None else -d, at, change)
    dx = at
    if any(leaf.size > 0 for leaf in jax.tree.leaves(at)):
        dx = _solved(search, x0, at, minus, throw)
    fields = (search.field, at), (d_search.field, dx)
    _, change_of_energy = eqx.filter_jvp(lambda field, x: field.energy(_T0, x), *fields)
    return (x, energy, attributes), (dx, change_of_energy, dict.fromkeys(attributes))


def _condition(x, parameters):
    """The quantity that is 0 at a fixed point: u, and x − x₀ at the clamped units.

    It is u for the state flow too, because the flow's own H u also vanishes wherever H does. The
    exception are free units of a row of which the clamp holds a part: there H u = 0 doesn't imply
    u = 0, and the condition is H u.
    """
    search, x0 = parameters
    field = search.field
    vanishing = field.drive(_T0, x)
    if field.clamp is None:
        return vanishing
    if field.flow == "state":  # the activation flow has no such rows
        slope = jax.tree.map(jnp.negative, field.force(_T0, x))
        vanishing = jax.tree.map(jnp.where, field.clamp.dependent(field.model), slope, vanishing)
    distance = jax.tree.map(jnp.subtract, x, x0)
    return jax.tree.map(jnp.where, field.clamp.held, distance, vanishing)


def _solved(search: Updates | FlowToRest, x0, x, b, throw: bool) -> PyTree[Array]:
    """dx with ∂c/∂x dx = b, or the best approximation that the methods found."""
    field = search.field
    _, unravel = ravel_pytree(x)
    _, jacobian = jax.linearize(ft.partial(_condition, parameters=(search, x0)), x)
    product = on_vectors(jacobian, unravel)

    def checked(solve):
        def solution(product, b):
            d, is_solved = map_in_parts(ft.partial(solve, product), LARGEST_PART, b)
            return _or_error(d, is_solved) if throw else d

        return solution

    solve, solve_transposed = _by_gmres, _by_gmres
    # The derivative of a solution is that of its equation. JAX's rule fails on methods that have
    # tangents where the equation has none.
    field, x = without_derivatives((field, x))
    is_split = field.flow == "state" and field.clamp is not None
    if callable(slopes := getattr(field.model, "synaptic_slopes", None)) and not is_split:
        products = _Symmetric(field, slopes, x)
        solve, solve_transposed = products.solve, products.solve_transposed
    methods = checked(solve), checked(solve_transposed)
    return unravel(jax.lax.custom_linear_solve(product, ravel_pytree(b)[0], *methods))


class _Symmetric:
    """Solves equations with A = I + D S H, where D is 0 at clamped units and 1 at free ones.

    A clamp of the activation flow holds all or none of the units that H couples: D H = H D.
    """

    def __init__(self, field: EnergyFlow, slopes, x: PyTree[Array]):
        flat, unravel = ravel_pytree(x)
        g, metric = jax.linearize(field.model.activations, x)
        _, curvature = jax.linearize(slopes, g)
        self.free = jnp.ones_like(flat)
        if field.clamp is not None:
            held, _ = ravel_pytree(like_state(x, field.clamp.held, "clamp"))
            self.free = jnp.where(held, 0, self.free)
        self.H = on_vectors(metric, unravel)
        self.S = on_vectors(curvature, unravel)

    def solve(self, product, b):
        """d with A d = b: its free part by conjugate gradients, and then d = b − D S H d."""
        held = (1 - self.free) * b
        free, solved, _ = self._conjugate_gradients(self.free * (b - self.S(self.H(held))))
        d = b - self.free * self.S(self.H(free + held))
        return _where_solved(solved, d, product, b)

    def solve_transposed(self, product, b):
        """y with Aᵀ y = b: y = b − H S D y, where D S D y is the solution of an equation with A."""
        pull, solved, _ = self._conjugate_gradients(self.free * self.S(self.free * b))
        y = b - self.H(self.S(self.free * b - self.H(pull)))
        return _where_solved(solved, y, product, b)

    def _conjugate_gradients(self, b):
        def operator(v):
            return v + self.free * self.S(self.H(v))

        eps = float(jnp.finfo(b.dtype).eps)
        return conjugate_gradients(operator, self.H, b, 10 * eps, min(2 * b.size + 20, 1000))


def _where_solved(is_solved, d, product, b):
    """d, replaced by the solution of a general method for samples that are not solved."""
    error, size = (jnp.max(jnp.abs(v), initial=0) for v in (product(d) - b, b))
    return _by_gmres(product, b, is_solved & (error <= 0.01 * size), d)


def _by_gmres(product, b, is_solved=False, d=0.0):
    """The solution of product(d) = b and whether it was found, assuming no symmetry.

    Samples that are solved keep their d.
    """
    precision = float(jnp.finfo(b.dtype).eps) ** (2 / 3)

    def solve(b, is_solved, d):
        def general():
            operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: b))
            solution = lx.linear_solve(operator, b, Krylov(precision, 50, 100), throw=False)
            is_solved_now = solution.result == lx.RESULTS.successful
            return jnp.where(is_solved, d, solution.value), is_solved | is_solved_now

        return jax.lax.cond(eqxi.unvmap_any(~is_solved), general, lambda: (d, is_solved))

    d = jnp.broadcast_to(jnp.asarray(d, b.dtype), b.shape)
    return map_in_parts(solve, _LARGEST_PART_OF_GMRES, b, jnp.asarray(is_solved), d)


@jax.custom_batching.custom_vmap
def _or_error(d, is_solved):
    """d, or an error at run time that lists the samples without a solution."""
    return unless(~jnp.all(is_solved), d, _call_raise_singular, is_solved)


@_or_error.def_vmap
def _(size, in_batched, d, is_solved):
    # All samples at once, because `equinox.error_if` under vmap can't tell which of them failed.
    d, is_solved = (
        leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))
        for leaf, batched in zip((d, is_solved), in_batched, strict=True)
    )
    return _or_error(d, is_solved), True


def _call_raise_singular(is_failed, is_solved):
    one = jnp.ones(())
    call = ft.partial(jax.pure_callback, _raise_singular, one, is_solved)
    return jax.lax.cond(is_failed, call, lambda: one)


def _raise_singular(is_solved):
    raise RuntimeError(
        f"relax found no derivative{of_samples(~is_solved)}: the fixed point does not change "
        "smoothly with the parameters. Leave such samples out, change the parameters a little, or "
        "pass throw=False to get the best approximation."
    )
