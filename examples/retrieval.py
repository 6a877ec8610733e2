# %%
"""x ← x + τ dx/dt = Σ_μ p_μ ξ_μ, p = ∂L/∂h, h = ξ·x (+ c): what memories of K digits retrieve.

The half-mask protocol of Santos et al., "Hopfield–Fenchel–Young networks" (arXiv:2411.08590):
pixels in [-1, 1], the lower half of a stored digit set to 0, 5 updates with nothing clamped,
β = 0.1; retrieved if the cosine with the stored digit exceeds 0.9. An update is an Euler step of
the activation flow with dt = τ. Three things are added to the protocol: noisy queries (σ = 2) and
occluded ones (a random square of 14×14 pixels is ink); Euclidean memories, c = −‖ξ‖²/2, whose
scores rank patterns by distance; and the state at rest with the known half clamped.

Prints the rates and writes two pictures, next to this file or to `--out FOLDER`.
"""

import argparse
import itertools
from pathlib import Path

import diffrax
import jax
import numpy as np
from matplotlib.figure import Figure

import digits
import hopfield_layers as hl
from drawing import BLUE, draw_row, figure, GREEN, HERE, RED, save


parser = argparse.ArgumentParser(description="What memories of digits retrieve.")
parser.add_argument("--quick", action="store_true", help="one memory of 128 digits")
parser.add_argument("--out", type=Path, default=HERE, help="for pictures")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own

STORED, SEEDS = ((128,), 1) if args.quick else ((128, 512, 1024, 2048), 3)
KINDS = {
    "softmax": hl.LSoftmax(beta=0.1),
    "1.5-entmax": hl.LEntmax(beta=0.1, alpha=1.5),
    "sparsemax": hl.LSparsemax(beta=0.1),
}
# The rates of half-masked queries that this protocol gave on these digits before, to two places.
REFERENCE = {
    "softmax": {128: 1.00, 512: 0.93, 1024: 0.80, 2048: 0.61},
    "sparsemax": {128: 1.00, 512: 1.00, 1024: 1.00, 2048: 1.00},
}
images, labels = digits.all_mnist()
KNOWN = np.arange(28)[:, None] + np.zeros(28) < 14


# %% Memories, and the states that they retrieve from queries.
def network(patterns, hidden_lagrangian: hl.AbstractLagrangian, similarity: str = "dot") -> hl.HAM:
    bias = None if similarity == "dot" else -np.sum(patterns**2, axis=(1, 2)) / 2
    memory = hl.HiddenSynapse.from_patterns(patterns, hidden_lagrangian, bias=bias)
    layer = hl.IdentityLayer(patterns.shape[1:])
    return hl.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])


def updated(ham: hl.HAM, queries) -> jax.Array:
    """The queries after 5 updates."""
    solution = hl.solve(
        ham,
        {"x": queries},
        t1=5.0,
        dt0=1.0,
        flow="activation",
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
    )
    assert solution.ys is not None
    return solution.ys["x"][:, -1]


def relaxed(ham: hl.HAM, queries) -> jax.Array:
    """The queries at rest, with their upper halves clamped."""
    return hl.relax(ham, {"x": queries}, clamp={"x": KNOWN}).x["x"]


def cosines(x, stored: np.ndarray) -> np.ndarray:
    a, b = (np.asarray(z).reshape(len(z), -1) for z in (x, stored))
    return np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# %% Queries.
def half(rng, stored):
    return np.where(KNOWN, stored, 0)


def noisy(rng, stored):
    return stored + 2 * rng.normal(size=stored.shape).astype(np.float32)


def occluded(rng, stored):
    row, column = rng.integers(0, 15, (2, len(stored), 1, 1))
    y, x = np.mgrid[:28, :28]
    return np.where((y >= row) & (y < row + 14) & (x >= column) & (x < column + 14), 1, stored)


PROTOCOLS = {
    "half-masked": (half, updated),
    "noisy": (noisy, updated),
    "occluded": (occluded, updated),
    "half clamped": (half, relaxed),
}

# %% The rates. The protocol of Santos et al. has all stored digits as queries, the others 256.
rates: dict[tuple[str, str, str], list[float]] = {}
counts: dict[tuple[str, str, str], list[int]] = {}
for protocol, similarity, kind in itertools.product(PROTOCOLS, ("dot", "Euclid"), KINDS):
    spoil, recall = PROTOCOLS[protocol]
    key, rates[key], counts[key] = (protocol, similarity, kind), [], []
    for count in STORED:
        retrieved = []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            patterns = rng.permutation(images)[:count]
            all_queried = key == ("half-masked", "dot", "softmax")
            wanted = patterns if all_queried else patterns[:256]
            result = recall(network(patterns, KINDS[kind], similarity), spoil(rng, wanted))
            retrieved.append(cosines(result, wanted) > 0.9)
        rates[key].append(float(np.mean(retrieved)))
        counts[key].append(np.size(retrieved))
    if len(rates) == 1:
        print(f"{'queries':14}{'similarity':12}{'memory':12}" + "".join(f"{K:>8}" for K in STORED))
    line = "".join(f"{rate:8.3f}" for rate in rates[key])
    print(f"{protocol:14}{similarity:12}{kind:12}{line}", flush=True)

# %% The picture of the rates.
fig, axes = figure(9.6, 3.0, 1, len(PROTOCOLS), sharey=True)
for ax, protocol in zip(axes, PROTOCOLS, strict=True):
    for similarity, line in (("dot", "-"), ("Euclid", "--")):
        for kind, colour, marker in zip(KINDS, (RED, GREEN, BLUE), "os^", strict=True):
            values, name = rates[protocol, similarity, kind], f"{kind}, {similarity}"
            ax.plot(STORED, values, line, marker=marker, ms=4, color=colour, label=name)
    ax.set(xscale="log", xlabel="stored digits K", title=protocol, ylim=(-0.03, 1.03))
    ax.set_xticks(STORED, [str(K) for K in STORED])
    ax.minorticks_off()
axes[0].set_ylabel("retrieved")
axes[1].legend(frameon=False, fontsize=7, handlelength=4)
args.out.mkdir(parents=True, exist_ok=True)
save(fig, args.out / "retrieval_rates.png")


# %% One digit of each class: stored, its half, and the retrieved images.
def draw(count: int) -> Figure:
    order = np.random.default_rng(0).permutation(len(images))[:count]
    patterns = images[order]
    wanted = patterns[digits.first_of_each(labels[order])]
    query = np.where(KNOWN, wanted, 0)
    soft, sparse = (network(patterns, KINDS[kind]) for kind in ("softmax", "sparsemax"))
    rows = {
        f"stored, one\nof {count}": wanted,
        "known half": query,
        "sparsemax, half\nclamped, at rest": relaxed(sparse, query),
        "sparsemax,\n5 updates": updated(sparse, query),
        "softmax,\n5 updates": updated(soft, query),
    }
    fig, axes = figure(8.6, 5.1, len(rows), len(wanted), squeeze=False)
    for i, (row, (name, pictures)) in enumerate(zip(axes, rows.items(), strict=True)):
        draw_row(row, name, pictures)
        for ax, cosine in zip(row, cosines(pictures, wanted), strict=True):
            if i > 1:
                colour = "black" if cosine > 0.9 else RED
                ax.set_xlabel(f"{cosine:.3f}", fontsize=8, color=colour, labelpad=1)
    note = "below each: its cosine with the stored digit, in colour where not above 0.9"
    fig.supxlabel(note, fontsize=9)
    return fig


save(draw(max(STORED)), args.out / "retrieval_digits.png")

# %% What is claimed: the rates of the protocol, within three times the binomial error, and that the
# Euclidean score restores a part, and the clamp most, of what softmax loses with many digits.
if not args.quick:
    plain = rates["half-masked", "dot", "softmax"][-1]
    assert rates["half-masked", "Euclid", "softmax"][-1] > plain + 0.15
    assert rates["half clamped", "dot", "softmax"][-1] > plain + 0.3
    assert rates["half-masked", "dot", "1.5-entmax"][-1] > 0.99
for kind, reference in REFERENCE.items():
    key = ("half-masked", "dot", kind)
    for count, rate, queries in zip(STORED, rates[key], counts[key], strict=True):
        error = np.sqrt(reference[count] * (1 - reference[count]) / queries)
        assert abs(rate - reference[count]) <= (3 * error or 0.005), (kind, count, rate)
