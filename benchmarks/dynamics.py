"""What solvers cost: `python -m benchmarks.dynamics`. Prints the table of README, and the rest.

Evaluations are those of ∂E/∂g, by solvers' stages and by products with its Jacobian alike, counted
while it runs; times are medians of interleaved runs in one process, as ratios.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import hopfield_layers as hl
from tests.instances import Memory, network, two_layers

from .side_by_side import ratio, times


POINTS = set()


def _tick(x):
    POINTS.add(x.tobytes())  # points, as what is evaluated twice in a step is compiled into one
    return np.zeros((), x.dtype)


@jax.custom_jvp
def counted(x):
    """`x`, counted when it runs; its derivative likewise."""
    return x + jax.pure_callback(_tick, jax.ShapeDtypeStruct((), x.dtype), x)


@counted.defjvp
def _(primals, tangents):
    return counted(*primals), counted(*tangents)


class Counted(hl.AbstractEnergyModel):
    """A model whose ∂E/∂g is counted."""

    model: hl.AbstractEnergyModel

    @property
    def tau(self):
        """The model's."""
        return self.model.tau

    def energy(self, x):
        """The model's."""
        return self.model.energy(x)

    def activations(self, x):
        """The model's."""
        return self.model.activations(x)

    def dEdg(self, x):
        """The model's, counted."""
        leaves, structure = jax.tree.flatten(x)
        return self.model.dEdg(jax.tree.unflatten(structure, [counted(leaves[0]), *leaves[1:]]))


def retrieval():
    """A memory of 1000 random patterns, and a corrupted one."""
    patterns = jr.normal(jr.key(0), (1000, 784)) / 28
    x0 = patterns[0] + 0.5 * jr.normal(jr.key(1), (784,)) / 28
    return Memory(patterns, jnp.array(20.0), jnp.array(1.0)), x0


def table():
    """The cases of README, with the evaluations of each solver."""
    krylov = hl.newton_krylov()
    solvers = {
        "ETD2RK": hl.ETD2RK(),
        "ETD4RK": hl.ETD4RK(),
        "Tsit5": diffrax.Tsit5(),
        "ImplicitEuler": diffrax.ImplicitEuler(root_finder=krylov),
        "Kvaerno5": diffrax.Kvaerno5(root_finder=krylov),
    }
    plateau = jnp.array([-6.4, 0.7, -2.5, -8.3, 1.4])
    small = network(hl.TanhLayer(12, beta=1.3), hl.SoftmaxLayer(9, beta=2.0), 0.45)
    spread = eqx.tree_at(lambda n: n.layers["b"].tau, small, jnp.array(1e-3))
    start = {"a": 2 * jr.normal(jr.key(1), (12,)), "b": jnp.zeros(9)}
    wide = {"rtol": 1e-5, "atol": 1e-5}
    rest, path = {"tol": 1e-6, "throw": False}, {"throw": False, "max_steps": 20000}
    cases = {
        "rest, activation flow, τ = 1 and 0.1": (
            hl.relax,
            two_layers(jnp.float64),
            "activation",
            rest,
            None,
        ),
        "rest, state flow, from a plateau": (
            hl.relax,
            (hl.ExpLayer(5), plateau),
            "state",
            rest,
            None,
        ),
        "path to t = 5, τ = 1 and 1": (hl.solve, (small, start), "activation", path, wide),
        "path to t = 5, τ = 1 and 0.001": (hl.solve, (spread, start), "activation", path, wide),
        "path to t = 10⁴, state flow, plateau": (
            hl.solve,
            (hl.ExpLayer(5), plateau),
            "state",
            path,
            wide,
        ),
    }
    print("| | " + " | ".join(solvers) + " |\n|" + "---|" * (len(solvers) + 1))
    for name, (run, (model, x0), flow, keywords, tolerances) in cases.items():
        row = []
        for solver in solvers.values():
            if flow == "state" and isinstance(solver, hl.ETD2RK | hl.ETD4RK):
                row.append("–")
                continue
            options = dict(keywords)
            end = () if run is hl.relax else (1e4 if flow == "state" else 5.0,)
            if tolerances:
                options["stepsize_controller"] = diffrax.PIDController(**tolerances)
            POINTS.clear()
            counted_model = Counted(model)  # pyright: ignore[reportCallIssue]
            result = run(counted_model, x0, *end, flow=flow, solver=solver, **options)
            jax.block_until_ready(result)
            jax.effects_barrier()
            done = (
                result.converged if run is hl.relax else result.result == diffrax.RESULTS.successful
            )
            row.append(
                f"{len(POINTS)}" if bool(done) else f"not in {options.get('max_steps', 4096)} steps"
            )
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)


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
    ours, theirs = times(
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
