"""What a solution and its gradient cost: `python -m benchmarks.solves`.

1. `solve` over the same solve written out by hand, `jax.vmap` of `diffrax.diffeqsolve` with the
   formula of dx/dt, both compiled by an outer `jax.jit`; their first calls; and `solve` over its
   number of evaluations times one compiled evaluation of the field.
2. The gradient of a function of the end with respect to all parameters: over the solve itself, over
   the gradient of the solve by hand, and its temporaries over those of diffrax's default adjoint.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import hopfield_layers as hl
from tests.compiling import temporary_bytes

from .side_by_side import interleaved, machine, ratio


CONTROLLER = diffrax.PIDController(rtol=1e-5, atol=1e-7)
RECURSIVE = diffrax.RecursiveCheckpointAdjoint()


def by_hand(field: Callable[..., Any], x0: Any, t1: float) -> Any:
    """The ends of a batch, or of one sample, of a layer."""

    def end(x):
        term = diffrax.ODETerm(field)
        options = {"stepsize_controller": CONTROLLER, "throw": False}
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, t1, None, x, **options).ys

    batched = isinstance(x0, dict) or x0.ndim > 1
    return (jax.vmap(end) if batched else end)(x0)


def tanh(t, x, args):
    return -(1 - jnp.tanh(x) ** 2) * x


def exponential(t, x, args):
    return -jnp.exp(x) * x


def softmax(t, x, args):
    g = jax.nn.softmax(x)
    return -g * (x - jnp.vdot(g, x))


def first_call(run: Callable[[], Any]) -> float:
    """The seconds of a call that traces and compiles."""
    jax.clear_caches()
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def evaluations_of(field: hl.EnergyFlow, x0: Any) -> Any:
    """A hundred evaluations, one after another."""
    return jax.lax.fori_loop(0, 100, lambda _, x: x + 1e-3 * field(0.0, x), x0)


def solves() -> None:
    """The table of solves."""
    print("| units, state flow to t = 20 | dtype | / by hand | first call | / evaluations |")
    print("|---|---|---|---|---|")
    cases = (
        ("1024 × 64 exponential", hl.ExpLayer(64), exponential, (1024, 64)),
        ("1024 × 64 tanh", hl.TanhLayer(64), tanh, (1024, 64)),
        ("64 × 784 softmax", hl.SoftmaxLayer(784), softmax, (64, 784)),
        ("784 tanh", hl.TanhLayer(784), tanh, (784,)),
        ("5 tanh", hl.TanhLayer(5), tanh, (5,)),
    )
    for name, layer, formula, shape in cases:
        for dtype in (jnp.float32, jnp.float64):
            x0 = jr.normal(jr.key(0), shape).astype(dtype)

            def made(layer=layer, formula=formula):
                ours = jax.jit(lambda x: hl.solve(layer, x, 20.0, throw=False).ys)
                return ours, jax.jit(lambda x: by_hand(formula, x, 20.0))

            firsts = [[first_call(partial(run, x0)) for run in made()] for _ in range(3)]
            field = jax.jit(partial(evaluations_of, hl.EnergyFlow(layer)))
            ours, theirs = made()
            runs = partial(ours, x0), partial(theirs, x0), partial(field, x0)
            times = interleaved(*runs, repeats=15)
            # Two evaluations choose the first step, one begins it, and each step has six.
            steps = jnp.max(hl.solve(layer, x0, 20.0).stats["num_steps"])
            evaluations = [float(3 + 6 * steps) / 100 * seconds for seconds in times[2]]
            first = ratio(*map(list, zip(*firsts, strict=True)))
            done = f"{ratio(*times[:2])} | {first} | {ratio(times[0], evaluations)}"
            print(f"| {name} | {dtype.__name__} | {done} |", flush=True)


def gradients() -> None:
    """The table of gradients."""
    print("\n| float32 | gradient / solve | / gradient by hand | temporaries / recursive |")
    print("|---|---|---|---|")
    for name, visible, hidden, samples in (
        ("1024 × 64 tanh units", 64, 0, 1024),
        ("256 × (64 tanh, 32 softmax)", 64, 32, 256),
        ("64 × (784 tanh, 200 softmax)", 784, 200, 64),
    ):
        layers: dict[str, hl.Layer] = {"a": hl.TanhLayer(visible, beta=1.5)}
        synapses, connections = {}, []
        if hidden:
            layers["b"] = hl.SoftmaxLayer(hidden, beta=2.0, tau=0.5)
            W = 6 / visible**0.5 * jr.normal(jr.key(0), (visible, hidden), jnp.float32)
            synapses["W"] = hl.DenseSynapse((visible, hidden), W=W)
            connections.append((("a", "b"), "W"))
        ham = hl.HAM(layers, synapses, connections)
        arrays, static = eqx.partition(ham, eqx.is_inexact_array)
        arrays = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
        x0 = jax.tree.map(jnp.float32, ham.init_states(samples, jr.key(1)))

        def value(arrays, x0, by, static=static):
            ys = by(eqx.combine(arrays, static), x0)
            return sum(jnp.sum(y**2) for y in jax.tree.leaves(ys))

        def ours(model, x0, **options):
            return hl.solve(model, x0, 5.0, flow="activation", throw=False, **options).ys

        def theirs(model, x0):
            return by_hand(hl.EnergyFlow(model, "activation"), x0, 5.0)

        solve = jax.jit(partial(value, by=ours))
        ways = (ours, theirs, partial(ours, adjoint=RECURSIVE))
        made = [jax.jit(jax.grad(partial(value, by=by))).lower(arrays, x0).compile() for by in ways]
        runs = [partial(run, arrays, x0) for run in (solve, *made[:2])]
        times = interleaved(*runs, repeats=5)
        sizes = [temporary_bytes(program) for program in made]
        done = f"{ratio(times[1], times[0])} | {ratio(*times[1:])} | {sizes[0] / sizes[2]:.2f}"
        print(f"| {name} | {done} |", flush=True)


def main() -> None:
    """Prints both tables."""
    jax.config.update("jax_enable_x64", True)
    print(machine(), "\n")
    solves()
    gradients()


if __name__ == "__main__":
    main()
