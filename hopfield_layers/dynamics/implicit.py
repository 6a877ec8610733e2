"""Linear and nonlinear equations without matrices, for implicit solvers and derivatives."""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
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

    **Returns:**

    An `optimistix.Newton`, for `diffrax.Kvaerno5` and its kin. Its own tolerances are those of the
    step size controller.

    **Raises:** `ValueError` for a restart below 1.

    Source: Knoll & Keyes, "Jacobian-free Newton–Krylov methods", J. Comput. Phys. 193 (2004).

    ```python
    >>> import diffrax
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.ExpLayer(1000)
    >>> solver = diffrax.Kvaerno3(root_finder=hl.newton_krylov())
    >>> solution = hl.solve(layer, jnp.full(1000, -2.0), 1e3, solver=solver)
    >>> print(bool(abs(layer.energy(solution.ys[-1]) + 1000) < 0.01))
    True

    ```
    """
    if restart < 1:
        raise ValueError(f"Expected a restart of 1 at least, got {restart}.")
    return diffrax.with_stepsize_controller_tols(optx.Newton)(
        linear_solver=Krylov(rtol, restart, cycles=4), cauchy_termination=False
    )


def with_tolerances_of(controller: Any, solver: Any) -> Any:
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
    get = lambda owner: [getattr(owner, name) for name in missing]
    return eqx.tree_at(lambda s: get(s.root_finder), solver, get(controller)) if missing else solver


# What diffrax puts in the place of tolerances that are to be the controller's.
_FROM_CONTROLLER = diffrax.with_stepsize_controller_tols(optx.Newton)().rtol


class Krylov(lx.AbstractLinearSolver):
    """GMRES, with a tolerance relative to the right-hand side's largest entry.

    lineax's own is relative to each entry by itself, which those that are 0 can't meet. As a cycle
    makes all its products whether it needs them or not, `first` may be shorter ones, (restart,
    cycles), and the long ones then come only where a sample needs them.
    """

    gmres: lx.GMRES
    first: lx.GMRES | None

    def __init__(self, rtol: Any, restart: int, cycles: int, first: tuple[int, int] | None = None):
        # lineax counts the first residual as a cycle, and needs another to see that it's done.
        of = lambda restart, cycles: lx.GMRES(
            rtol=rtol, atol=rtol, restart=restart, max_steps=cycles + 2
        )
        self.gmres = of(restart, cycles)
        self.first = None if first is None else of(*first)

    def init(self, operator, options):
        return self.gmres.init(operator, options)

    def compute(self, state, vector, options):
        """Of GMRES, for the vector divided by its size."""
        if sum(v.size for v in jax.tree.leaves(vector)) == 0:
            return vector, lx.RESULTS.successful, {}
        size = lx.internal.max_norm(vector)
        size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
        unit = jax.tree.map(lambda v: v / size, vector)
        solve = lambda gmres: gmres.compute(state, unit, options)[:2]
        if self.first is None:
            solution, result = solve(self.gmres)
        else:
            found = solve(self.first)
            solved = found[1] == lx.RESULTS.successful
            missing = eqxi.unvmap_any(~solved)  # in any sample
            solution, result = jax.lax.cond(missing, lambda: solve(self.gmres), lambda: found)
            solution = jax.tree.map(lambda a, b: jnp.where(solved, a, b), found[0], solution)
            result = lx.RESULTS.where(solved, found[1], result)
        return jax.tree.map(lambda v: v * size, solution), result, {}

    def transpose(self, state, options):
        return self.gmres.transpose(state, options)

    def conj(self, state, options):
        return self.gmres.conj(state, options)

    def assume_full_rank(self):
        return self.gmres.assume_full_rank()
