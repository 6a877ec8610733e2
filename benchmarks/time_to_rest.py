"""The time to the fixed point: `python -m benchmarks.time_to_rest`, in float64.

All run until the energy is within 1e-6 of that of the fixed point:

1. The two experiments of `examples/energy_analysis.py`, five exponential units from x₀ and from
   100·x₀, against the original's Euler loop, x ← x − h ∂E/∂x by automatic differentiation, at the
   steps of the original document and at the best step of a search, which runs all candidates until
   the first arrives. From 100·x₀ the document's step needs so many steps that they are not run:
   their number is the arrival time of the exact flow over the step, and their time is extrapolated
   from the first 10⁵ (from Python the first 1000), as is that of the best step. "from Python" is
   the function as users call it, for Euler a Python loop over a compiled step, as in the document;
   "compiled" is one program, for Euler a loop of as many steps as it needs. "Euler / it" is the
   time of Euler with the document's step over that of the row.
2. 1024 samples of 64 exponential units from a normal start against SciPy's `solve_ivp`, with a
   field in NumPy and the tolerances of `solve`, along the same flow up to the arrival time of the
   exact one: as one flattened system (LSODA is told that the Jacobian is diagonal) and in a loop
   over the samples.

Evaluations are those of dx/dt for the sample that needs the most, counted while the program runs.
Ratios are the times of Euler and SciPy over ours: medians of interleaved runs, with quartiles.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hopfield_layers as hl
from tests.counting import evaluations

from .side_by_side import interleaved, machine, ratio


Flow = Literal["state", "activation"]
NEAR, BETA = 1e-6, 1.0
X0 = np.array([-0.6439155, 0.07092398, -0.24706888, -1.057074, 0.13556838])
TOLERANCES = {"rtol": 1e-5, "atol": 1e-7}  # those of `solve`


def euler_step(beta: Any, step: Any, x: Any) -> jax.Array:
    """x − h ∂E/∂x, with E = Σ x·g − L differentiated automatically, as in the original."""

    def lagrangian(x):
        return jnp.sum(jnp.exp(beta * x)) / beta

    def energy(x):
        return jnp.sum(x * jax.grad(lagrangian)(x)) - lagrangian(x)

    return x - step * jax.grad(energy)(x)


one_euler_step = jax.jit(euler_step)


@jax.jit
def euler(beta: Any, step: float, count: Any, x: Any) -> jax.Array:
    """x after `count` steps."""
    return jax.lax.fori_loop(0, count, lambda _, x: euler_step(beta, step, x), x)


def euler_in_python(beta: Any, step: float, count: int, x: Any) -> Any:
    """x after `count` steps of a loop in Python, as in the document."""
    for _ in range(count):
        x = one_euler_step(beta, step, x)
    return x


@partial(jax.jit, static_argnames=("most", "block"))
def first_arrival(
    layer: hl.Layer, sizes: Any, x0: Any, rest_energy: float, most: int, block: int = 1
) -> Any:
    """The number of Euler steps until one of several step sizes arrives, and the distances.

    All sizes are tried at once, `block` steps at a time.
    """
    steps = jax.vmap(partial(euler, BETA), in_axes=(0, None, 0))

    def distance(x):
        return jnp.abs(layer.energy(x) - rest_energy)

    def continues(carry):
        count, x = carry
        return jnp.all(distance(x) > NEAR) & (count < most)

    def advance(carry):
        count, x = carry
        return count + block, steps(sizes, block, x)

    xs = jnp.broadcast_to(x0, (len(sizes), *x0.shape))
    count, xs = jax.lax.while_loop(continues, advance, (0, xs))
    return count, distance(xs)


def arrival(
    layer: hl.Layer, x0: Any, rest_energy: float, flow: Flow = "state", near: float = NEAR / 2
) -> float:
    """The time at which the exact flow of every sample arrives, to a thousandth."""
    options = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-12), "flow": flow}
    ts = jnp.geomspace(1e-1, 1e3, 9211)
    path: Any = hl.solve(
        layer, x0, 1e3, solver=diffrax.Dopri8(), saveat=diffrax.SaveAt(ts=ts), **options
    )
    far = np.abs(np.asarray(layer.energy(path.ys)) - rest_energy) > near
    return float(ts[np.max(np.sum(far, -1))])


def solved(model: Any, x0: Any, t1: float, flow: Flow = "state") -> Any:
    """x at t1."""
    solution: Any = hl.solve(model, x0, t1, flow=flow)
    return solution.ys[..., -1, :]


class Case(NamedTuple):
    """An experiment of the document."""

    name: str
    x0: jax.Array
    rest_energy: float
    step: float
    search: np.ndarray
    block: int
    bar: str


def seconds(taken: list[float]) -> str:
    """The median in seconds or milliseconds."""
    median = statistics.median(taken)
    return f"{median:.3g} s" if median > 1 else f"{median * 1e3:.3g} ms"


def experiment(case: Case, sample: int = 100_000) -> None:
    """Prints the rows of an experiment."""
    layer, x0 = hl.ExpLayer(case.x0.shape[-1], beta=BETA), case.x0
    t1 = arrival(layer, x0, case.rest_energy)
    count, distances = first_arrival(layer, case.search, x0, case.rest_energy, 10**7, case.block)
    best = float(case.search[int(jnp.argmin(distances))])
    documented = math.ceil(arrival(layer, x0, case.rest_energy, near=NEAR) / case.step)
    if documented <= sample:
        sizes = jnp.array([case.step])
        documented = int(first_arrival(layer, sizes, x0, case.rest_energy, 10**7)[0])
    ours = {
        "`solve`": lambda model: solved(model, x0, t1),
        "`relax`, state flow": lambda model: hl.relax(model, x0, flow="state", tol=NEAR**0.5).x,
        "`relax`": lambda model: hl.relax(model, x0).x,
    }
    compiled = [eqx.filter_jit(run) for run in ours.values()]
    loops = [(case.step, documented), (best, int(count))]
    short = [(step, min(n, sample)) for step, n in loops]
    runs = [
        *[partial(euler, BETA, step, n, x0) for step, n in short],
        *[partial(euler_in_python, BETA, step, min(n, 1000), x0) for step, n in short],
        *[partial(run, layer) for run in (*compiled, *ours.values())],
    ]
    taken = interleaved(*runs)
    for i, (_, n) in enumerate(short):
        taken[i] = [t * loops[i][1] / n for t in taken[i]]
        taken[2 + i] = [t * loops[i][1] / min(n, 1000) for t in taken[2 + i]]
    for i, (step, n) in enumerate(loops):
        guess = ", extrapolated" if n > sample else ""
        what = f"Euler, {('the document’s', 'the best')[i]} step {step:.2g}{guess}"
        print(f"| {case.name}: {what} | {n:.3g} | | {seconds(taken[2 + i])} | | ", end="")
        print(f"{seconds(taken[i])} | | |")
    for i, (name, run) in enumerate(ours.items()):
        inside, outside = taken[4 + i], taken[4 + len(ours) + i]
        off = float(layer.energy(run(layer))) - case.rest_energy
        _, n = evaluations(run, layer)
        cells = [f"{n}", f"{documented / n:.3g}", seconds(outside), str(ratio(taken[2], outside))]
        cells += [seconds(inside), str(ratio(taken[0], inside))]
        bar = (
            case.bar
            if abs(off) <= NEAR
            else f"rests elsewhere, at E = {case.rest_energy + off:.0f}"
        )
        print(f"| {case.name}: {name} | " + " | ".join(cells) + f" | {bar} |", flush=True)


def scipy_runs(x0: np.ndarray, t1: float, flow: Flow) -> dict[str, Callable[[], Any]]:
    """Solutions of all samples by SciPy; each returns x and the number of evaluations."""
    from scipy.integrate import solve_ivp

    field = (lambda t, x: -np.exp(x) * x) if flow == "state" else (lambda t, x: -x)

    def one(x: np.ndarray, **options: Any) -> tuple[np.ndarray, int]:
        solution = solve_ivp(field, (0, t1), x.ravel(), t_eval=[t1], **TOLERANCES, **options)
        return solution.y[:, -1].reshape(x.shape), solution.nfev

    def loop(method: str) -> tuple[np.ndarray, int]:
        xs, counts = zip(*(one(x, method=method) for x in x0), strict=True)
        return np.stack(xs), max(counts)

    return {
        "RK45, flattened": lambda: one(x0, method="RK45"),
        "LSODA, flattened": lambda: one(x0, method="LSODA", lband=0, uband=0),
        "RK45, loop": lambda: loop("RK45"),
        "LSODA, loop": lambda: loop("LSODA"),
    }


def against_scipy(samples: int, units: int, flow: Flow) -> None:
    """Prints the rows of one flow."""
    layer = hl.ExpLayer(units, beta=BETA)
    x0 = np.random.default_rng(0).normal(size=(samples, units))
    t1 = arrival(layer, x0, -units, flow)
    ours = {"`solve`": lambda model, x0: solved(model, x0, t1, flow)}
    if flow == "activation":
        ours["`relax`"] = lambda model, x0: hl.relax(model, x0).x
    solution: Any = hl.solve(layer, x0, t1, flow=flow)
    slowest = x0[np.argmax(solution.stats["num_steps"])]
    counts = [evaluations(lambda m, f=f: f(m, slowest), layer)[1] for f in ours.values()]
    runs = [partial(f, layer, x0) for f in ours.values()]
    try:
        theirs = scipy_runs(x0, t1, flow)
    except ModuleNotFoundError:
        theirs = {"SciPy": lambda: None}
    taken = interleaved(*runs, *theirs.values())
    results = [(run(), n) for run, n in zip(runs, counts, strict=True)]
    results += [run() for run in theirs.values()]
    for i, (name, result) in enumerate(zip((*ours, *theirs), results, strict=True)):
        if result is None:
            print(f"| {flow} flow: {name} | not installed |" + " |" * 5)
            continue
        x, n = result
        off = np.max(np.abs(np.asarray(layer.energy(x)) + units))
        ratios = ["", ""]
        if i >= len(ours):
            ratios[: len(ours)] = [str(ratio(taken[i], each)) for each in taken[: len(ours)]]
        bar = "" if i < len(ours) else "≥ 20" if "loop" in name else "≥ 5"
        cells = [str(n), f"{off:.1e}", seconds(taken[i]), *ratios, bar]
        print(f"| {flow} flow: {name} | " + " | ".join(cells) + " |", flush=True)


def main(samples: int = 1024, units: int = 64) -> None:
    """Prints both tables."""
    print(f"{X0.size} exponential units, float64, {machine()}\n")
    names = "| | evaluations | Euler / it | from Python | Euler / it | compiled | Euler / it"
    print(f"{names} | bar |\n|" + "---|" * 8)
    easy, hard = "time, from Python: ≥ 1", "evaluations: ≥ 1000"
    steps = np.linspace(0.1, 1.9, 181), np.geomspace(5e-8, 5e-6, 64)
    experiment(Case("x₀", jnp.asarray(X0), -5.0, 0.1, steps[0], 1, easy))
    experiment(Case("100·x₀", jnp.asarray(100 * X0), -2.0, 5e-8, steps[1], 1000, hard))
    print(f"\n{samples} samples of {units} exponential units, float64\n")
    names = "| | evaluations | E − E(rest) | time | / `solve` | / `relax` | bar |"
    print(f"{names}\n|" + "---|" * 7)
    flows: tuple[Flow, ...] = ("state", "activation")
    for flow in flows:
        against_scipy(samples, units, flow)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
