"""Linear and nonlinear equations without matrices, for implicit solvers and derivatives."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx


def newton_krylov(rtol: float = 1e-3, restart: int = 20) -> optx.AbstractRootFinder:
    """Newton's method with GMRES, for the implicit solvers of diffrax: O(D) memory, not O(D²).

    diffrax's own choice forms the D × D Jacobian of D units and factors it at every step, O(D³).
    This one needs products with the Jacobian only, about as costly as dx/dt itself. A step whose
    equations it can't solve, with 80 products each, is rejected and made shorter by adaptive Runge–
    Kutta solvers such as Kvaerno's, and by [`hopfield_layers.relax`][].

    **Arguments:**

    - `rtol`: the tolerance of each linear solve, relative to the right-hand side's largest entry.
    - `restart`: the most directions that GMRES keeps, each of D numbers.

    **Returns:** an `optimistix.Newton`, for `diffrax.Kvaerno5` and its kin, whose own tolerances
    are those of the step size controller.

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
    return diffrax.with_stepsize_controller_tols(optx.Newton)(
        linear_solver=Krylov(rtol, restart, 4), cauchy_termination=False
    )


def with_tolerances_of(
    controller: diffrax.AbstractStepSizeController, solver: diffrax.AbstractSolver
) -> diffrax.AbstractSolver:
    """`solver`, with the controller's tolerances for its equations where it has none of its own."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    missing = [n for n in ("rtol", "atol", "norm") if getattr(finder, n) is _FROM_CONTROLLER]
    if missing and not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise ValueError(
            "Constant steps have no tolerances for the equations of an implicit solver: give its "
            "root finder rtol, atol and norm."
        )
    for name in missing:
        solver = eqx.tree_at(
            lambda s, name=name: getattr(s.root_finder, name), solver, getattr(controller, name)
        )
    return solver


# What diffrax puts in the place of tolerances that are to be the controller's.
_FROM_CONTROLLER = diffrax.with_stepsize_controller_tols(optx.Newton)().rtol


class Krylov(lx.AbstractLinearSolver):
    """GMRES with a tolerance relative to the right-hand side's largest entry.

    That of lineax is relative to each entry, which entries of 0 cannot meet.
    """

    gmres: lx.GMRES

    def __init__(self, rtol: float, restart: int, cycles: int):
        """GMRES keeps `restart` directions in each of its cycles."""
        # lineax counts the first residual as a cycle, and needs another to see that it is done.
        self.gmres = lx.GMRES(rtol, rtol, restart=restart, max_steps=cycles + 2)

    def compute(self, state, vector, options):
        """That of GMRES, for the vector divided by its size."""
        if sum(v.size for v in jax.tree.leaves(vector)) == 0:
            return vector, lx.RESULTS.successful, {}
        size = lx.internal.max_norm(vector)
        size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
        unit = jax.tree.map(lambda v: v / size, vector)
        solution, result, _ = self.gmres.compute(state, unit, options)
        return jax.tree.map(lambda v: v * size, solution), result, {}

    # These of GMRES do not depend on its fields.
    init = lx.GMRES.init
    transpose = lx.GMRES.transpose
    conj = lx.GMRES.conj
    assume_full_rank = lx.GMRES.assume_full_rank
