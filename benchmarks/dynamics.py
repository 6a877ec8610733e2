"""How often solvers evaluate the drive: `python -m benchmarks.dynamics`.

Prints the table of the documentation's page "Relax and solve", then the steps of two layers with
different time constants, the time of a retrieval, and the memory of gradients. Evaluations of ∂E/∂g
are counted while the program runs, those in products with its Jacobian included. Ratios are medians
of interleaved runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import hopfield_layers as hl
from tests.counting import drives, evaluations
from tests.instances import Memory, network, two_layers

from .side_by_side import interleaved, ratio


def retrieval():
    """A memory of 1000 random patterns, and one of them with noise."""
    patterns = jr.normal(jr.key(0), (1000, 784)) / 28
    x0 = patterns[0] + 0.5 * jr.normal(jr.key(1), (784,)) / 28
    return Memory(patterns, jnp.array(20.0), jnp.array(1.0)), x0


class Case(NamedTuple):
    """A row of the table: `run(model, x0, *end, flow=flow, solver=solver, **options)`."""

    run: Callable[..., Any]
    model: hl.AbstractEnergyModel
    x0: Any
    flow: str
    end: tuple[float, ...]
    options: dict[str, Any]


def cases() -> dict[str, Case]:
    """The rows of the table by their titles."""
    plateau = jnp.array([-6.4, 0.7, -2.5, -8.3, 1.4])
    exponential = hl.ExpLayer(5)
    equal = network(hl.TanhLayer(12, beta=1.3), hl.SoftmaxLayer(9, beta=2.0), 0.45)
    stiff = eqx.tree_at(lambda n: n.layers["b"].tau, equal, jnp.array(1e-3))
    x0 = {"a": 2 * jr.normal(jr.key(1), (12,)), "b": jnp.zeros(9)}
    relax = {"tol": 1e-6, "throw": False}
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    solve = {"throw": False, "max_steps": 20000, "stepsize_controller": controller}
    return {
        "rest, activation flow, τ = 1 and 0.1": Case(
            hl.relax, *two_layers(jnp.float64), "activation", (), relax
        ),
        "rest, state flow, from a plateau": Case(
            hl.relax, exponential, plateau, "state", (), relax
        ),
        "path to t = 5, τ = 1 and 1": Case(hl.solve, equal, x0, "activation", (5.0,), solve),
        "path to t = 5, τ = 1 and 0.001": Case(hl.solve, stiff, x0, "activation", (5.0,), solve),
        "path to t = 10⁴, state flow, plateau": Case(
            hl.solve, exponential, plateau, "state", (1e4,), solve
        ),
    }


def cell(case: Case, solver: diffrax.AbstractSolver | hl.BlockUpdates | None) -> str:
    """The evaluations of a case with one solver."""
    activation_only = hl.ETD2RK | hl.ETD4RK | hl.BlockUpdates
    if case.flow == "state" and isinstance(solver, activation_only):
        return "–"
    if isinstance(solver, hl.BlockUpdates) and case.run is not hl.relax:
        return "–"
    if isinstance(solver, diffrax.ImplicitEuler) and (case.run, case.flow) == (hl.relax, "state"):
        solver = None  # implicit Euler with conjugate gradients

    def run(model: hl.AbstractEnergyModel) -> Any:
        return case.run(model, case.x0, *case.end, flow=case.flow, solver=solver, **case.options)

    if isinstance(solver, hl.BlockUpdates):
        # A sweep evaluates the drive of each layer once, at different states.
        return f"{drives(case.model, run(case.model))}"
    result, count = evaluations(run, case.model)
    relaxed = isinstance(result, hl.Relaxation)
    done = result.converged if relaxed else result.result == diffrax.RESULTS.successful
    return f"{count}" if bool(done) else f"not in {case.options.get('max_steps', 4096)} steps"


def table():
    """Prints the cases of that page, with the evaluations of each solver."""
    krylov = hl.newton_krylov()
    solvers = {
        "BlockUpdates": hl.BlockUpdates(),
        "ETD2RK": hl.ETD2RK(),
        "ETD4RK": hl.ETD4RK(),
        "Tsit5": diffrax.Tsit5(),
        "ImplicitEuler": diffrax.ImplicitEuler(root_finder=krylov),
        "Kvaerno5": diffrax.Kvaerno5(root_finder=krylov),
    }
    print("| | " + " | ".join(solvers) + " |\n|" + "---|" * (len(solvers) + 1))
    for name, case in cases().items():
        cells = [cell(case, solver) for solver in solvers.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main():
    """Prints the table, the two layers, the retrieval and the memory of gradients."""
    table()

    loose = diffrax.PIDController(rtol=0.1, atol=0.1)
    for dtype, tol in ((jnp.float64, 1e-8), (jnp.float32, 1e-4)):
        model, x0 = two_layers(dtype)
        for solver, controller in ((None, None), (diffrax.Tsit5(), loose)):
            keywords = {"solver": solver, "stepsize_controller": controller, "throw": False}
            rest = hl.relax(model, x0, tol=tol, **keywords)
            name = "default" if solver is None else "Tsit5"
            print(
                f"two layers, {dtype.__name__}, {name}: {rest.num_steps} steps, "
                f"residual {rest.residual:.1e}, converged {rest.converged}"
            )

    memory, x0 = retrieval()
    tight = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    explicit = {"solver": diffrax.Tsit5(), "stepsize_controller": tight, "throw": False}
    ours, theirs = interleaved(
        lambda: hl.relax(memory, x0, tol=1e-6), lambda: hl.relax(memory, x0, tol=1e-6, **explicit)
    )
    print(f"retrieval, Tsit5 / default in time: {ratio(theirs, ours)}")

    for max_steps in (10, 1000):
        loss = lambda m, n=max_steps: hl.relax(m, x0, max_steps=n, throw=False).x.sum()
        gradient: Any = eqx.filter_jit(eqx.filter_grad(loss))
        size = gradient.lower(memory).compile().compiled.memory_analysis().temp_size_in_bytes
        print(f"gradient of relax, {max_steps} steps: {size} bytes of temporaries")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
