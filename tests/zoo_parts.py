"""Synapses, networks and models that are wrong, each in its own way, and the law of each."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import hopfield_layers as hl

from .zoo import WrongModel


class Wrong(hl.AbstractSynapse):
    """A synapse made of a function of its weight and its activations."""

    value: Callable
    W: Any

    def __init__(self, value, W: Any = 1.0):
        self.value = jax.tree_util.Partial(value)
        self.W = jnp.asarray(W)

    def alignment(self, *gs):
        return self.value(self.W, *gs)


def with_rule(value, slope):
    """`value`, whose derivative is said to be `slope`."""
    fn = jax.custom_jvp(value)

    @fn.defjvp
    def _(primals, tangents):
        pairs = zip(slope(*primals), tangents, strict=True)
        return fn(*primals), sum(jnp.sum(a * b) for a, b in pairs)

    return fn


def cube(W, g, h):
    return W * (jnp.sum(g) + jnp.sum(h)) ** 3


def slope_of_cube(factor, held=lambda s: s):
    def slope(W, g, h):
        s = jnp.sum(g) + jnp.sum(h)
        each = held(factor * 3 * W * s**2)
        return s**3, jnp.full_like(g, each), jnp.full_like(h, each)

    return slope


class Minus(hl.AbstractSynapse):
    """A synapse whose energy is A instead of −A."""

    def alignment(self, g, h):
        return jnp.sum(g) * jnp.sum(h)

    def energy(self, *gs):  # the mistake
        return self.alignment(*gs)


class Leaking(eqx.Module):
    """Attention whose masked scores are only lowered by 30."""

    mask: jax.Array
    penalty: float = 30.0

    def energy(self, queries, keys):
        scores = queries @ keys.T
        return -jnp.sum(jax.nn.logsumexp(jnp.where(self.mask, scores, scores - self.penalty), 1))


class LeakingGradient(eqx.Module):
    """Attention that applies its mask to the value, but not to the gradient."""

    mask: jax.Array

    def energy(self, queries, keys):
        leak = jnp.sum(jnp.where(self.mask, 0, queries @ keys.T))
        scores = jnp.where(self.mask, queries @ keys.T, -1e30)
        return -jnp.sum(jax.nn.logsumexp(scores, 1)) + leak - jax.lax.stop_gradient(leak)


@jax.custom_batching.custom_vmap
def _leaking_sum(g):
    return jnp.sum(g)


@_leaking_sum.def_vmap
def _(axis_size, in_batched, g):
    return jnp.full(axis_size, jnp.mean(jnp.sum(g, 1))), True


W = jnp.array([[0.5, 1.0, 0.0], [-1.0, 0.3, 0.5], [0.0, 0.5, 0.2]])
CALLS: list[int] = []
CACHE: dict[str, Any] = {}
CHANCE = np.random.default_rng(0)


def counted(W, g, h):
    CALLS.append(1)
    return W * jnp.sum(g) * jnp.sum(h) / len(CALLS)


def cached(W, g, h):
    return W * jnp.sum(CACHE.setdefault("g", g)) * jnp.sum(h)


def stale(value):
    """The first value, whatever the later ones are."""

    def first(value):
        return CACHE.setdefault("value", np.asarray(value)).astype(value.dtype)

    like = jax.ShapeDtypeStruct((), value.dtype)
    return jax.pure_callback(first, like, value, vmap_method="sequential")


def of_stale(W, g, h):
    return W * stale(jnp.sum(g)) * jnp.sum(h)


def slope_of_product(W, g, h):
    a, b = jnp.sum(g), jnp.sum(h)
    return a * b, jnp.full_like(g, W * b), jnp.full_like(h, W * a)


def convolved(g):
    return g[1:] - g[:-1] / 2


def pooled(W, g, h):
    """A convolution with a kernel of two entries, averaged over windows of three."""
    return jnp.sum(W * convolved(g).reshape(2, 3).mean(1) * h)


def slope_by_window_of_two(W, g, h):
    means = convolved(g).reshape(2, 3).mean(1)
    back = W * jnp.array([h[0], h[0], 0, h[1], h[1], 0]) / 2  # the mistake: two of the three
    zero = jnp.zeros(1, g.dtype)
    slope = jnp.concatenate([zero, back]) - jnp.concatenate([back, zero]) / 2
    return jnp.sum(means * h), slope.astype(g.dtype), W * means


PAIR = [3, 2]
# The synapse, the shapes and the law.
SYNAPSES = {
    "a rule of the wrong sign": (Wrong(with_rule(cube, slope_of_cube(-1))), PAIR, "gradient"),
    "a rule off by a factor": (Wrong(with_rule(cube, slope_of_cube(1 + 1e-6))), PAIR, "gradient"),
    "a rule of the wrong sign for one layer": (
        Wrong(
            with_rule(
                lambda W, g, h: W * jnp.sum(g) * jnp.sum(h),
                lambda W, g, h: (
                    jnp.sum(g) * jnp.sum(h),
                    jnp.full_like(g, W * jnp.sum(h)),
                    jnp.full_like(h, -W * jnp.sum(g)),
                ),
            )
        ),
        PAIR,
        "symmetric",
    ),
    "a pooled convolution whose rule has another window": (
        Wrong(with_rule(pooled, slope_by_window_of_two)),
        [7, 2],
        "symmetric",
    ),
    "a minus that is missing": (Minus(), PAIR, "sign"),
    "weights that are not symmetric": (
        Wrong(
            with_rule(lambda W, g: g @ W @ g / 2, lambda W, g: (jnp.outer(g, g) / 2, W @ g)),
            W,
        ),
        [3],
        "symmetric",
    ),
    "a mask that leaks": (Leaking(jnp.ones((4, 5), bool)), [(4, 2), (5, 2)], "mask"),
    "a mask that leaks in the gradient": (
        LeakingGradient(jnp.ones((4, 5), bool)),
        [(4, 2), (5, 2)],
        "mask",
    ),
    "a batch that leaks": (
        Wrong(lambda W, g, h: W * with_rule(_leaking_sum, lambda g: (jnp.ones_like(g),))(g) * h[0]),
        PAIR,
        "vmap",
    ),
    "wider than its activations": (
        Wrong(lambda W, g, h: W * jnp.sum(g.astype(jnp.float64)) * jnp.sum(h)),
        PAIR,
        "dtype",
    ),
    "a constant of float64": (Wrong(lambda W, g, h: np.ones(3) @ g * jnp.sum(h)), PAIR, "dtype"),
    "an energy per unit": (Wrong(lambda W, g, h: W * g * jnp.sum(h)), PAIR, "scalar"),
    "norm, NaN at 0": (Wrong(lambda W, g, h: W * jnp.sqrt(jnp.sum(g**2)) + h[0]), PAIR, "finite"),
    "a softmax that overflows": (
        Wrong(lambda W, g, h: jnp.log(jnp.sum(jnp.exp(W * g))) + h[0]),
        PAIR,
        "finite",
    ),
    "a random energy": (
        Wrong(lambda W, g, h: W * jnp.sum(g) * jnp.sum(h) * CHANCE.uniform(1, 2)),
        PAIR,
        "jit",
    ),
    "an energy that counts its calls": (Wrong(counted), PAIR, "jit"),
    "a cache of the first activations": (Wrong(cached), PAIR, "jit"),
    "a cache of the first value": (
        Wrong(with_rule(of_stale, slope_of_product)),
        PAIR,
        "gradient",
    ),
    "a branch in Python": (
        Wrong(lambda W, g, h: jnp.sum(g) * (1 if g[0] > 0 else 2) * h[0]),
        PAIR,
        "jit",
    ),
    "a division of integers": (
        Wrong(lambda W, g, h: W * (10 * jnp.sum(g) // 3) + jnp.sum(h)),
        PAIR,
        "continuous",
    ),
    "a weight without gradient": (
        Wrong(lambda W, g, h: jax.lax.stop_gradient(W) * jnp.sum(g) * jnp.sum(h)),
        PAIR,
        "gradients",
    ),
    "a rule without second derivative": (
        Wrong(
            with_rule(cube, slope_of_cube(1, jax.lax.stop_gradient)),
        ),
        PAIR,
        "gradients",
    ),
}


def pair(synapse, a=None, b=None):
    """A network of three and two units."""
    a, b = a or hl.TanhLayer(3, tau=0.5), b or hl.TanhLayer(2)
    return hl.HAM({"a": a, "b": b}, {"s": synapse}, [(("a", "b"), "s")])


SQUARE_UPHILL = with_rule(lambda x: jnp.sum(x**2) / 2, lambda x: (-x,))
STRONG = hl.DenseSynapse([3, 2], W=jnp.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
# The network, the part that is broken ("" for the whole), and the law.
NETWORKS = {
    "a synapse with a rule of the wrong sign": (
        pair(SYNAPSES["a rule of the wrong sign"][0]),
        "connection s(a, b)",
        "gradient",
    ),
    "a hidden layer with a rule of the wrong sign": (
        pair(hl.HiddenSynapse([3, 2], 4, key=jax.random.key(0), hidden_lagrangian=SQUARE_UPHILL)),
        "connection s(a, b)",
        "gradient",
    ),
    "a synapse without minus": (pair(Minus()), "connection s(a, b)", "sign"),
    "a concave layer": (
        pair(STRONG, b=hl.Layer(lambda x: -jnp.sum(jnp.sqrt(1 + x**2)), 2)),
        "layer b",
        "convex",
    ),
    "weights that outgrow the units": (
        pair(STRONG, hl.IdentityLayer(3), hl.IdentityLayer(2)),
        "",
        "bounded",
    ),
    "exponential units over linear ones": (
        pair(STRONG, hl.IdentityLayer(3), hl.ExpLayer(2)),
        "",
        "bounded",
    ),
}


class Blocks(hl.AbstractEnergyModel):
    """Two layers, the second of which is in no block."""

    tau: jax.Array

    def energy(self, x):
        return jnp.sum(x["a"] ** 2, -1) / 2 + jnp.sum((x["b"] - 1) ** 2, -1) / 2

    def activations(self, x):
        return x

    def dEdg(self, x):
        return {"a": x["a"], "b": x["b"] - 1}

    def blocks(self):
        return ({"a": True, "b": False},)


class Wasteful(hl.AbstractEnergyModel):
    """A right model that evaluates its activation twice, and compiles again for another τ."""

    layer: hl.Layer
    tau: float = 0.5

    def energy(self, x):
        g = self.layer.g(x)
        return self.layer.energy(x) - jnp.sum(g, -1) ** 2 / 4

    def activations(self, x):
        return self.layer.g(x)

    def dEdg(self, x):
        both = jnp.sum(self.layer.g(x), -1, keepdims=True) + jnp.sum(
            self.layer.g(x), -1, keepdims=True
        )
        return self.layer.dEdg(x) - both / 4


def noise_of(x):
    """Noise by one key for every shape: a batch gets other noise than its samples alone."""
    return jr.normal(jr.key(0), x.shape, x.dtype)


INPUT = jnp.array([1.0, -0.5, 0.3, 0.0, 2.0], jnp.float32)


def coupled(layer, x, y):
    """½ Σ x y, of neighbours."""
    return jnp.sum(x[..., 1:] * y[..., :-1], -1) / 2


def neighbours(g):
    pads = [(0, 0)] * (g.ndim - 1)
    return (jnp.pad(g[..., 1:], [*pads, (0, 1)]) + jnp.pad(g[..., :-1], [*pads, (1, 0)])) / 2


def bump(layer, x):
    return layer.energy(x) - jnp.sum(layer.g(x), -1) // 1


# The model, a bound of its energy, and the law.
MODELS = {
    "x where g belongs": (
        WrongModel(
            energy=lambda layer, x: layer.energy(x) - coupled(layer, x, layer.g(x)),
            dEdg=lambda layer, x: layer.dEdg(x) - neighbours(layer.g(x)),
        ),
        -1e9,  # far below the states that are drawn
        "drive",
    ),
    "an activation of another Lagrangian": (
        WrongModel(activations=lambda layer, x: jnp.tanh(3 * (x - layer.bias))),
        None,
        "drive",
    ),
    "inputs of the wrong sign": (
        WrongModel(
            energy=lambda layer, x: layer.energy(x) - jnp.sum(INPUT * layer.g(x), -1),
            dEdg=lambda layer, x: layer.dEdg(x) + INPUT,
        ),
        None,
        "drive",
    ),
    "a bias in one place only": (WrongModel(dEdg=lambda layer, x: x), None, "drive"),
    "a key used twice": (
        WrongModel(
            energy=lambda layer, x: layer.energy(x) + jnp.sum(noise_of(x) * layer.g(x), -1),
            dEdg=lambda layer, x: layer.dEdg(x) + noise_of(x),
        ),
        None,
        "batch",
    ),
    "an energy that rounds": (
        WrongModel(energy=bump, dEdg=lambda layer, x: layer.dEdg(x)),
        None,
        "continuous",
    ),
    "a random energy": (
        WrongModel(energy=lambda layer, x: layer.energy(x) * CHANCE.uniform(1, 2)),
        None,
        "jit",
    ),
    "a constant of float64": (
        WrongModel(energy=lambda layer, x: layer.energy(x) * np.ones(())[None][0]),
        None,
        "dtype",
    ),
    "blocks without a layer": (Blocks(jnp.array(1.0)), 0.0, "rest"),
    "a rest beside the minimum": (
        # The bias is neither a state that is drawn nor the end of a solve, so that only the laws of
        # the rest see the error.
        WrongModel(
            hl.TanhLayer(5, tau=0.5, bias=jnp.array([0.3, -0.7, 0.25, 1.8, -1.6])),
            dEdg=lambda layer, x: layer.dEdg(x) - 1e-6 * jnp.exp(-((1e6 * layer.dEdg(x)) ** 2)),
        ),
        None,
        "rest",
    ),
    "a bias without gradient": (
        WrongModel(dEdg=lambda layer, x: x - jax.lax.stop_gradient(layer.bias)),
        None,
        "gradients",
    ),
}
STATES = {"blocks without a layer": {"a": jnp.zeros(3), "b": jnp.zeros(2)}}
