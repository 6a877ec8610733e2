"""A batch with one slow sample: `python -m benchmarks.slow_sample`.

Exponential units follow the state flow dx/dt = −exp(x) (x − I) to t = 20. One sample has an input
so large that it needs 50 times the steps of the others. Every sample of a batch has its own step
sizes, but the batch takes as many steps as the slowest sample, each with the work of all. The rows
are ratios of times to two calls of `solve`, one for the slow sample and one for the others, which
assumes that the slow one is known beforehand.

| row | what |
|---|---|
| one batch | `solve` as it is |
| batch_size= | so many samples at a time; the last eighth of 64 or more goes on alone |
| in rounds | `in_rounds` below: all for 64 steps, the unfinished ones for 256, and so on |

Where samples differ that much, the recipe is `in_rounds`, whose first round has one and a half
times the steps of a usual sample.
"""

from typing import Any

import diffrax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import interleaved, machine, ratio


def in_rounds(model: Any, x0: Array, t1: Any, inputs: Array, steps: int = 64) -> Array:
    """The states at t1 of samples of very different costs.

    Each round solves the unfinished samples from the start, with four times the steps of the round
    before. Their number is padded to a power of two, so that few programs are compiled.
    """
    ends = np.empty(x0.shape, x0.dtype)
    unfinished = np.arange(len(x0))
    while unfinished.size:
        count = unfinished.size
        padded = np.resize(unfinished, 1 << (count - 1).bit_length())
        options = {"inputs": inputs[padded], "max_steps": steps, "throw": False}
        solution = hl.solve(model, x0[padded], t1, **options)
        finished = np.asarray(solution.result == diffrax.RESULTS.successful)[:count]
        assert solution.ys is not None
        ends[unfinished[finished]] = np.asarray(solution.ys[:count, -1])[finished]
        unfinished, steps = unfinished[~finished], 4 * steps
    return jnp.asarray(ends)


def main(samples: int = 1024, units: int = 64, slow: float = 5.45) -> None:
    """Prints the table. `slow` is the input of the slow sample."""
    layer = hl.ExpLayer(units)
    x0 = jr.normal(jr.key(0), (samples, units), jnp.float32)
    inputs = jnp.zeros((samples, units), jnp.float32).at[0].set(slow)
    t1 = jnp.array(20.0, jnp.float32)

    def solve(layer, x0, inputs, batch_size=None):
        return hl.solve(layer, x0, t1, inputs=inputs, batch_size=batch_size).ys

    groups = [(x0[:1], inputs[:1]), (x0[1:], inputs[1:])]
    steps = hl.solve(layer, x0, t1, inputs=inputs).stats["num_steps"]
    print(f"{samples} samples of {units} exponential units in float32, {machine()}; ", end="")
    print(f"the slow one takes {steps[0]} steps, the others {jnp.median(steps[1:]):.0f}\n")
    rows = {
        "one batch": lambda: solve(layer, x0, inputs),
        "batch_size=1": lambda: solve(layer, x0, inputs, 1),
        "batch_size=8": lambda: solve(layer, x0, inputs, 8),
        "batch_size=64": lambda: solve(layer, x0, inputs, 64),
        "batch_size=256": lambda: solve(layer, x0, inputs, 256),
        "in rounds": lambda: in_rounds(layer, x0, t1, inputs),
    }
    apart, *taken = interleaved(lambda: [solve(layer, *group) for group in groups], *rows.values())
    print("| | time / groups apart | bar |\n|---|---|---|")
    for name, seconds in zip(rows, taken, strict=True):
        bar = "1.2" if name in ("batch_size=64", "in rounds") else ""
        print(f"| {name} | {ratio(seconds, apart)} | {bar} |")


if __name__ == "__main__":
    main()
