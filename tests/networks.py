"""Networks to relax: chains, binary networks, and random ones whose energy is bounded."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import hopfield_layers as hl


_T = TypeVar("_T")


def with_dtype(tree: _T, dtype) -> _T:
    """The tree with its floating arrays in this dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def chain(scale: float, sizes: tuple[int, ...] = (100, 80, 60, 40, 10)) -> hl.HAM:
    """Tanh layers, each joined to the next by weights of size scale·(ab)^(−1/4)."""
    layers = {f"layer{i}": hl.TanhLayer(size) for i, size in enumerate(sizes)}
    synapses, connections = {}, []
    for i, key in enumerate(jr.split(jr.key(0), len(sizes) - 1)):
        a, b = sizes[i : i + 2]
        W = scale * (a * b) ** -0.25 * jr.normal(key, (a, b))
        synapses[f"W{i}"] = hl.DenseSynapse((a, b), W=W)
        connections.append(((f"layer{i}", f"layer{i + 1}"), f"W{i}"))
    return hl.HAM(layers, synapses, connections)


def binary(load: float, flips: float, dtype, num_samples: int) -> tuple[hl.HAM, dict]:
    """The textbook's binary network of 200 units, and stored patterns with some units flipped."""
    size = 200
    patterns = jr.rademacher(jr.key(3), (round(load * size), size)).astype(dtype)
    W = patterns.T @ patterns / size
    W = (W - jnp.diag(jnp.diag(W))) / 2
    ham = hl.HAM(
        {"x": hl.TanhLayer(size, beta=20.0)},
        {"W": hl.DenseSynapse((size, size), W=W)},
        [(("x", "x"), "W")],
    )
    chosen = jr.randint(jr.key(5), (num_samples,), 0, len(patterns))
    flipped = jr.uniform(jr.key(4), (num_samples, size)) < flips
    return with_dtype(ham, dtype), {"x": patterns[chosen] * jnp.where(flipped, -1, 1)}


_SIMPLEX = (hl.LSoftmax, hl.LGhostmax, hl.LSparsemax, hl.LEntmax)
_BOUNDED = (*_SIMPLEX, hl.LTanh, hl.LSigmoid, hl.LLayerNorm, hl.LSphericalNorm)
_UNBOUNDED = (hl.LIdentity, hl.LRelu, hl.LRepu, hl.LPower, hl.LExp, hl.LRexp, hl.LCosh)
_SHAPES = ((5,), (3, 4), (4, 4, 2), (6,))
# Uniform exponents of 10 or, for powers, uniform values.
_PARAMETERS = {"beta": (-1, 1), "alpha": (1.1, 3.0), "n": (1.5, 4.0), "p": (1.5, 4.0)}


def draws_of(seed: int) -> Callable[[Any], tuple]:
    """A function of a key that draws a network of one random structure, x0, a clamp and inputs.

    It has one to four layers of any Lagrangian, joined so that the energy has a lower bound: layers
    with unbounded activations by synapses whose alignment grows at most linearly with these.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    kinds = [_choice(rng, _UNBOUNDED if rng.random() < 0.4 else _BOUNDED) for _ in range(count)]
    shapes = [_choice(rng, _SHAPES) for _ in kinds]
    pairs: list[tuple[int, ...]] = [(int(rng.integers(i)), i) for i in range(1, count)]
    if count > 2 and rng.random() < 0.5:
        pairs.append(tuple(map(int, rng.choice(count, 2, replace=False))))
    if count == 1 or rng.random() < 0.4:
        pairs.append((int(rng.integers(count)),))
    synapses = [_synapse(rng, [(kinds[i], shapes[i]) for i in pair]) for pair in pairs]
    is_clamped, has_inputs = rng.random() < 0.3 and count > 1, rng.random() < 0.4

    def draw(key):
        keys = iter(jr.split(key, 20 * count))
        layers = {}
        for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
            tau = 10 ** jr.uniform(next(keys), (), minval=-3, maxval=3)
            bias = jr.normal(next(keys), shape)
            layers[f"layer{i}"] = hl.Layer(_lagrangian(kind, next(keys)), shape, tau, bias=bias)
        named = {f"synapse{i}": make(next(keys)) for i, make in enumerate(synapses)}
        connections = [
            (tuple(f"layer{i}" for i in pair) * _repeats(named[f"synapse{n}"], pair), f"synapse{n}")
            for n, pair in enumerate(pairs)
        ]
        ham = hl.HAM(layers, named, connections)
        x0 = ham.init_states(rng=next(keys))
        inputs = ham.init_states(rng=next(keys)) if has_inputs else None
        clamp = {name: jnp.full(x.shape, name == "layer0") for name, x in x0.items()}
        return ham, x0, clamp if is_clamped else None, inputs

    return draw


def _choice(rng, items):
    return items[rng.integers(len(items))]


def _repeats(synapse, pair) -> int:
    """2 for a dense synapse of one layer, which takes it twice."""
    return 2 if len(pair) == 1 and isinstance(synapse, hl.DenseSynapse) else 1


def _lagrangian(kind, key):
    """A Lagrangian with random parameters; steep exponentials would leave float32's range."""
    fields = [name for name in _PARAMETERS if name in kind.__dataclass_fields__]
    parameters = {}
    for name, subkey in zip(fields, jr.split(key, 4), strict=False):
        low, high = _PARAMETERS[name]
        if name == "beta" and kind in _UNBOUNDED:
            high = 0.3
        value = jr.uniform(subkey, (), minval=low, maxval=high)
        parameters[name] = 10**value if name == "beta" else value
    return kind(**parameters)


def _synapse(rng, ends):
    """A function of a key that draws a synapse of a random kind that suits these layers."""
    shapes = [shape for _, shape in ends]
    num_unbounded = sum(kind in _UNBOUNDED for kind, _ in ends)
    simplex = _choice(rng, _SIMPLEX)
    options = ["memory"]
    if num_unbounded == 0:
        options += ["hidden", "dense", "attention"]
    elif num_unbounded == 1 and len(ends) == 2:
        options += ["dense"]
    if num_unbounded < 2 and len(ends) == 2 and {len(shape) for shape in shapes} == {3}:
        options += ["convolution"]
    if any(len(shape) < 2 for shape in shapes) and "attention" in options:
        options.remove("attention")
    option, hidden = _choice(rng, options), _choice(rng, (hl.LTanh, hl.LRelu, hl.LSoftmax))

    def make(key):
        key, size, beta = jr.split(key, 3)
        stdinit = 10 ** jr.uniform(size, (), minval=-1, maxval=0.5)
        weights = {"key": key, "stdinit": stdinit}
        if option == "memory":
            return hl.HiddenSynapse(
                shapes, 7, hidden_lagrangian=_lagrangian(simplex, beta), **weights
            )
        if option == "hidden":
            return hl.HiddenSynapse(shapes, 7, hidden_lagrangian=hidden(), **weights)
        if option == "convolution":
            return hl.ConvSynapse(shapes, 3, **weights)
        if option == "attention" and len(shapes) == 1:
            return hl.SelfAttentionSynapse(shapes[0], zspace_dim=3, **weights)
        if option == "attention":
            return hl.AttentionSynapse(shapes, zspace_dim=3, **weights)
        return hl.DenseSynapse(shapes * (3 - len(shapes)), **weights)

    return make
