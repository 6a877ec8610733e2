"""A batch with one slow sample: `python -m benchmarks.slow_sample`.

Exponential units follow the state flow dx/dt = −exp(x) (x − I) to t = 20. One sample's input is so
large that it needs 50 times the steps of the others. In a batch every sample has its own steps, but
the batch takes as many as the slowest, each with the work of all. The rows are times, as ratios to
two calls of `solve`, one for the others and one for the slow sample: what no program can know.

| row | what |
|---|---|
| one batch | `solve` as it is |
| one by one | `jax.lax.map` over the samples, in one program |
| chunks | the same over chunks of samples, each of which takes its steps together |
| in rounds | `in_rounds` below: all for 64 steps, those not there yet for 256, and so on |

The recipe on a CPU is chunks of 8, where x0 and inputs have a batch axis:

    solve = lambda own: hl.solve(layer, own[0], t1, inputs=own[1]).ys
    ys = jax.jit(lambda *own: jax.lax.map(solve, own, batch_size=8))(x0, inputs)

where few samples leave most of a machine idle, it is `in_rounds`, with one and a half times the
steps of a usual sample at first.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import machine, ratio, times


def in_rounds(model: Any, x0: Array, t1: Any, inputs: Array, steps: int = 64) -> Array:
    """The states at t1 of samples of very different costs.

    Each round takes the samples that aren't there yet, from the start and with four times the steps
    of the last. Their number is rounded up to a power of two, so that few programs are compiled.
    """
    done = np.empty(x0.shape, x0.dtype)
    late = np.arange(len(x0))
    while late.size:
        padded = np.resize(late, 1 << (late.size - 1).bit_length())
        own = {"inputs": inputs[padded], "max_steps": steps, "throw": False}
        solution = hl.solve(model, x0[padded], t1, **own)
        there = np.asarray(solution.result == diffrax.RESULTS.successful)[: late.size]
        assert solution.ys is not None
        done[late[there]] = np.asarray(solution.ys[: late.size, -1])[there]
        late, steps = late[~there], 4 * steps
    return jnp.asarray(done)


def main(samples: int = 1024, units: int = 64, slow: float = 5.45) -> None:
    """Prints the table. `slow` is the input of the slow sample."""
    layer = hl.ExpLayer(units)
    x0 = jr.normal(jr.key(0), (samples, units), jnp.float32)
    inputs = jnp.zeros((samples, units), jnp.float32).at[0].set(slow)
    t1 = jnp.array(20.0, jnp.float32)
    solve = lambda x0, inputs: hl.solve(layer, x0, t1, inputs=inputs).ys

    def mapped(chunk):
        one = lambda layer, own: hl.solve(layer, own[0], t1, inputs=own[1]).ys
        run = lambda layer, own: jax.lax.map(lambda o: one(layer, o), own, batch_size=chunk)
        compiled = eqx.filter_jit(run)
        return lambda: compiled(layer, (x0, inputs))

    groups = [(x0[:1], inputs[:1]), (x0[1:], inputs[1:])]
    steps = hl.solve(layer, x0, t1, inputs=inputs).stats["num_steps"]
    print(f"{samples} samples of {units} exponential units in float32, {machine()}; ", end="")
    print(f"the slow one takes {steps[0]} steps, the others {jnp.median(steps[1:]):.0f}\n")
    rows = {
        "one batch": lambda: solve(x0, inputs),
        "one by one": mapped(None),
        "chunks of 8": mapped(8),
        "chunks of 32": mapped(32),
        "in rounds": lambda: in_rounds(layer, x0, t1, inputs),
    }
    apart, *taken = times(lambda: [solve(*group) for group in groups], *rows.values())
    print("| | time / groups apart | bar |\n|---|---|---|")
    for name, own in zip(rows, taken, strict=True):
        bar = "1.5" if name in ("chunks of 8", "in rounds") else ""
        print(f"| {name} | {ratio(own, apart)} | {bar} |")


if __name__ == "__main__":
    main()
