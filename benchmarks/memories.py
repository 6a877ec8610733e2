"""What large memories cost: `python -m benchmarks.memories`, in float32, on JAX's default device.

The first table has a memory of random patterns and a batch of random states: the time of a drive,
of the same products in the same blocks of patterns and nothing else, of an energy, and of the
gradient of ½‖drive‖² with respect to the patterns, over that of two bare products (x ξᵀ) ξ, which
form the scores of all patterns. The second has the memory that XLA takes besides arguments and
results, with what 2 % of the patterns and 20 states take. The third has the exponent k in
time ∝ patterns^k from 10³ to 10⁶. The fourth has the drive with patterns in narrow dtypes over that
in float32. The fifth has the peak memory of a new process that makes a memory of a NumPy array and
relaxes 64 queries, over that of the array and one copy.
"""

import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import hopfield_layers as hl
from hopfield_layers._numerics.streaming import block_size
from tests.compiling import compiled, temporary_bytes

from .side_by_side import interleaved, machine, ratio


# Patterns, units and states, with the bar of a softmax memory's drive over two products.
SIZES = {
    (4000, 784, 1000): 1.05,
    (20_000, 784, 256): 0.95,
    (100_000, 784, 64): 0.75,
    (100_000, 64, 256): 0.6,
    (1_000_000, 64, 256): 0.6,
    (1_000_000, 64, 1): None,
}
LAGRANGIANS = {"softmax": hl.LSoftmax(), "ReLU": hl.LRelu(), "sparsemax": hl.LSparsemax()}
NARROW = (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int8)


def network(patterns: Any, lagrangian: hl.AbstractLagrangian) -> hl.HAM:
    """Identity units and a memory of these patterns."""
    memory = hl.HiddenSynapse.from_patterns(patterns, lagrangian)
    layer = hl.IdentityLayer(patterns.shape[1:])
    return hl.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])


@jax.jit
def bare(patterns: jax.Array, x: jax.Array) -> jax.Array:
    """The products with all patterns and back."""
    return (x @ patterns.T) @ patterns


@jax.jit
def in_blocks(patterns: jax.Array, x: jax.Array) -> jax.Array:
    """The same products, a block of patterns at a time."""
    size = block_size(len(patterns))

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(patterns, i * size, size)
        return total + (x @ block.T) @ block

    return jax.lax.fori_loop(0, len(patterns) // size, body, jnp.zeros_like(x))


@jax.jit
def drive(ham: hl.HAM, x: jax.Array) -> jax.Array:
    """∂E/∂g."""
    return ham.dEdg({"x": x})["x"]


@jax.jit
def energy(ham: hl.HAM, x: jax.Array) -> jax.Array:
    """E."""
    return ham.energy({"x": x})


@jax.jit
def gradient(ham: hl.HAM, x: jax.Array) -> Any:
    """The gradient of ½‖∂E/∂g‖² with respect to the patterns and the other parameters."""
    return eqx.filter_grad(lambda ham: jnp.sum(drive(ham, x) ** 2) / 2)(ham)


def relaxed(ham: hl.HAM, x: jax.Array, inputs: jax.Array) -> jax.Array:
    """The state at rest."""
    return hl.relax(ham, {"x": x}, inputs={"x": inputs}, throw=False).x["x"]


def loss(ham: hl.HAM, x: jax.Array, inputs: jax.Array) -> jax.Array:
    """½‖x‖² at rest."""
    return jnp.sum(relaxed(ham, x, inputs) ** 2) / 2


def temporaries(fn: Callable[..., Any], *arguments: Any) -> int:
    """The bytes that a function takes besides its arguments and result."""
    return temporary_bytes(compiled(fn, *arguments))


def random(count: int, units: int, states: int) -> tuple[jax.Array, jax.Array]:
    """Patterns of standard normal entries, and states whose scores are of order 1."""
    x = jr.normal(jr.key(1), (states, units), jnp.float32) / units**0.5
    return jr.normal(jr.key(0), (count, units), jnp.float32), x


def speed() -> None:
    """Prints the first table."""
    print(
        "\n| patterns × units, states | memory | drive | bar | its products in blocks | energy",
        end="",
    )
    print(" | gradient |\n" + "|---" * 7 + "|")
    for (count, units, states), bar in SIZES.items():
        patterns, x = random(count, units, states)
        for name, lagrangian in LAGRANGIANS.items():
            ham = network(patterns, lagrangian)
            runs = [partial(in_blocks, patterns, x)]
            runs += [partial(fn, ham, x) for fn in (drive, energy, gradient)]
            repeats = 3 if count * units * states > 10**10 else 7
            products, *taken = interleaved(partial(bare, patterns, x), *runs, repeats=repeats)
            blocks, *ratios = [str(ratio(seconds, products)) for seconds in taken]
            bars = "" if bar is None or name != "softmax" else f"≤ {bar}"
            print(
                f"| {count} × {units}, {states} | {name} | {ratios[0]} | {bars} | {blocks} "
                f"| {ratios[1]} | {ratios[2]} |",
                flush=True,
            )


def memory() -> None:
    """Prints the second table."""
    print("\n| patterns × units, states | drive: softmax | ReLU | sparsemax | `relax`", end="")
    print(" | its gradient: inputs | limit | patterns | limit |\n" + "|---" * 9 + "|")
    for count, units, states in SIZES:
        patterns, x = random(count, units, states)
        hams = [network(patterns, lagrangian) for lagrangian in LAGRANGIANS.values()]
        room = (0.02 * count * units + 20 * states * units) * 4
        softmax = hams[0]
        sizes = [temporaries(drive, ham, x) for ham in hams]
        sizes.append(temporaries(relaxed, softmax, x, x))
        sizes.append(temporaries(jax.grad(loss, 2), softmax, x, x))
        sizes += [room, temporaries(jax.grad(loss), softmax, x, x), room + patterns.nbytes]
        row = " | ".join(f"{size / 1e6:.1f} MB" for size in sizes)
        print(f"| {count} × {units}, {states} | {row} |", flush=True)


def growth() -> None:
    """Prints the third table."""
    counts = (1000, 10_000, 100_000, 1_000_000)
    print("\n| memory | " + " | ".join(f"{count}" for count in counts) + " | k | bar |")
    print("|---" * (len(counts) + 3) + "|")
    for name, lagrangian in LAGRANGIANS.items():
        taken = []
        for count in counts:
            patterns, x = random(count, 64, 64)
            ham = network(patterns, lagrangian)
            (seconds,) = interleaved(partial(drive, ham, x), repeats=5)
            taken.append(statistics.median(seconds))
        k = np.polyfit(np.log(counts), np.log(taken), 1)[0]
        times = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in taken)
        print(f"| {name} | {times} | {k:.2f} | ≤ 1.05 |", flush=True)


def narrow(count: int = 300_000, units: int = 64, states: int = 64) -> None:
    """Prints the fourth table."""
    patterns, x = random(count, units, states)
    wide = network(jnp.round(patterns), hl.LSoftmax())
    print("\n| dtype | drive / that in float32 | temporaries / patterns |\n|---|---|---|")
    for dtype in NARROW:
        ham = network(jnp.round(patterns).astype(dtype), hl.LSoftmax())
        one, other = interleaved(partial(drive, ham, x), partial(drive, wide, x), repeats=5)
        share = temporaries(drive, ham, x) / (count * units * jnp.dtype(dtype).itemsize)
        print(f"| {jnp.dtype(dtype).name} | {ratio(one, other)} | {share:.3f} |", flush=True)


def peak_bytes() -> int:
    """The peak memory of this process so far, on Linux; `resource` includes the parent's."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return int(line) * 1024


def peak(count: int, units: int, dtype: str) -> None:
    """Prints the peak memory of this process after it made a memory and relaxed 64 queries."""
    begin = peak_bytes()
    rng = np.random.default_rng(0)
    patterns = np.empty((count, units), jnp.dtype(dtype))
    for rows in np.array_split(patterns, 100):
        rows[:] = rng.integers(-1, 2, rows.shape)
    ham = network(patterns, hl.LSoftmax())
    hl.relax(ham, {"x": patterns[:64].astype(np.float32)})
    grown = peak_bytes() - begin
    share = grown / (2 * patterns.nbytes)
    print(f"| {count} × {units} | {dtype} | {grown / 1e9:.2f} GB | {share:.2f} | ≤ 1.3 |")


def main() -> None:
    """Prints the tables."""
    print(machine())
    speed()
    memory()
    growth()
    narrow()
    print(
        "\n| patterns | dtype | peak | over NumPy's array and JAX's copy | bar |\n"
        + "|---" * 5
        + "|"
    )
    for dtype in ("float32", "bfloat16", "int8"):
        command = [sys.executable, "-m", "benchmarks.memories", "1000000", "784", dtype]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        peak(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
