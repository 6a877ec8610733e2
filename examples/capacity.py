# %%
"""How many patterns a memory stores: five published formulas, each compared with a count.

    E(x) = E_layer(x) − Σ_μ F(ξ_μ·x)  with F = xⁿ, x₊ⁿ or exp x,  or − ln Σ_μ exp(β ξ_μ·x)/β

1. Krotov & Hopfield (arXiv:1606.01164): a unit of a stored pattern is unstable with probability
   ½ erfc √(N^{n−1}/(2 K (2n−3)!!)) for F = xⁿ. For x₊ⁿ half of the patterns add no noise, so that
   the same formula holds with K/2: a rectified memory stores twice as many patterns.
2. Demircigil et al. (arXiv:1702.01929): F = exp x stores 2^{N/2} patterns, that is α = ln 2/2 in
   K = exp(αN).
3. Ramsauer et al. (arXiv:2008.02217), Theorems 4 and 5: the largest distances from a separated
   pattern to the fixed point of the softmax memory, and from one update to this fixed point.
4. Amit, Gutfreund & Sompolinsky (1985): the Hebbian network's overlap falls at K/N = 0.138.
5. Lucibello & Mézard (arXiv:2304.14964): on the sphere, ln Σ exp stores K = exp(αN) patterns if
   α < α₁(λ), which is derived below.

Prints tables and writes a picture, next to this file or to `--out FOLDER`.
"""

import argparse
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hopfield_layers as hl
from drawing import BLUE, BOUND, COLOURS, figure, HERE, save


jax.config.update("jax_enable_x64", True)

parser = argparse.ArgumentParser(description="Count stored patterns; compare with published laws.")
parser.add_argument("--quick", action="store_true", help="smaller networks and fewer draws")
parser.add_argument("--out", type=Path, default=HERE, help="for the picture")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
rng = np.random.default_rng(0)


def signs(*shape: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape)


def sphere(count: int, dim: int) -> np.ndarray:
    """Uniform on the sphere of radius √dim."""
    x = rng.normal(size=(count, dim))
    return x * math.sqrt(dim) / np.linalg.norm(x, axis=1, keepdims=True)


@eqx.filter_jit
def rises(memories, queries: np.ndarray) -> jax.Array:
    """The rise of the energy −Σ ±A when each unit of each query is flipped, (queries, N)."""

    def one(x):
        flips = x * (1 - 2 * jnp.eye(x.size))
        alignment = lambda g: sum(sign * memory.alignment(g) for sign, memory in memories)
        return alignment(x) - jax.vmap(alignment)(flips)

    return jax.lax.map(one, jnp.asarray(queries))


# %% 1. One-step errors. xⁿ = x₊ⁿ + (−1)ⁿ (−x)₊ⁿ are two rectified memories; LRepu(n) is x₊ⁿ/n.
def krotov(units: int, n: int, stored: float) -> float:
    odd = math.prod(range(2 * n - 3, 0, -2))
    return 0.5 * math.erfc(math.sqrt(units ** (n - 1) / (2 * stored * odd)))


def one_step_errors(units: int, n: int, stored: int, rectified: bool, draws: int) -> np.ndarray:
    """The share of wrong units in each of `draws` memories, over 20 stored patterns of each."""
    errors = []
    for _ in range(draws):
        patterns = signs(stored, units)
        memories = [(1, hl.HiddenSynapse.from_patterns(patterns, hl.LRepu(n)))]
        if not rectified:
            mirrored = hl.HiddenSynapse.from_patterns(-patterns, hl.LRepu(n))
            memories.append(((-1) ** n, mirrored))
        errors.append(np.mean(rises(memories, patterns[:20]) < 0))
    return np.array(errors)


loads = [1.0] if args.quick else [0.6, 1.0, 1.6]
print(f"{'memory':12}{'N':>6}{'K':>7}{'formula':>10}{'counted':>10}{'± error':>9}{'ratio':>8}")
one_step = []
for n, units in ((2, 300), (3, 100), (4, 50)):
    for rectified in (False, True):
        for load in loads:
            scale = units ** (n - 1) / (4 * math.prod(range(2 * n - 3, 0, -2)))
            stored = round(load * scale) * (2 if rectified else 1)
            errors = one_step_errors(units, n, stored, rectified, 4 if args.quick else 20)
            formula = krotov(units, n, stored / 2 if rectified else stored)
            mean, error = errors.mean(), errors.std() / math.sqrt(len(errors))
            one_step.append((n, rectified, stored, formula, mean, error))
            name = f"x{'₊' if rectified else ''}^{n}"
            row = f"{name:12}{units:6}{stored:7}{formula:10.4f}{mean:10.4f}{error:9.4f}"
            print(f"{row}{mean / formula:8.2f}", flush=True)

# %% 2. 2^{N/2} patterns of the exponential energy. A pattern fails if any of its units does. That
# happens almost only if another pattern is one flip away; on average there are N 2^{−N/2} of these.
print(f"\n{'exp x, N':12}{'K = 2^(N/2)':>12}{'tried':>8}{'with a neighbour':>18}{'failed':>8}")
failed = {}
for units in (16, 20, 24) if args.quick else (12, 16, 20, 24, 28):
    tried = 100 if args.quick else 400
    patterns = signs(2 ** (units // 2), units)
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LExp())
    queries = patterns[:tried]
    bad = np.any(rises([(1, memory)], queries) <= 0, axis=1)
    neighbours = len(queries) * units * 2 ** (-units / 2)
    failed[units] = (int(bad.sum()), neighbours)
    print(
        f"{units:<12}{len(patterns):12}{len(queries):8}{neighbours:18.1f}{bad.sum():8}", flush=True
    )


# %% 3. Theorems 4 and 5, with Δ = min_j ξ_i·(ξ_i − ξ_j), M = max |ξ| and N patterns.
# If Δ ≥ 2/(βN) + ln(2(N−1)NβM²)/β, starts within 1/(βNM) of ξ_i lead to a fixed point within
# 1/(βNM) of ξ_i, and one update from within 1/(2βM) lies within 2e(N−1)M exp(−βΔ) of this point.
# The update is an Euler step of length τ along the activation flow's field f: x + f(x).
@jax.jit
def updated_and_rest(patterns, beta, queries):
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=beta))
    layer = hl.IdentityLayer(patterns.shape[1:])
    ham = hl.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])
    flow = hl.EnergyFlow(ham, flow="activation")
    update = queries + flow(0.0, {"x": queries}, None)["x"]
    return update, hl.relax(ham, {"x": queries}, flow="activation").x["x"]


tried_theorems, violations, nearest = 0, 0, np.zeros(2)
for _ in range(10 if args.quick else 100):
    count, dim, beta = 50, 32, float(rng.uniform(0.5, 4))
    patterns = sphere(count, dim)
    M = np.linalg.norm(patterns, axis=1).max()
    products = patterns @ patterns.T
    delta = np.diag(products) - np.max(products - np.diag(np.full(count, np.inf)), axis=1)
    separated = delta >= 2 / (beta * count) + math.log(2 * (count - 1) * count * beta * M**2) / beta
    away = rng.normal(size=patterns.shape)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    radius = 1 / (beta * count * M)
    _, rest = updated_and_rest(patterns, beta, patterns + radius * away)
    update, _ = updated_and_rest(patterns, beta, patterns + away / (2 * beta * M))
    landing = 2 * math.e * (count - 1) * M * np.exp(-beta * delta)
    for k, (change, bound) in enumerate(((rest - patterns, radius), (update - rest, landing))):
        ratio = (np.linalg.norm(change, axis=1) / (bound + 1e-8))[separated]
        violations += int(np.sum(ratio > 1))
        nearest[k] = max(nearest[k], np.max(ratio, initial=0))
    tried_theorems += int(separated.sum())
print(
    f"\nTheorems 4 and 5: {tried_theorems} separated patterns, {violations} violations; the largest"
)
print(f"distance as a part of its bound: {nearest[0]:.3f} (rest), {nearest[1]:.3f} (one update)")

# %% 4. The Hebbian network. With y = m/√(2αr) the equations of Amit, Gutfreund & Sompolinsky at
# zero temperature are √(2α) = erf(y)/y − (2/√π) exp(−y²) and m = erf(y); the largest α is the
# capacity.
y = np.linspace(0.5, 4, 20001)
erf = np.asarray(jax.scipy.special.erf(y))
alpha = (erf / y - 2 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2 / 2
alpha_c = alpha.max()
branch = y >= y[np.argmax(alpha)]


@jax.jit
def hebbian_overlaps(W, patterns):
    """The overlaps at rest, starting at stored patterns; at β = 100 tanh is nearly a sign."""
    size = len(W)
    synapse = hl.DenseSynapse((size, size), W=W)
    ham = hl.HAM({"x": hl.TanhLayer(size, beta=100.0)}, {"W": synapse}, [(("x", "x"), "W")])
    rest = hl.relax(ham, {"x": patterns}, flow="activation", throw=False)
    return jnp.mean(ham.activations(rest.x)["x"] * patterns, axis=1), rest.converged


hebb_loads = [0.10, 0.18] if args.quick else [0.06, 0.10, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.22]
size, hebb = 500 if args.quick else 2000, []
print(f"\nHebbian network of {size} units, capacity {alpha_c:.4f}")
print(f"{'K/N':12}{'overlap at rest':>16}{'theory':>10}{'settled':>9}")
for load in hebb_loads:
    patterns = signs(round(load * size), size).astype(np.float32)
    W = patterns.T @ patterns / (2 * size)
    np.fill_diagonal(W, 0)
    overlaps, settled = hebbian_overlaps(W, patterns[:10])
    theory = np.interp(-load, -alpha[branch], erf[branch]) if load < alpha_c else math.nan
    hebb.append((load, float(overlaps.mean()), theory))
    print(f"{load:<12}{overlaps.mean():16.3f}{theory:10.3f}{settled.mean():9.2f}", flush=True)

# %% [markdown]
# 5. The exponential memory on the sphere |ξ|² = N, with K = exp(αN) patterns (after Lucibello and
# Mézard). At x = ξ₁ the pattern itself contributes exp(λN) to Σ exp(λ ξ·x). Of the others,
# exp(N(α + ½ ln(1 − q²))) have the overlap q = ξ·ξ₁/N, because the density of q on the sphere is
# exp(½N ln(1 − q²)), and each contributes exp(λNq). Their sum is
# exp(N max_q [α + λq + ½ ln(1 − q²)]); at the maximum λ = q/(1 − q²), so that
# q = m = (√(1 + 4λ²) − 1)/2λ. The pattern outweighs the others while λ > α + λm + ½ ln(1 − m²),
# that is α < α₁(λ) = λ(1 − m) − ½ ln(1 − m²). At α₁ there are patterns with this overlap, as
# α₁ + ½ ln(1 − m²) = λ(1 − m) > 0; where there are none, the sum is even smaller.


# %%
def alpha_1(lam):
    m = (np.sqrt(1 + 4 * lam**2) - 1) / (2 * lam)
    return lam * (1 - m) - np.log(1 - m**2) / 2


def retrieved(units: int, lam: float, a: float, draws: int) -> float:
    """The share of stored patterns at which the memory rests; x may leave the sphere.

    If the share of the other patterns in the sum is not small against 1/N, x shrinks, which reduces
    the term of the pattern more than theirs. For finite N the capacity is therefore below α₁ by a
    distance of order ln N/N.
    """
    kept = []
    for _ in range(draws):
        patterns = sphere(round(math.exp(a * units)), units)
        queries = patterns[:32]
        _, rest = updated_and_rest(patterns, lam, queries)
        kept.append(np.mean(np.sum(rest * queries, axis=1) / units > 0.75))
    return float(np.mean(kept))


lam = 0.3
shifts = np.array(
    [-0.2, 0.04] if args.quick else [-0.2, -0.15, -0.12, -0.09, -0.06, -0.03, 0, 0.04]
)
sphere_rates = {}
print(f"\nsphere, λ = {lam}, α₁ = {alpha_1(lam):.3f}: part of the patterns at which it rests")
print(f"{'α − α₁':12}" + "".join(f"{s:8.2f}" for s in shifts))
for units in (24,) if args.quick else (20, 30, 40):
    rates = [retrieved(units, lam, alpha_1(lam) + s, 2 if args.quick else 4) for s in shifts]
    sphere_rates[units] = rates
    print(f"N = {units:<8}" + "".join(f"{r:8.2f}" for r in rates), flush=True)


# %% The picture
fig, (left, middle, right) = figure(11, 3.6, 1, 3)
for k, (n, rectified) in enumerate((n, r) for n in (2, 3, 4) for r in (False, True)):
    points = np.array([p[3:] for p in one_step if p[:2] == (n, rectified)])
    formula, mean, error = points.T
    name = f"$x_+^{n}$, K/2" if rectified else f"$x^{n}$"
    colour = COLOURS[n - 2]
    style = {"color": colour, "fmt": "s" if rectified else "o", "markersize": 5, "label": name}
    style["markerfacecolor"] = "white" if rectified else colour
    beside = formula * 1.07 ** (k - 2.5)  # moved, so that no point hides another
    left.errorbar(beside, mean / formula, 2 * error / formula, **style)
left.axhline(1, **BOUND)
left.set(xscale="log", ylim=(0, 2), xlabel="wrong units by the formula")
left.set_xticks([0.005, 0.02, 0.06], ["0.005", "0.02", "0.06"])
left.set_xticks([], minor=True)
left.set(ylabel="counted / formula (± 2 standard errors)")
left.set_title("One-step errors of dense memories", fontsize=10)
left.legend(frameon=False, fontsize=8, ncols=3, loc="lower center")

middle.plot(alpha[branch], erf[branch], color="black", lw=1, label="theory, N → ∞")
load, overlap, _ = np.transpose(hebb)
middle.plot(load, overlap, "o", color=BLUE, label=f"{size} units")
middle.axvline(alpha_c, color="black", ls=":", lw=1)
middle.text(alpha_c + 0.002, 0.05, f"K/N = {alpha_c:.3f}")
middle.set(xlim=(0.04, 0.24), ylim=(0, 1.05), xlabel="patterns per unit, K/N")
middle.set(ylabel="overlap at rest with the pattern")
middle.set_title("Hebbian network: overlap against load", fontsize=10)
middle.legend(frameon=False, fontsize=8, loc="lower left")

for (units, rates), colour, style in zip(
    sphere_rates.items(), COLOURS, ("o-", "s-", "^--"), strict=False
):
    right.plot(alpha_1(lam) + shifts, rates, style, ms=5, color=colour, label=f"N = {units}")
right.axvline(alpha_1(lam), color="black", ls=":", lw=1)
right.text(alpha_1(lam) + 0.003, 0.9, "α₁")
right.set(xlabel="α = ln K / N", ylabel="patterns that are kept", ylim=(-0.03, 1.05))
right.set_title(f"ln Σ exp on the sphere, λ = {lam}", fontsize=10)
right.legend(frameon=False, fontsize=8, loc="lower left")
args.out.mkdir(parents=True, exist_ok=True)
save(fig, args.out / "capacity.png")

# %% The claims
for n, rectified, stored, formula, mean, error in one_step:
    assert abs(mean - formula) < 0.15 * formula + 4 * error, (n, rectified, stored)
for units, (count, neighbours) in failed.items():
    assert count <= neighbours + 3 * math.sqrt(neighbours), (units, count)
assert tried_theorems > 100
assert violations == 0
assert abs(alpha_c - 0.1379) < 1e-4
for load, overlap, _ in hebb:
    assert overlap > 0.95 if load <= 0.12 else overlap < 0.75 or load < 0.16, (load, overlap)
for units, rates in sphere_rates.items():
    assert rates[0] > 0.9, (units, rates)
    assert rates[-1] < 0.1, (units, rates)
    if not args.quick:  # the α at which half are kept approaches α₁ like ln N/N
        half = np.interp(-0.5, -np.array(rates), shifts)
        print(f"N = {units}: half are kept at α₁ − {-half * units:.2f}/N")
        assert -3.5 < half * units < -1, (units, half)
