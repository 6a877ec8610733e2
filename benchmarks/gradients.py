"""Implicit gradients against backpropagation: `python -m benchmarks.gradients`.

The gradient, with respect to all parameters, of a function of the final state of a network: by the
implicit function theorem in `relax`, and by backpropagation through the steps of `solve`. Both take
the same number of equal steps of the same solver along the activation flow, so that only their
derivatives differ.

Times are those of a value with its gradient, as ratios implicit / backpropagation of interleaved
runs, below 1 where the implicit one is faster. The last line is for `relax` with its default steps.
Memory is that of XLA's temporaries. The two gradients differ by the distance of the final state
from the fixed point, and after 1000 steps by rounding and the tolerance of GMRES.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import interleaved, machine, Ratio, ratio


DT = 1 / 16  # exact in binary, so that rounding adds no step
CONSTANT = diffrax.ConstantStepSize()
SOLVERS = {"Tsit5": diffrax.Tsit5(), "ETD2RK": hl.ETD2RK()}


class Row(NamedTuple):
    """The measurements of one solver and number of steps."""

    time: float
    ratio: Ratio
    memory: int
    backpropagated: int
    direct: int | None
    difference: float


def network(visible: int, hidden: int) -> tuple[hl.HAM, dict[str, Array]]:
    """Tanh units with τ = 1 that recall patterns through softmax units with τ = 0.1."""
    W = 6 / visible**0.5 * jr.normal(jr.key(0), (visible, hidden), jnp.float32)
    layers = {"a": hl.TanhLayer(visible), "b": hl.SoftmaxLayer(hidden, beta=5.0, tau=0.1)}
    synapses = {"W": hl.DenseSynapse([visible, hidden], W=W)}
    x0 = {"a": W[:, 0] + jr.normal(jr.key(1), (visible,)), "b": jnp.zeros(hidden)}
    return hl.HAM(layers, synapses, [(("a", "b"), "W")]), x0


def compiled(end: Callable[..., dict[str, Array]], *arguments: Any) -> tuple[Any, int]:
    """A run of the gradient of a function of the final state, and its bytes of temporaries."""

    def value(model, x0):
        return jnp.mean(end(model, x0)["a"] ** 2)

    gradient: Any = eqx.filter_jit(eqx.filter_value_and_grad(value))
    program = gradient.lower(*arguments).compile()
    size = program.compiled.memory_analysis().temp_size_in_bytes
    return (lambda: program(*arguments)), size


def implicit(model: hl.HAM, x0: Any, **options: Any) -> dict[str, Array]:
    """The state that `relax` reaches."""
    return hl.relax(model, x0, throw=False, **options).x


def backpropagated(model: hl.HAM, x0: Any, steps: int, **options: Any) -> dict[str, Array]:
    """The state that `solve` reaches."""
    options |= {"stepsize_controller": CONSTANT, "dt0": DT, "max_steps": steps, "throw": False}
    solution = hl.solve(model, x0, steps * DT, flow="activation", **options)
    return jax.tree.map(lambda y: y[-1], solution.ys)


def row(solver: Any, steps: int, arguments: Any, repeats: int) -> Row:
    """The measurements of one solver and number of steps."""
    same = {"solver": solver, "stepsize_controller": CONSTANT, "dt0": DT, "max_steps": steps}
    ours, memory = compiled(lambda m, x: implicit(m, x, tol=1e-30, **same), *arguments)

    def through(adjoint: diffrax.AbstractAdjoint) -> Callable[..., dict[str, Array]]:
        return lambda m, x: backpropagated(m, x, steps, solver=solver, adjoint=adjoint)

    theirs, checkpointed = compiled(through(diffrax.RecursiveCheckpointAdjoint()), *arguments)
    # A program that keeps 1000 steps takes minutes to compile.
    direct = compiled(through(diffrax.DirectAdjoint()), *arguments)[1] if steps <= 100 else None
    taken = interleaved(ours, theirs, repeats=repeats)
    a, b = (run()[1].synapses["W"].W for run in (ours, theirs))
    difference = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    time = statistics.median(taken[0])
    return Row(time, ratio(*taken), memory, checkpointed, direct, difference)


def megabytes(size: int | None) -> str:
    """`size` in MB."""
    return "–" if size is None else f"{size / 1e6:.2f}"


def main(
    visible: int = 256, hidden: int = 512, steps: Sequence[int] = (10, 100, 1000), repeats: int = 9
) -> dict[str, Row]:
    """Prints the tables."""
    arguments = network(visible, hidden)
    print(f"{visible} tanh and {hidden} softmax units, one state, float32, {machine()}\n")
    print(
        "| solver, steps | implicit, ms | implicit / backpropagation | bar | implicit, MB "
        "| checkpointed, MB | every step kept, MB | gradients differ by |"
    )
    print("|" + "---|" * 8)
    table = {}
    for name, solver in SOLVERS.items():
        for count in steps:
            r = table[f"{name}, {count}"] = row(solver, count, arguments, repeats)
            print(
                f"| {name}, {count} | {1e3 * r.time:.1f} | {r.ratio} | ≤ 0.50 "
                f"| {megabytes(r.memory)} | {megabytes(r.backpropagated)} | {megabytes(r.direct)} "
                f"| {r.difference:.1e} |",
                flush=True,
            )
    for name in SOLVERS:
        sizes = [table[f"{name}, {count}"].memory for count in steps]
        growth = max(sizes) / min(sizes)
        print(f"\n{name}: memory of the implicit gradient × {growth:.2f} over these, bar 1.00")
    run, _ = compiled(implicit, *arguments)
    forward: Any = eqx.filter_jit(implicit)
    with_gradient, without = interleaved(run, lambda: forward(*arguments), repeats=repeats)
    count = hl.relax(*arguments, throw=False).num_steps
    print(
        f"\nrelax by itself, {count} steps: {1e3 * statistics.median(with_gradient):.1f} ms with "
        f"the gradient, {ratio(with_gradient, without)} times as long as without"
    )
    return table


if __name__ == "__main__":
    main()
