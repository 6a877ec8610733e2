"""`solve` and `relax` against the same written with diffrax: `python -m benchmarks.overhead`.

A layer of tanh units of each size, in float32. "By hand" is `diffrax.diffeqsolve` with the same
solver, controller, tolerances and `max_steps`, under `eqx.filter_jit` and vmapped over the samples;
its arguments are the layer, x0, t1 and the tolerances, which are arrays already. For `solve` its
field is the closed form −β (1 − tanh² βz) z/τ. For `relax` it is the layer's `EnergyFlow`, which
`ETD2RK` requires, with `energy_descent`, an event at the fixed point, and `ImplicitAdjoint`.

| column | ours / by hand, in time |
|---|---|
| call | one call, from Python to the result |
| program | the compiled program alone, without the call from Python |
| same field | the same, with the layer's `EnergyFlow` by hand too: what `solve` and `relax` add |
| first call | trace and compile, from empty caches |

The second table is for five units alone: 200 Euler steps over a `lax.scan` of the same steps. It
follows diffrax's advice for small problems: `StepTo` fixes the times of the steps beforehand, and
with `EQX_ON_ERROR=nan` in the environment of a separate process no check calls Python. `diffrax`
is `diffeqsolve` with the same options.
"""

import functools
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import interleaved, machine, ratio, Run


def closed_form(layer: Any) -> Callable[..., Array]:
    """The state flow of tanh units."""

    def field(t, x, args):
        z, beta = x - layer.bias, layer.lagrangian.beta
        return -beta * (1 - jnp.tanh(beta * z) ** 2) * z / layer.tau

    return field


def solve_by_hand(
    layer: hl.Layer, x0: Array, t1: Array, rtol: Array, atol: Array, field: Any = closed_form
) -> diffrax.Solution:
    """The state flow to t1."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field(layer)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=t1,
        dt0=None,
        y0=x0,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=4096,
    )


def relax_by_hand(layer: hl.Layer, x0: Array, tol: Array) -> tuple[Array, ...]:
    """The activation flow to its fixed point, and the numbers that `relax` returns with it."""
    flow = hl.EnergyFlow(layer, "activation")
    bias = layer.bias
    assert bias is not None

    def force(x: Array) -> Array:
        return jnp.abs(x - bias)

    loose = diffrax.PIDController(rtol=0.1, atol=0.1)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(flow),
        hl.ETD2RK(),
        t0=0.0,
        t1=jnp.inf,
        dt0=100 * layer.tau,
        y0=x0,
        stepsize_controller=hl.energy_descent(loose, flow),
        event=diffrax.Event(lambda t, y, args, **_: jnp.all(force(y) < tol)),
        adjoint=diffrax.ImplicitAdjoint(),
        max_steps=4096,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    x = solution.ys[-1]
    residual = jnp.max(force(x))
    return x, layer.energy(x), residual, residual < tol, solution.ts, solution.stats["num_steps"]


def vmapped(fn: Callable[..., Any], batch: tuple[int, ...]) -> Callable[..., Any]:
    """`fn(layer, x0, …)` over the batch axes of x0."""

    def run(layer, x0, *others):
        per_sample = lambda x0: fn(layer, x0, *others)
        for _ in batch:
            per_sample = jax.vmap(per_sample)
        return per_sample(x0)

    return run


def pairs(units: int, *batch: int) -> dict[str, tuple[Callable, tuple, Callable, tuple, Callable]]:
    """For `solve` and `relax`: ours and its arguments, by hand and its arguments, and by hand with
    our field.
    """
    bias = 0.1 * jr.normal(jr.key(0), (units,), jnp.float32)
    layer = hl.TanhLayer(units, tau=2.0, bias=bias)
    x0 = jr.normal(jr.key(1), (*batch, units), jnp.float32)
    t1, rtol, atol = (jnp.array(number, jnp.float32) for number in (20.0, 1e-5, 1e-7))
    tol = jnp.array(1e-5, jnp.float32)
    ours = lambda layer, x0, tol: hl.relax(layer, x0, tol=tol, solver=hl.ETD2RK())
    with_ours = functools.partial(solve_by_hand, field=hl.EnergyFlow)
    solve, same, relax = (vmapped(fn, batch) for fn in (solve_by_hand, with_ours, relax_by_hand))
    return {
        "solve": (hl.solve, (layer, x0, t1), solve, (layer, x0, t1, rtol, atol), same),
        "relax": (ours, (layer, x0, tol), relax, (layer, x0, tol), relax),
    }


def first_calls(*runs: Run, repeats: int = 7) -> list[list[float]]:
    """The seconds of each run from empty caches, in turns."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, taken, strict=True):
            jax.clear_caches()
            eqx.clear_caches()
            gc.collect()
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begin)
    return taken


def many(run: Run, calls: int) -> Run:
    """`run` several times over, as one call of a few microseconds can't be timed."""
    return lambda: [jax.block_until_ready(run()) for _ in range(calls)][-1]


def arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, returning its arrays alone."""
    return lambda *args: eqx.filter(fn(*args), eqx.is_array)


def program(fn: Callable[..., Any], args: tuple[Any, ...]) -> Run:
    """One run of the compiled program alone."""
    leaves, structure = jax.tree.flatten(args)
    on_leaves = lambda *leaves: jax.tree.leaves(arrays(fn)(*jax.tree.unflatten(structure, leaves)))
    compiled = jax.jit(on_leaves).lower(*leaves).compile()
    return lambda: compiled(*leaves)


def row(
    ours: Callable, args: tuple, by_hand: Callable, hand_args: tuple, same: Callable, calls: int
) -> list[str]:
    """The four ratios."""
    by_hand_jit = eqx.filter_jit(by_hand)
    runs = (lambda: ours(*args), lambda: by_hand_jit(*hand_args))
    first = first_calls(*runs)
    programs = [
        program(fn, arguments)
        for fn, arguments in ((ours, args), (by_hand, hand_args), (same, hand_args))
    ]
    called = interleaved(*(many(run, calls) for run in (*runs, *programs)), repeats=15)
    hand = statistics.median(called[1]) / calls
    return [
        f"{1e6 * hand:.0f} µs, {statistics.median(first[1]):.2f} s",
        *(str(ratio(a, b)) for a, b in (called[:2], called[2:4], called[2::2], first)),
    ]


def small(units: int = 5, steps: int = 200, calls: int = 300) -> None:
    """Prints the row of this process: Euler steps over those of `lax.scan`."""
    (_, (layer, x0, _), *_) = pairs(units)["solve"]
    dt = jnp.array(0.1, jnp.float32)
    t1 = steps * dt
    grid = jnp.linspace(0.0, t1, steps + 1)
    options: dict[str, Any] = {"solver": diffrax.Euler(), "max_steps": steps + 1}
    at_constant = options | {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": dt}
    field = lambda layer, x: hl.EnergyFlow(layer)(0.0, x)

    def scanned(layer, x0, t1, grid):
        step = lambda x, _: (x + dt * field(layer, x), None)
        return jax.lax.scan(step, x0, length=steps)[0]

    def to_grid(layer, x0, t1, grid):
        return hl.solve(layer, x0, t1, **options, stepsize_controller=diffrax.StepTo(grid)).ys

    def constant(layer, x0, t1, grid):
        return hl.solve(layer, x0, t1, **at_constant).ys

    def by_diffrax(layer, x0, t1, grid):
        term = diffrax.ODETerm(lambda t, x, args: field(layer, x))
        controller = diffrax.StepTo(grid)
        return diffrax.diffeqsolve(
            term, t0=0.0, t1=t1, dt0=None, y0=x0, stepsize_controller=controller, **options
        ).ys

    args = (layer, x0, t1, grid)
    runs = [many(program(fn, args), calls) for fn in (scanned, constant, to_grid, by_diffrax)]
    scan, *taken = interleaved(*runs)
    on_error = os.environ.get("EQX_ON_ERROR", "raise")
    each = 1e6 * statistics.median(scan) / calls
    shares = " | ".join(str(ratio(seconds, scan)) for seconds in taken)
    print(f"| `{on_error}` | {each:.1f} µs | {shares} |", flush=True)


def main(sizes: tuple[tuple[int, ...], ...] = ((5,), (784,), (64, 1024)), steps: int = 200) -> None:
    """Prints the two tables. A size is the units, and after them the batch axes."""
    print(f"tanh units in float32, solve to t = 10 τ, {machine()}\n")
    print("| | by hand | call | bar | program | same field | first call | bar |")
    print("|---" * 8 + "|")
    for size in sizes:
        for name, case in pairs(*size).items():
            hand, call, alone, same, first = row(*case, calls=3 if size[1:] else 100)
            shape = " × ".join(map(str, (*size[1:], size[0])))
            title = f"`{name}`, {shape}"
            print(
                f"| {title} | {hand} | {call} | 1.05 | {alone} | {same} | {first} | 1.2 |",
                flush=True,
            )
    print(
        f"\n| `EQX_ON_ERROR` | `lax.scan`, {steps} steps | `solve`, constant steps | `StepTo` ",
        end="",
    )
    print("| `diffrax`, `StepTo` |\n" + "|---" * 5 + "|", flush=True)
    command = f"from benchmarks.overhead import small; small(steps={steps})"
    for on_error in ("raise", "nan"):
        env = os.environ | {"EQX_ON_ERROR": on_error}
        subprocess.run([sys.executable, "-c", command], env=env, check=True)


if __name__ == "__main__":
    main()
