"""What it costs to get to rest: `python -m benchmarks.to_the_answer`, in float64.

Until the energy is within 1e-6 of where it rests:

1. The two experiments of `examples/energy_analysis.py`, five exponential units from x₀ and from
   100·x₀, against the original's Euler loop, x ← x − h ∂E/∂x by automatic differentiation, at the
   document's own steps and at the best of a search, which tries all of its steps at once until the
   first arrives. From 100·x₀ the document's step takes so many that they are not run: their number
   is the time at which the exact flow arrives over the step, and their time, as that of the best
   step, is that of the first 10⁵ (from Python the first 1000), extrapolated. "from Python" is the
   function as it is called, Euler's a Python loop over a compiled step, as in the document;
   "compiled" is a program of its own, Euler's a loop of as many steps as it needs. "Euler / it" is
   of Euler's at the document's step.
2. 1024 samples of 64 exponential units from a normal start against SciPy's `solve_ivp`, with a
   field in NumPy and the tolerances of `solve`, each along the same flow up to the time at which
   the exact one arrives: as one flattened system (LSODA is told that the Jacobian is diagonal)
   and in a loop over the samples.

Evaluations are those of dx/dt, counted while they run, of the sample that needs the most. Ratios
are of Euler's and SciPy's over ours: medians of interleaved runs, with quartiles.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hopfield_layers as hl

from .dynamics import Counted, POINTS
from .side_by_side import machine, ratio, times


NEAR, BETA = 1e-6, 1.0
X0 = np.array([-0.6439155, 0.07092398, -0.24706888, -1.057074, 0.13556838])
TOLERANCES = {"rtol": 1e-5, "atol": 1e-7}  # those of `solve`


def euler_step(beta: Any, step: Any, x: Any) -> jax.Array:
    """The original's: the gradient of Σ x·g − L by automatic differentiation."""
    lagrangian = lambda x: jnp.sum(jnp.exp(beta * x)) / beta
    energy = lambda x: jnp.sum(x * jax.grad(lagrangian)(x)) - lagrangian(x)
    return x - step * jax.grad(energy)(x)


one_euler_step = jax.jit(euler_step)


@jax.jit
def euler(beta: Any, step: float, count: Any, x: Any) -> jax.Array:
    """x after `count` steps."""
    return jax.lax.fori_loop(0, count, lambda _, x: euler_step(beta, step, x), x)


def euler_in_python(beta: Any, step: float, count: int, x: Any) -> Any:
    """Likewise, as in the document."""
    for _ in range(count):
        x = one_euler_step(beta, step, x)
    return x


@partial(jax.jit, static_argnames=("most", "block"))
def first(layer: hl.Layer, steps: Any, x0: Any, rest: float, most: int, block: int = 1) -> Any:
    """The steps taken, `block` at a time, until one of several sizes arrives, and the energies."""
    one = jax.vmap(partial(euler, BETA), in_axes=(0, None, 0))
    far = lambda x: jnp.abs(layer.energy(x) - rest) > NEAR
    more = lambda carry: jnp.all(far(carry[1])) & (carry[0] < most)
    x = jnp.broadcast_to(x0, (len(steps), *x0.shape))
    count, x = jax.lax.while_loop(more, lambda c: (c[0] + block, one(steps, block, c[1])), (0, x))
    return count, jnp.abs(layer.energy(x) - rest)


def arrival(
    layer: hl.Layer, x0: Any, rest: float, flow: str = "state", near: float = NEAR / 2
) -> float:
    """The time at which the exact flow of every sample arrives, to a thousandth."""
    options = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-12), "flow": flow}
    ts = jnp.geomspace(1e-1, 1e3, 9211)
    path: Any = hl.solve(
        layer, x0, 1e3, solver=diffrax.Dopri8(), saveat=diffrax.SaveAt(ts=ts), **options
    )
    far = np.abs(np.asarray(layer.energy(path.ys)) - rest) > near
    return float(ts[np.max(np.sum(far, -1))])


def solved(model: Any, x0: Any, t1: float, flow: str = "state") -> Any:
    """x at t1."""
    solution: Any = hl.solve(model, x0, t1, flow=flow)
    return solution.ys[..., -1, :]


def evaluations(run: Callable[[Any], Any], layer: hl.Layer) -> int:
    """How often `run` evaluates the drive of a sample."""
    POINTS.clear()
    jax.block_until_ready(run(Counted(layer)))  # pyright: ignore[reportCallIssue]
    jax.effects_barrier()
    return len(POINTS)


class Case(NamedTuple):
    """An experiment of the document."""

    name: str
    x0: jax.Array
    rest: float
    step: float
    search: np.ndarray
    block: int
    bar: str


def seconds(taken: list[float]) -> str:
    """The median, in the unit that suits it."""
    median = statistics.median(taken)
    return f"{median:.3g} s" if median > 1 else f"{median * 1e3:.3g} ms"


def experiment(case: Case, sample: int = 100_000) -> None:
    """Prints the rows of an experiment."""
    layer, x0 = hl.ExpLayer(case.x0.shape[-1], beta=BETA), case.x0
    t1 = arrival(layer, x0, case.rest)
    count, away = first(layer, case.search, x0, case.rest, 10**7, case.block)
    best = float(case.search[int(jnp.argmin(away))])
    own = math.ceil(arrival(layer, x0, case.rest, near=NEAR) / case.step)
    if own <= sample:
        own = int(first(layer, jnp.array([case.step]), x0, case.rest, 10**7)[0])
    ours = {
        "`solve`": lambda model: solved(model, x0, t1),
        "`relax`, state flow": lambda model: hl.relax(model, x0, flow="state", tol=NEAR**0.5).x,
        "`relax`": lambda model: hl.relax(model, x0).x,
    }
    compiled = [eqx.filter_jit(run) for run in ours.values()]
    loops = [(case.step, own), (best, int(count))]
    short = [(step, min(n, sample)) for step, n in loops]
    runs = [
        *[partial(euler, BETA, step, n, x0) for step, n in short],
        *[partial(euler_in_python, BETA, step, min(n, 1000), x0) for step, n in short],
        *[partial(run, layer) for run in (*compiled, *ours.values())],
    ]
    taken = times(*runs)
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
        off = float(layer.energy(run(layer))) - case.rest
        n = evaluations(run, layer)
        cells = [f"{n}", f"{own / n:.3g}", seconds(outside), str(ratio(taken[2], outside))]
        cells += [seconds(inside), str(ratio(taken[0], inside))]
        bar = case.bar if abs(off) <= NEAR else f"rests elsewhere, at E = {case.rest + off:.0f}"
        print(f"| {case.name}: {name} | " + " | ".join(cells) + f" | {bar} |", flush=True)


def scipy_runs(x0: np.ndarray, t1: float, flow: str) -> dict[str, Callable[[], Any]]:
    """SciPy's solves of all samples, each of which returns x, and the evaluations."""
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


def against_scipy(samples: int, units: int, flow: str) -> None:
    """Prints the rows of one flow."""
    layer = hl.ExpLayer(units, beta=BETA)
    x0 = np.random.default_rng(0).normal(size=(samples, units))
    t1 = arrival(layer, x0, -units, flow)
    ours = {"`solve`": lambda model, x0: solved(model, x0, t1, flow)}
    if flow == "activation":
        ours["`relax`"] = lambda model, x0: hl.relax(model, x0).x
    solution: Any = hl.solve(layer, x0, t1, flow=flow)
    slowest = x0[np.argmax(solution.stats["num_steps"])]
    counts = [evaluations(lambda m, f=f: f(m, slowest), layer) for f in ours.values()]
    runs = [partial(f, layer, x0) for f in ours.values()]
    try:
        theirs = scipy_runs(x0, t1, flow)
    except ModuleNotFoundError:
        theirs = {"SciPy": lambda: None}
    taken = times(*runs, *theirs.values())
    results = [(run(), n) for run, n in zip(runs, counts, strict=True)]
    results += [run() for run in theirs.values()]
    for i, (name, result) in enumerate(zip((*ours, *theirs), results, strict=True)):
        if result is None:
            print(f"| {flow} flow: {name} | not installed |" + " |" * 5)
            continue
        x, n = result
        off = np.max(np.abs(np.asarray(layer.energy(x)) + units))
        ratios = [str(ratio(taken[i], own)) if i >= len(ours) else "" for own in taken[: len(ours)]]
        ratios += [""] * (2 - len(ratios))
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
    for flow in ("state", "activation"):
        against_scipy(samples, units, flow)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
