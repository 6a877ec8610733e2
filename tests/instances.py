"""Lagrangians, layers, synapses, models and networks of every kind, for tests over all of them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

import hopfield_layers as hl


SHAPE = (3, 4)


def soft_absolute(x: Array) -> Array:
    return jnp.sum(jnp.sqrt(1 + x**2))


LAGRANGIANS = {
    "identity": hl.LIdentity(),
    "repu": hl.LRepu(n=3.0),
    "repu 1.5": hl.LRepu(n=1.5),
    "relu": hl.LRelu(),
    "power": hl.LPower(p=2.5),
    "power 2": hl.LPower(),
    "exp": hl.LExp(beta=1.3),
    "rexp": hl.LRexp(beta=0.9),
    "cosh": hl.LCosh(beta=0.8),
    "tanh": hl.LTanh(beta=1.7),
    "sigmoid": hl.LSigmoid(beta=2.0, scale=1.5),
    "softmax": hl.LSoftmax(beta=0.7),
    "softmax, first axis": hl.LSoftmax(beta=2.0, axis=0),
    "ghostmax": hl.LGhostmax(beta=1.2),
    "sparsemax": hl.LSparsemax(beta=0.8),
    "entmax": hl.LEntmax(beta=0.9),
    "entmax 1.1": hl.LEntmax(beta=1.1, alpha=1.1),
    "entmax 2.5": hl.LEntmax(alpha=2.5, axis=0),
    "layer norm": hl.LLayerNorm(gamma=1.2, delta=0.3),
    "spherical norm": hl.LSphericalNorm(gamma=0.8, delta=jnp.array([0.1, -0.2, 0.0, 0.3])),
    "callable": hl.as_lagrangian(soft_absolute, coupled_axes=()),
}

# Lagrangians that occur above, with other parameters; no layer is made of these.
VARIANTS = ("power 2", "entmax 1.1")

LAYERS = {
    name: hl.Layer(
        lagrangian,
        SHAPE,
        tau=[0.5, 1.0, 2.0][i % 3],
        bias=None if i % 2 else 0.3 * jr.normal(jr.key(i), SHAPE),
    )
    for i, (name, lagrangian) in enumerate(LAGRANGIANS.items())
    if name not in VARIANTS
}


class Network(hl.AbstractEnergyModel):
    """Two layers joined by −g₁·W·g₂, as a user might write it."""

    layers: dict[str, hl.Layer]
    W: Array

    def __init__(self, layers: dict[str, hl.Layer], W: Array):
        self.layers = layers
        self.W = W

    @property
    def tau(self) -> dict[str, Array]:
        return {name: layer.tau for name, layer in self.layers.items()}

    def energy(self, x):
        g = self.activations(x)
        energies = [layer.energy(x[name]) for name, layer in self.layers.items()]
        return sum(energies, -jnp.einsum("...i,ij,...j->...", g["a"], self.W, g["b"]))

    def activations(self, x):
        return {name: layer.g(x[name]) for name, layer in self.layers.items()}

    def dEdg(self, x):
        g, z = self.activations(x), {n: layer.dEdg(x[n]) for n, layer in self.layers.items()}
        return {"a": z["a"] - g["b"] @ self.W.T, "b": z["b"] - g["a"] @ self.W}

    def blocks(self) -> tuple[dict[str, bool], ...]:
        """W joins no layer to itself, so that each layer is a block."""
        return {"a": True, "b": False}, {"a": False, "b": True}

    def coupled(self, held: PyTree) -> PyTree:
        """The units whose activation depends on a held one, as each layer declares them."""
        return {name: layer.coupled(held[name]) for name, layer in self.layers.items()}


def network(a: hl.Layer, b: hl.Layer, scale: float = 1.0) -> Network:
    """A `Network` of these layers, with W from N(0, scale²)."""
    return Network({"a": a, "b": b}, scale * jr.normal(jr.key(0), a.shape + b.shape))


def two_layers(dtype) -> tuple[Network, dict[str, Array]]:
    """784 tanh units with τ = 1, joined to 1000 softmax units with τ = 0.1, and their x0."""
    W = 6 / 28 * jr.normal(jr.key(0), (784, 1000), dtype)
    layers = {"a": hl.TanhLayer(784), "b": hl.SoftmaxLayer(1000, beta=5.0, tau=0.1)}
    noise = jr.normal(jr.key(1), (784,), dtype)
    return Network(layers, W), {"a": 2 * W[:, 0] + 0.5 * noise, "b": jnp.zeros(1000, dtype)}


class Memory(hl.AbstractEnergyModel):
    """A modern Hopfield memory: identity units with −lse(β X g)/β."""

    patterns: Array
    beta: Array
    tau: Array

    def energy(self, x):
        scores = self.beta * x @ self.patterns.T
        return jnp.sum(x**2, axis=-1) / 2 - jax.nn.logsumexp(scores, axis=-1) / self.beta

    def activations(self, x):
        return x

    def dEdg(self, x):
        return x - jax.nn.softmax(self.beta * x @ self.patterns.T) @ self.patterns


class Springs(hl.AbstractEnergyModel):
    """E = Σ k (x − c)²/2 − 5. For k > 2 the update x − u is further from c than x is."""

    stiffness: Array
    centre: Array
    tau: Array

    def energy(self, x):
        return jnp.sum(self.stiffness * (x - self.centre) ** 2, axis=-1) / 2 - 5

    def activations(self, x):
        return x

    def dEdg(self, x):
        return self.stiffness * (x - self.centre)


BIAS = jnp.array([0.1, -0.2, 0.3, 0.0, 0.2])
NETWORKS = {
    "tanh and softmax": network(
        hl.TanhLayer(5, beta=1.3, tau=1.0, bias=BIAS), hl.SoftmaxLayer(4, beta=2.0, tau=0.1)
    ),
    "identity and ReLU": network(
        hl.IdentityLayer(5, tau=2.0), hl.ReluLayer(4, tau=0.5, bias=BIAS[:4]), 0.3
    ),
    "memory": Memory(jr.normal(jr.key(1), (7, 5)), jnp.array(3.0), jnp.array(0.7)),
    "springs": Springs(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 0.0, -2.0]), jnp.array(0.5)),
}
# States of the models, which don't declare their shapes.
TEMPLATES = {
    "tanh and softmax": {"a": jnp.zeros(5), "b": jnp.zeros(4)},
    "identity and ReLU": {"a": jnp.zeros(5), "b": jnp.zeros(4)},
    "memory": jnp.zeros(5),
    "springs": jnp.zeros(3),
}
Draw = Callable[..., Array]


def draws(seed: int) -> Draw:
    """A function of a scale and a shape that draws from N(0, scale²): by NumPy, which compiles
    nothing.
    """
    rng = np.random.default_rng(seed)

    def normal(scale: float, *shape: int) -> Array:
        return jnp.asarray(scale * rng.normal(size=shape))

    return normal


CAUSAL = jnp.tril(jnp.ones((4, 5), bool), -1)  # the first query has no key


def _synapses(normal: Draw) -> dict[str, Any]:
    """One synapse of each kind, and of the kinds with options several."""
    return {
        "dense, one layer": hl.DenseSynapse([(2, 3)], W=normal(1.0, 6)),
        "dense": hl.DenseSynapse([(2, 3), 4], W=normal(1.0, 6, 4)),
        "dense, three layers": hl.DenseSynapse([3, (2, 2), 2], W=normal(1.0, 3, 4, 2)),
        "hidden": hl.HiddenSynapse([(2, 3), 4], 5, Ws=[normal(1.0, 6, 5), normal(1.0, 4, 5)]),
        "memory": hl.HiddenSynapse.from_patterns(normal(1.0, 5, 2, 3), hl.LSoftmax(beta=1.3)),
        "hidden tensor": hl.HiddenTensorSynapse(
            [(2, 2), 3],
            4,
            num_heads=2,
            hidden_lagrangian=hl.LSoftmax(),
            W=normal(1.0, 2, 4, 4, 3),
        ),
        "convolution": hl.ConvSynapse([(5, 4, 2), (5, 4, 3)], 3, kernel=normal(1.0, 3, 3, 2, 3)),
        "convolution, pooled": hl.ConvSynapse(
            [(5, 6, 2), (2, 3, 3)], (2, 3), pool="max", kernel=normal(1.0, 2, 3, 2, 3)
        ),
        "attention": hl.AttentionSynapse(
            [(2, 2, 3), (5, 4)],
            num_heads=2,
            zspace_dim=3,
            hidden_lagrangian=hl.LSoftmax(beta=0.8),
            Wq=normal(0.7, 3, 2, 3),
            Wk=normal(0.7, 4, 2, 3),
        ),
        "attention, masked": hl.AttentionSynapse(
            [(4, 3), (5, 4)],
            num_heads=2,
            zspace_dim=3,
            mask=CAUSAL,
            Wq=normal(0.7, 3, 2, 3),
            Wk=normal(0.7, 4, 2, 3),
        ),
        "self-attention": hl.SelfAttentionSynapse(
            (4, 3), zspace_dim=2, Wq=normal(0.7, 3, 1, 2), Wk=normal(0.7, 3, 1, 2)
        ),
        "mixer": hl.MixerSynapse(
            [(5, 3), (5, 2)], num_heads=2, zspace_dim=3, W=normal(0.5, 2, 3, 3, 2)
        ),
        "bias": hl.BiasSynapse((2, 3), b=normal(1.0, 2, 3)),
    }


SYNAPSES = _synapses(draws(20))


class Repulsion(eqx.Module):
    """An energy as a user might write it: ½ k Σ (g₁ + g₂)²."""

    strength: Array

    def energy(self, g1, g2):
        return self.strength * jnp.sum((g1 + g2) ** 2) / 2


def ripple(g: Array) -> Array:
    return 0.3 * jnp.sum(jnp.cos(2 * g))


def _hams(normal: Draw) -> dict[str, Any]:
    """Networks with every kind of connection."""
    return {
        "pair": hl.HAM(
            {
                "x": hl.IdentityLayer(6, bias=normal(0.3, 6)),
                "h": hl.SoftmaxLayer(4, beta=2.0, tau=0.1, bias=normal(0.3, 4)),
            },
            {"W": hl.DenseSynapse([6, 4], W=normal(1.0, 6, 4))},
            [(("x", "h"), "W")],
        ),
        "convolutional": hl.HAM(
            {
                "pixels": hl.TanhLayer((4, 4, 1), beta=1.5, bias=normal(0.3, 4, 4, 1)),
                "features": hl.SigmoidLayer((2, 2, 3), beta=2.0, tau=0.5),
                "label": hl.SoftmaxLayer(3, tau=0.2, bias=normal(0.3, 3)),
            },
            {
                "kernel": hl.ConvSynapse(
                    [(4, 4, 1), (2, 2, 3)], 3, pool="avg", kernel=normal(0.5, 3, 3, 1, 3)
                ),
                "readout": hl.DenseSynapse([(2, 2, 3), 3], W=normal(0.5, 12, 3)),
            },
            [(("pixels", "features"), "kernel"), (("features", "label"), "readout")],
        ),
        "transformer": hl.HAM(
            {"tokens": hl.LayerNormLayer((4, 3), delta=0.2, bias=normal(0.3, 4, 3))},
            {
                "attention": SYNAPSES["self-attention"],
                "memory": hl.HiddenSynapse([(4, 3)], 7, Ws=[normal(0.5, 12, 7)]),
            },
            [(("tokens",), "attention"), (("tokens",), "memory")],
        ),
        "shared": hl.HAM(
            {
                "a": hl.TanhLayer(3, bias=normal(0.3, 3)),
                "b": hl.SigmoidLayer(3, tau=jnp.array([0.3, 1.0, 3.0])),
                "c": hl.GhostmaxLayer(3, tau=2.0),
                "unused": hl.ReluLayer((2, 2), bias=normal(0.3, 2, 2)),
            },
            {
                "triple": hl.DenseSynapse([3, 3, 3], W=normal(1.0, 3, 3, 3)),
                "repulsion": Repulsion(jnp.array(0.7, float)),
                "ripple": ripple,
            },
            [
                (("a", "b", "c"), "triple"),
                (("a", "b"), "repulsion"),
                (("b", "c"), "repulsion", "between b and c"),
                (["b"], "ripple"),
            ],
        ),
    }


HAMS = _hams(draws(21))

# Lower bounds of the models for which `energy_bound` knows none, where there is one.
BOUNDS = {
    # ½‖x‖² − max x·pattern − lse(0)
    "memory": lambda m: -jnp.max(jnp.sum(m.patterns**2, 1)) / 2 - jnp.log(7) / m.beta,
    "springs": lambda m: -5.0,
    "tanh and softmax": lambda m: m.layers["b"].energy_bound() - jnp.sum(jnp.abs(m.W)),
    # The repulsion is not negative, and the ripple is at least −0.3 for each of its three units.
    "shared": lambda m: (
        sum(layer.energy_bound() for layer in m.layers.values())
        - jnp.sum(jnp.abs(m.synapses["triple"].W))
        - 0.9
    ),
}
