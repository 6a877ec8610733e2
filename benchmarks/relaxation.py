"""How `relax` arrives at rest: `python -m benchmarks.relaxation`, half an hour; `--quick` for less.

1. A chain of five tanh layers, the two layers of `benchmarks.dynamics` and a memory: the drives of
   a relaxation, by block updates and by `ETD2RK`, and the time of the first over the second.
2. The binary network, 200 tanh units with β = 20 and Hebb's weights, at loads and flips up to the
   limit of its capacity: the most drives of 40 samples each, in both dtypes.
3. Slow approaches: a critical pitchfork, and a sparsemax memory on the edge between two patterns.
4. An Energy Transformer block that is trained through its rest, and the time of its gradient.
5. Random networks: how many come to rest, as recomputed in float64, and whether the energy rises.

A sweep of block updates evaluates the drive of each block once, one drive in all. The drive that
measures x0 is counted too, and with several blocks that of the last state.
"""

import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

import hopfield_layers as hl
from tests.counting import drives, evaluations
from tests.instances import Memory, two_layers
from tests.networks import binary, chain, draws_of, with_dtype

from .side_by_side import interleaved, ratio


def chains() -> None:
    """The table of the chain, the two layers and the memory."""
    print("| model | tol | drives, block updates | drives, ETD2RK | time, block updates / ETD2RK |")
    print("|---|---|---|---|---|")
    patterns = jr.normal(jr.key(0), (1000, 784)) / 28
    noisy = patterns[0] + 0.5 * jr.normal(jr.key(1), (784,)) / 28
    memory = Memory(patterns, jnp.array(20.0), jnp.array(1.0))
    rows: list[Any] = [("two layers", *two_layers(jnp.float64), 1e-8)]
    rows += [("memory", memory, noisy, 1e-8)]
    for scale in (0.5, 1.0, 2.0, 3.0):
        model = chain(scale)
        x0 = model.init_states(rng=jr.key(1))
        rows += [(f"chain × {scale:g}", model, x0, tol) for tol in (1e-6, 1e-10)]
    for name, model, x0, tol in rows:

        def run(model, solver=None, x0=x0, tol=tol):
            return hl.relax(model, x0, tol=tol, solver=solver, throw=False)

        ours = run(model)
        theirs, count = evaluations(lambda model: run(model, hl.ETD2RK()), model)
        runs = partial(run, model), partial(run, model, hl.ETD2RK())
        times = interleaved(*runs, repeats=25)
        done = [f"{drives(model, ours)}", f"{count}"]
        done = [
            n if r.converged else "not at rest" for n, r in zip(done, (ours, theirs), strict=True)
        ]
        print(f"| {name} | {tol:g} | {done[0]} | {done[1]} | {ratio(*times)} |")


def binary_networks(num_samples: int) -> None:
    """The table of loads and flips."""
    print("\n| load | flips | at rest, of", num_samples, "| most drives float32 | float64 |")
    print("|---|---|---|---|---|")
    for load in (0.05, 0.1, 0.14, 0.2, 0.25):
        for flips in (0.05, 0.3):
            dtypes = jnp.float32, jnp.float64
            problems = [binary(load, flips, dtype, num_samples) for dtype in dtypes]
            rests = [hl.relax(*problem, throw=False) for problem in problems]
            done = min(int(jnp.sum(rest.converged)) for rest in rests)
            most = [drives(p[0], rest) for p, rest in zip(problems, rests, strict=True)]
            print(f"| {load} | {flips} | {done} | {most[0]} | {most[1]} |")


def slow_approaches() -> None:
    """The drives of the pitchfork and of the edge."""
    for dtype in (jnp.float32, jnp.float64):
        synapse = hl.DenseSynapse((1, 1), W=jnp.ones((1, 1)))
        layers = {"x": hl.TanhLayer(1), "y": hl.TanhLayer(1)}
        pitchfork = hl.HAM(layers, {"W": synapse}, [(("x", "y"), "W")])
        x0 = {"x": jnp.ones(1, dtype), "y": jnp.full(1, 0.5, dtype)}
        rest = hl.relax(with_dtype(pitchfork, dtype), x0, throw=False)
        print(f"\npitchfork, {dtype.__name__}: {drives(pitchfork, rest)} drives, {rest.converged}")
        memory = hl.HiddenSynapse.from_patterns(jnp.eye(2), hl.LSparsemax())
        edge = hl.HAM({"x": hl.IdentityLayer(2)}, {"m": memory}, [(("x",), "m")])
        inputs = {"x": jnp.array([0.0, 1e-4], dtype)}
        x0 = {"x": jnp.zeros(2, dtype)}
        rest = hl.relax(with_dtype(edge, dtype), x0, inputs=inputs, throw=False)
        count = drives(edge, rest)
        print(f"edge, {dtype.__name__}: {count} drives, {rest.converged}", rest.x["x"])


def random_networks(num_structures: int, num_draws: int) -> None:
    """How many of them come to rest, in each dtype."""
    unconverged = refuted = rising = 0
    most = []
    for seed in range(num_structures):
        jax.clear_caches()  # the programs of many structures would fill the memory
        draw = draws_of(seed)
        problems = eqx.filter_vmap(draw)(jr.split(jr.key(seed), num_draws))
        for dtype in (jnp.float32, jnp.float64):

            def relaxed(problem, dtype=dtype):
                model, x0, clamp, inputs = with_dtype(problem, dtype)
                rest = hl.relax(model, x0, clamp=clamp, inputs=inputs, throw=False)
                field = hl.EnergyFlow(model, "activation", clamp, inputs)
                before, after = field.energy(jnp.zeros(()), x0), field.energy(jnp.zeros(()), rest.x)
                exact = with_dtype((field, rest.x), jnp.float64)
                force = exact[0].force(jnp.zeros(()), exact[1])
                eps = jnp.finfo(dtype).eps
                misses = jax.tree.map(
                    lambda f, x: jnp.max(jnp.abs(f) / (eps ** (2 / 3) * (1 + jnp.abs(x)))),
                    force,
                    exact[1],
                )
                miss = jnp.max(jnp.array(jax.tree.leaves(misses)))
                size = jnp.abs(before) + sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(x0))
                return rest, miss, (after - before) / (64 * eps * size)

            rest, miss, rise = eqx.filter_jit(eqx.filter_vmap(relaxed))(problems)
            # The residual that was within the tolerance was rounded in the dtype.
            is_refuted, is_rising = rest.converged & ~(miss < 1.1), ~(rise < 1)
            unconverged += int(jnp.sum(~rest.converged))
            refuted += int(jnp.sum(is_refuted))
            rising += int(jnp.sum(is_rising))
            most.append(drives(problems[0], rest))
            if (bad := np.flatnonzero(~rest.converged | is_refuted | is_rising)).size:
                print("  ", seed, dtype.__name__, bad, flush=True)
    print(
        f"\n{num_structures * num_draws} random networks in both dtypes: {unconverged} not at "
        f"rest, {refuted} refuted in float64, {rising} with rising energy; drives at most "
        f"{np.median(most):.0f} in half of the structures, {np.percentile(most, 90):.0f} in 9 of "
        f"10, {max(most)} in all."
    )


def transformer(key: Any) -> hl.HAM:
    """An Energy Transformer block over 8 tokens of 16 numbers, in float32."""
    keys = jr.split(key)
    synapses = {
        "attention": hl.SelfAttentionSynapse((8, 16), num_heads=2, zspace_dim=8, key=keys[0]),
        "memory": hl.HiddenSynapse([(8, 16)], 64, key=keys[1], stdinit=0.1),
    }
    connections = [(("x",), name) for name in synapses]
    return with_dtype(hl.HAM({"x": hl.LayerNormLayer((8, 16))}, synapses, connections), jnp.float32)


def training(num_steps: int) -> None:
    """Trains the block to fill in masked tokens, by Adam, and times one gradient."""
    ham = transformer(jr.key(0))
    basis = jr.normal(jr.key(1), (4, 8, 16), jnp.float32)

    def loss(ham, x, mask):
        rest = hl.relax(ham, {"x": jnp.where(mask, 0, x)}, clamp={"x": ~mask}, throw=False)
        error = jnp.where(mask, ham.layers["x"].activation(rest.x["x"]) - x, 0)
        return jnp.sum(jnp.square(error)) / jnp.sum(mask), jnp.sum(~rest.converged)

    def batch(key):
        parts = jr.normal(key, (64, 4), jnp.float32)
        x = jnp.einsum("bk,ktd->btd", parts, basis)
        mask = jr.bernoulli(key, 0.3, (64, 8, 1))
        return x / jnp.std(x, axis=-1, keepdims=True), jnp.broadcast_to(mask, x.shape)

    @eqx.filter_jit
    def step(ham, moments, count, key):
        (value, missed), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(ham, *batch(key))
        first, second = moments
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g**2, second, gradient)
        rate = 3e-3 * jnp.sqrt(1 - 0.99**count) / (1 - 0.9**count)
        change = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + 1e-8), first, second)
        is_finite = jnp.all(jnp.isfinite(ravel_pytree(gradient)[0]))
        return eqx.apply_updates(ham, change), (first, second), value, missed, is_finite

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(ham, eqx.is_inexact_array))
    moments, losses, unconverged, infinite = (zeros, zeros), [], 0, 0
    for count in range(num_steps):
        key = jr.fold_in(jr.key(2), count)
        ham, moments, value, missed, is_finite = step(ham, moments, jnp.asarray(count + 1.0), key)
        losses.append(float(value))
        unconverged += int(missed)
        infinite += not is_finite
    print(
        f"\nEnergy Transformer, {num_steps} steps of training: loss {losses[0]:.3f} to "
        f"{np.mean(losses[-10:]):.3f}, {unconverged} of {64 * num_steps} samples not at rest, "
        f"{infinite} gradients not finite"
    )
    data = batch(jr.key(3))
    forward, gradient = eqx.filter_jit(loss), eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))
    times = interleaved(partial(gradient, ham, *data), partial(forward, ham, *data))
    print(f"time of relaxation and gradient over that of the relaxation: {ratio(*times)}")


def main() -> None:
    """Prints everything."""
    jax.config.update("jax_enable_x64", True)
    quick = "--quick" in sys.argv
    chains()
    binary_networks(10 if quick else 40)
    slow_approaches()
    training(20 if quick else 300)
    random_networks(2 if quick else 40, 10 if quick else 25)


if __name__ == "__main__":
    main()
