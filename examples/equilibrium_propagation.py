# %%
"""∂C/∂θ = lim (∂E/∂θ at x₊ − ∂E/∂θ at x₋) / 2b for b → 0: a network learns from two nudged rests.

C = ½‖g_label − class‖² at rest. In the free phase the network comes to rest at g⁰ with the image
clamped; in the two nudged phases an input ±b(class − g⁰) pulls the label towards the class and away
from it, and it comes to rest at x₊ and x₋. ∂E/∂θ of a weight is −g·g′ of the two units that it
joins, so that each weight learns from the activations of its own units, and nothing is
differentiated through the dynamics. The centred difference has an error of order b², as long as no
ReLU crosses its threshold between x₋ and x₊. The implicit gradient is that of C through `hl.relax`,
by `jax.grad`.

Prints the relative distance of the two gradients against b (the median over 20 images), and the
share of test digits that are read correctly after training with each gradient. Draws both next to
this file or to `--out FOLDER`. `train_classifier.py`, whose loss is a cross-entropy, reads about
95 % of the same digits.

Source: Scellier & Bengio, "Equilibrium propagation", Frontiers in Computational Neuroscience 11
(2017); Laborieux et al., "Scaling equilibrium propagation to deep ConvNets by drastically reducing
its gradient estimator bias", Frontiers in Neuroscience 15 (2021), for the centred difference.
"""

import argparse
import functools
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import digits
import hopfield_layers as hl
import training
from drawing import BLUE, HERE, RED, save


parser = argparse.ArgumentParser(description="Equilibrium propagation beside implicit gradients.")
parser.add_argument("--quick", action="store_true", help="fewer digits, units and epochs")
parser.add_argument("--out", type=Path, default=HERE, help="for the picture")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own

train, test = digits.mnist(low=0.0)
if args.quick:
    train = digits.Digits(train.images[:1000], train.labels[:1000])
HIDDEN, EPOCHS, BATCH, NUDGE = (50, 4, 50, 0.1) if args.quick else (200, 12, 100, 0.1)
ham = digits.reader(HIDDEN, train.images, jax.random.key(0))
weights, constants = eqx.partition(ham, hl.trainable_weights(ham))


# %% The three phases, and the two gradients.
def at_rest(ham: hl.HAM, x0, inputs=None, tol=1e-4) -> hl.Relaxation:
    """The network with its image clamped."""
    return hl.relax(ham, x0, clamp={"image": True}, inputs=inputs, tol=tol, throw=False)


def start(ham: hl.HAM, images):
    return ham.init_states(bs=len(images)) | {"image": images}


def by_nudges(weights, images, classes, nudge, tol=1e-4):
    """The centred difference of ∂E/∂θ, and whether all three phases came to rest."""
    ham = eqx.combine(weights, constants)
    free = at_rest(ham, start(ham, images), tol=tol)
    pull = nudge * (classes - ham.activations(free.x)["label"])
    nudged = [at_rest(ham, free.x, {"label": sign * pull}, tol) for sign in (1, -1)]

    def energy(weights, x):
        return jnp.mean(eqx.combine(weights, constants).energy(x))

    plus, minus = (jax.grad(energy)(weights, phase.x) for phase in nudged)
    converged = jnp.array([jnp.all(phase.converged) for phase in (free, *nudged)])
    return jax.tree.map(lambda p, m: (p - m) / (2 * nudge), plus, minus), jnp.all(converged)


def implicit(weights, images, classes, nudge=None, tol=1e-4):
    """∂C/∂θ by the implicit function theorem, and whether all samples came to rest."""

    def cost(weights):
        ham = eqx.combine(weights, constants)
        rest = at_rest(ham, start(ham, images), tol=tol)
        error = ham.activations(rest.x)["label"] - classes
        return jnp.mean(jnp.sum(error**2, 1)) / 2, jnp.all(rest.converged)

    return jax.grad(cost, has_aux=True)(weights)


# %% Training, with the same first weights and batches.
def trained(gradient_of) -> tuple[eqx.Module, list[float], float]:
    """The weights, the share of the test digits that they read after each epoch, and the time."""
    steps = len(train.images) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, EPOCHS * steps))

    @jax.jit
    def step(weights, state, images, classes):
        gradient, converged = gradient_of(weights, images, classes, NUDGE)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, updates), state, converged

    def label(weights, images):
        ham = eqx.combine(weights, constants)
        return jnp.argmax(at_rest(ham, start(ham, images)).x["label"], 1)

    rng, now, state, shares = np.random.default_rng(0), weights, optimizer.init(weights), []
    begin = time.process_time()
    for i, rows in enumerate(training.shuffled(rng, len(train.images), BATCH, EPOCHS), start=1):
        images, classes = digits.states(train.images[rows]), CLASSES[train.labels[rows]]
        now, state, converged = step(now, state, images, classes)
        assert converged
        if i % steps == 0:
            read = label(now, digits.states(test.images)) == test.labels
            shares.append(float(np.mean(read)))
    return now, shares, time.process_time() - begin


CLASSES = np.eye(10, dtype=np.float32)
NUDGED = "two nudged rests"
learned, shares, seconds = {}, {}, {}
for name, gradient_of in {NUDGED: by_nudges, "implicit gradient": implicit}.items():
    learned[name], shares[name], seconds[name] = trained(gradient_of)

# %% The gradient against b, in float64, of the first weights and of the learned ones.
NUDGES = 2.0 ** np.arange(-10, 2)
distances = {}
with jax.enable_x64(True):
    images, classes = (
        np.asarray(a, float) for a in (digits.states(train.images[:20]), CLASSES[train.labels[:20]])
    )
    # Each image is a batch of one.
    images, classes = images[:, None], classes[:, None]
    tight = [functools.partial(gradient, tol=1e-13) for gradient in (by_nudges, implicit)]
    nudged, exact = (jax.jit(jax.vmap(gradient, (None, 0, 0, None))) for gradient in tight)
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    for name, at in {"first weights": weights, "learned weights": learned[NUDGED]}.items():
        at = jax.tree.map(lambda leaf: leaf.astype(float), at)
        gradient = flat(exact(at, images, classes, 0.0)[0])
        errors = [flat(nudged(at, images, classes, b)[0]) - gradient for b in NUDGES]
        relative = jnp.linalg.norm(jnp.array(errors), axis=2) / jnp.linalg.norm(gradient, axis=1)
        distances[name] = np.median(relative, axis=1)

# Smaller errors are dominated by those of the fixed points, larger ones by orders higher than b².
slopes = {}
for name, errors in distances.items():
    used = (errors > 1e-7) & (errors < 1e-3)
    slopes[name] = np.polyfit(np.log(NUDGES[used]), np.log(errors[used]), 1)[0]
print(f"{'median error of the gradient at b':38}" + "".join(f"{b:10.4f}" for b in NUDGES[::3]))
for name, errors in distances.items():
    print(f"{name:38}" + "".join(f"{error:10.1e}" for error in errors[::3]), end="")
    print(f"   slope {slopes[name]:.3f} of the errors from 1e-7 to 1e-3")
print(f"\n{'learned by':38}{'test digits read':>18}{'CPU seconds':>14}")
for name in shares:
    print(f"{name:38}{shares[name][-1]:18.3f}{seconds[name]:14.0f}")

# %% The picture.
fig = Figure((8.6, 3.6), dpi=110, layout="constrained")
left, right = fig.subplots(1, 2)
for (name, errors), style in zip(distances.items(), [(BLUE, "o-"), (RED, "s-")], strict=True):
    left.loglog(
        NUDGES, errors, style[1], color=style[0], ms=4, label=f"{name}, slope {slopes[name]:.2f}"
    )
guide = NUDGES[:6]
left.loglog(
    guide, 3 * distances["first weights"][0] * (guide / guide[0]) ** 2, "k--", lw=1, label="b²"
)
left.set(xlabel="nudge b", ylabel="relative error of the gradient, median")
left.set_title("Nudged rests against the implicit gradient", fontsize=11)
for (name, share), style in zip(shares.items(), [(BLUE, "o-"), (RED, "s--")], strict=True):
    right.plot(np.arange(1, EPOCHS + 1), share, style[1], color=style[0], ms=4, label=name)
right.set(xlabel="epoch", ylabel="share of test digits read")
right.set_title("Accuracy after training with each", fontsize=11)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
args.out.mkdir(parents=True, exist_ok=True)
save(fig, args.out / "equilibrium_propagation.png")

# %% What is claimed.
assert all(abs(slope - 2) < 0.1 for slope in slopes.values())
by_each = [share[-1] for share in shares.values()]
assert abs(by_each[0] - by_each[1]) < (0.03 if args.quick else 0.015)
assert min(by_each) > (0.75 if args.quick else 0.92)
