"""How time, memory and compilation grow with size: `python -m benchmarks.growth`.

Four sizes grow, in float32: states in a batch, units, stored patterns, and layers of a network. For
each value the script measures one evaluation of the activation flow's dx/dt, and one step of
`relax`: the time of the first eight steps (fewer if all samples converge before) over their number.
Times are medians. The exponents k of time ∝ size^k are fitted to the three largest sizes, where the
time to start a program is negligible.

Memory is that of XLA's temporaries for dx/dt, as a multiple of the weights or patterns; it leaves
out what a fused kernel, as for 4096 states, allocates internally. Compile times are those of
`relax`, tracing included, as ratios of the largest size to the smallest, measured in turns.
The script draws growth.png beside itself.
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import interleaved, machine, Ratio, ratio


State = dict[str, Array]
Case = tuple[hl.HAM, State]
PICTURE = pathlib.Path(__file__).with_suffix(".png")


def memory(patterns: int, units: int, states: int) -> Case:
    """A modern Hopfield memory of random patterns, and some of them with noise.

    β is so small that the softmax spreads over many patterns, so that `relax` takes several steps.
    """
    W = jr.normal(jr.key(0), (units, patterns), jnp.float32)
    synapse = hl.HiddenSynapse(
        [units], patterns, Ws=[W], hidden_lagrangian=hl.LSoftmax(beta=4 / units)
    )
    noise = jr.normal(jr.key(1), (states, units), jnp.float32)
    x0 = W[:, jnp.arange(states) % patterns].T + 0.5 * noise
    return hl.HAM({"x": hl.IdentityLayer(units)}, {"W": synapse}, [(("x",), "W")]), {"x": x0}


def chain(depth: int, units: int, states: int) -> Case:
    """Tanh layers, each joined to the next."""
    names = [f"layer {i:02}" for i in range(depth)]
    keys = jr.split(jr.key(0), depth)
    pairs = list(zip(names, names[1:], keys, strict=False))
    std = 0.25 / units**0.5
    shapes = [units, units]
    synapses = {a: hl.DenseSynapse(shapes, key=key, stdinit=std) for a, _, key in pairs}
    ham = hl.HAM(
        {name: hl.TanhLayer(units) for name in names},
        synapses,
        [((a, b), a) for a, b, _ in pairs],
    )
    return ham, ham.init_states(states, jr.key(1))


def field(model: hl.HAM, x: State) -> State:
    """dx/dt."""
    return hl.EnergyFlow(model, "activation")(0.0, x)


def steps(model: hl.HAM, x: State) -> hl.Relaxation:
    """`relax` with eight steps at most."""
    return hl.relax(model, x, tol=1e-30, max_steps=8, throw=False)


class Axis(NamedTuple):
    """Sizes that grow, and functions from a size to the case for dx/dt and for `relax`."""

    name: str
    sizes: Sequence[int]
    case: Callable[[int], Case]
    relaxing: Callable[[int], Case]


def axes(batches: Any, units: Any, patterns: Any, depths: Any) -> list[Axis]:
    """The four axes with these sizes."""

    def batched(n: int) -> Case:
        return memory(1000, 64, n)

    def wide(n: int) -> Case:
        return memory(1000, n, 16)

    def deep(n: int) -> Case:
        return chain(n, 256, 16)

    return [
        Axis("states", batches, batched, batched),
        Axis("units", units, wide, wide),
        Axis("patterns", patterns, lambda n: memory(n, 64, 256), lambda n: memory(n, 64, 1)),
        Axis("layers", depths, deep, deep),
    ]


class Measurement(NamedTuple):
    """For one size the seconds of both, and the temporaries of dx/dt over the weights."""

    size: int
    field: float
    steps: float
    temporaries: float


def measured(axis: Axis, size: int, repeats: int) -> Measurement:
    """The measurement of one size."""
    case = axis.case(size)
    evaluation: Any = eqx.filter_jit(field)
    program = evaluation.lower(*case).compile()
    temporaries = program.compiled.memory_analysis().temp_size_in_bytes
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(case[0].synapses))
    relaxing: Any = eqx.filter_jit(steps)
    other = axis.relaxing(size)
    count = int(jnp.max(relaxing(*other).num_steps))
    fields, whole = interleaved(lambda: program(*case), lambda: relaxing(*other), repeats=repeats)
    per_step = statistics.median(whole) / count
    return Measurement(size, statistics.median(fields), per_step, temporaries / weights)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """k of value ∝ size^k, fitted to the three largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0])


def compile_ratio(axis: Axis, repeats: int) -> Ratio:
    """The compile time of `relax` for the largest size over that for the smallest."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for size, seconds in zip((min(axis.sizes), max(axis.sizes)), taken, strict=True):
            # Compiling takes the shapes alone: nothing is allocated.
            arguments: Any = eqx.filter_eval_shape(axis.relaxing, size)
            jax.clear_caches()
            begin = time.perf_counter()
            jax.jit(steps).lower(*arguments).compile()
            seconds.append(time.perf_counter() - begin)
    return ratio(taken[1], taken[0])


def draw(table: dict[str, list[Measurement]], path: pathlib.Path) -> None:
    """Draws four log-log panels with the fits."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for ax, (name, points) in zip(panels, table.items(), strict=True):
        sizes = [p.size for p in points]
        both = {"dx/dt": [p.field for p in points], "a step of relax": [p.steps for p in points]}
        for label, values in both.items():
            k = exponent(sizes, values)
            (line,) = ax.loglog(sizes, values, "o", label=f"{label}: {name}$^{{{k:.2f}}}$")
            last = np.array(sizes[-3:], float)
            level = np.mean(np.log(values[-3:]) - k * np.log(last))
            ax.loglog(last, np.exp(level) * last**k, color=line.get_color(), lw=1)
        ax.set_xscale("log", base=2 if max(sizes) < 100 else 10)
        ax.tick_params(which="minor", labelbottom=False, labelleft=False)
        ax.set_xlabel(name)
        ax.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel("seconds")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(
    batches: Sequence[int] = (1, 4, 16, 64, 256, 1024, 4096),
    units: Sequence[int] = (16, 64, 256, 1024, 4096, 16384),
    patterns: Sequence[int] = (1000, 10_000, 100_000, 1_000_000),
    depths: Sequence[int] = (2, 4, 8, 16),
    repeats: int = 7,
    picture: pathlib.Path | None = PICTURE,
) -> dict[str, list[Measurement]]:
    """Prints the tables and draws the picture."""
    print(
        "States and units with 1000 patterns, states and patterns with 64 units, 16 states of "
        "units and layers, 256 of patterns (1 for relax), layers of 256 units; float32, "
        f"{machine()}\n"
    )
    print("| | dx/dt, ms | a step of relax, ms | temporaries / weights | bar |\n|" + "---|" * 5)
    table: dict[str, list[Measurement]] = {}
    all_axes = axes(batches, units, patterns, depths)
    for axis in all_axes:
        points = table[axis.name] = []
        bar = "a small multiple" if axis.name == "patterns" else "–"
        for size in axis.sizes:
            p = measured(axis, size, repeats)
            points.append(p)
            print(
                f"| {size} {axis.name} | {1e3 * p.field:.2f} | {1e3 * p.steps:.2f} "
                f"| {p.temporaries:.2f} | {bar} |",
                flush=True,
            )
    print("\n| time ∝ size^k | k of dx/dt | k of a step of relax |\n|---|---|---|")
    for name, points in table.items():
        sizes = [p.size for p in points]
        k = (exponent(sizes, values) for values in zip(*(p[1:3] for p in points), strict=True))
        print(f"| {name} | " + " | ".join(f"{each:.2f}" for each in k) + " |")
    print("\n| compile time of relax | largest / smallest size | bar |\n|---|---|---|")
    for axis in all_axes[:3]:
        sizes = f"{max(axis.sizes)} / {min(axis.sizes)} {axis.name}"
        print(f"| {sizes} | {compile_ratio(axis, repeats)} | 1 |", flush=True)
    if picture is not None:
        draw(table, picture)
    return table


if __name__ == "__main__":
    main()
