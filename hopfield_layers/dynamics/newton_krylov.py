"""Matrix-free solution of linear and nonlinear equations, for implicit solvers and derivatives."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .linear_systems import conjugate_gradients


def newton_krylov(rtol: float = 1e-3, restart: int = 20) -> optx.AbstractRootFinder:
    """Newton's method with GMRES, for the implicit solvers of diffrax: O(D) memory, not O(D²).

    diffrax's default root finder forms the D × D Jacobian of D units and factors it at every step,
    O(D³). This one only needs products with the Jacobian, each about as costly as dx/dt. If 80
    products don't solve an equation, adaptive Runge–Kutta solvers such as Kvaerno's, and
    [`hopfield_layers.relax`][], reject the step and take a shorter one.

    **Arguments:**

    - `rtol`: the tolerance of each linear solve, relative to the right-hand side's largest entry.
    - `restart`: the largest number of directions that GMRES keeps, each of D numbers.

    **Returns:** an `optimistix.Newton`, for diffrax's implicit solvers such as `diffrax.Kvaerno5`.
    Its own tolerances are those of the step size controller.

    **Raises:** `ValueError` for a restart below 1.

    Source: Knoll & Keyes, "Jacobian-free Newton–Krylov methods", J. Comput. Phys. 193 (2004).

    Examples:
        >>> import diffrax
        >>> layer = hl.ExpLayer(1000)
        >>> solver = diffrax.Kvaerno3(root_finder=hl.newton_krylov())
        >>> solution = hl.solve(layer, jnp.full(1000, -2.0), 1e3, solver=solver)
        >>> print(bool(abs(layer.energy(solution.ys[-1]) + 1000) < 0.01))
        True
    """
    if restart < 1:
        raise ValueError(f"Expected a restart of 1 at least, got {restart}.")
    return newton(Krylov(rtol, restart, 4))


def newton(linear_solver: lx.AbstractLinearSolver) -> optx.AbstractRootFinder:
    """Newton's method with this solver of its linear equations, and the controller's tolerances."""
    return diffrax.with_stepsize_controller_tols(optx.Newton)(
        linear_solver=linear_solver, cauchy_termination=False
    )


def with_tolerances_of(
    controller: diffrax.AbstractStepSizeController, solver: diffrax.AbstractSolver
) -> diffrax.AbstractSolver:
    """`solver`, with the controller's tolerances for its equations unless it has its own."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    missing = [n for n in ("rtol", "atol", "norm") if getattr(finder, n) is _FROM_CONTROLLER]
    if missing and not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise ValueError(
            "Constant steps have no tolerances for the equations of an implicit solver: pass rtol, "
            "atol and norm to its root finder."
        )
    for name in missing:
        solver = eqx.tree_at(
            lambda s, name=name: getattr(s.root_finder, name), solver, getattr(controller, name)
        )
    return solver


# The marker of diffrax for tolerances that are those of the controller.
_FROM_CONTROLLER = diffrax.with_stepsize_controller_tols(optx.Newton)().rtol


class Krylov(lx.AbstractLinearSolver):
    """GMRES with a tolerance relative to the right-hand side's largest entry.

    The tolerance of `lineax.GMRES` is relative to each entry, which entries of 0 cannot satisfy.
    """

    gmres: lx.GMRES

    def __init__(self, rtol: float, restart: int, cycles: int):
        """GMRES with `cycles` cycles, each of which keeps `restart` directions."""
        # lineax counts the first residual as a cycle, and needs one more to find that it is done.
        self.gmres = lx.GMRES(rtol, rtol, restart=restart, max_steps=cycles + 2)

    def compute(self, state, vector, options):
        """The solution by GMRES for the vector divided by its size, multiplied by this size."""
        if sum(v.size for v in jax.tree.leaves(vector)) == 0:
            return vector, lx.RESULTS.successful, {}
        size = lx.internal.max_norm(vector)
        size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
        unit = jax.tree.map(lambda v: v / size, vector)
        solution, result, _ = self.gmres.compute(state, unit, options)
        return jax.tree.map(lambda v: v * size, solution), result, {}

    # These methods of GMRES do not depend on its fields.
    init = lx.GMRES.init
    transpose = lx.GMRES.transpose
    conj = lx.GMRES.conj
    assume_full_rank = lx.GMRES.assume_full_rank


class ConjugateGradients(lx.AbstractLinearSolver):
    """Conjugate gradients for the equations of an implicit step along the state flow.

    Their operator is −A with A = I + δ T⁻¹ ∇²E, T the time constants and δ the step. A is
    self-adjoint in ⟨a, b⟩ = aᵀ T b, and positive unless the energy is concave along some direction
    and the step is long. If the iteration meets such a direction it stops without a solution,
    because a long step would head for a saddle. With a clamp this holds among the free units, where
    the iteration stays, because the right-hand side is 0 at the others. The tolerance is near the
    rounding error: on a slow manifold the right-hand side is small in the directions that matter.
    """

    time_constants: PyTree[Array]

    def compute(self, state, vector, options):
        """The solution, successful if it is within the tolerance."""
        b, unravel = ravel_pytree(vector)
        like = jax.tree.map(
            lambda tau, v: jnp.broadcast_to(tau, v.shape), self.time_constants, vector
        )
        tau, _ = ravel_pytree(like)

        def operator(v):
            return -ravel_pytree(state.mv(unravel(v)))[0]

        rtol = 100 * float(jnp.finfo(b.dtype).eps)
        # Rounding delays convergence beyond the number of units if the time constants differ much.
        max_steps = min(10 * b.size + 20, 1000)
        value, solved, _ = conjugate_gradients(operator, lambda v: tau * v, -b, rtol, max_steps)
        result = lx.RESULTS.where(solved, lx.RESULTS.successful, lx.RESULTS.breakdown)
        return unravel(value), result, {}

    # As for GMRES, the state is the operator.
    init = lx.GMRES.init
    conj = lx.GMRES.conj
    assume_full_rank = lx.GMRES.assume_full_rank

    def transpose(self, state, options):
        """Not possible: the transpose is self-adjoint in another inner product, with T⁻¹."""
        raise NotImplementedError("Relaxations are differentiated as fixed points.")
