"""Lower bounds of energies, where a sufficient condition gives one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..lagrangians import (
    LCosh,
    LEntmax,
    LExp,
    LGhostmax,
    LIdentity,
    LLayerNorm,
    LPower,
    LRelu,
    LRepu,
    LRexp,
    LSigmoid,
    LSoftmax,
    LSparsemax,
    LSphericalNorm,
    LTanh,
)
from ..layers import Layer
from ..network import HAM
from ..synapses import (
    AttentionSynapse,
    BiasSynapse,
    ConvSynapse,
    DenseSynapse,
    HiddenSynapse,
    HiddenTensorSynapse,
    MixerSynapse,
    SelfAttentionSynapse,
)


_SIMPLEX = (LSoftmax, LGhostmax, LSparsemax, LEntmax)
# Hidden Lagrangians with L(h) ≤ L(|h|), and increasing where h ≥ 0.
_INCREASING = (
    *_SIMPLEX,
    LCosh,
    LExp,
    LIdentity,
    LPower,
    LRelu,
    LRepu,
    LRexp,
    LSigmoid,
    LTanh,
)
_OF_ABSOLUTES = (
    AttentionSynapse,
    BiasSynapse,
    ConvSynapse,
    DenseSynapse,
    HiddenSynapse,
    HiddenTensorSynapse,
    MixerSynapse,
    SelfAttentionSynapse,
)


def energy_bound(model: Any) -> Array | None:
    """A number that E never falls below, or None where no condition that is known gives one.

    −L(0) for a layer. For a [`hopfield_layers.HAM`][], in the order of preference:

    - identity units and rectified or identity ones with E_s = −g₁·W·g₂ and ‖W‖₂ ≤ 1: 0;
    - identity units z, and rows of a simplex p: with E_s = −z·W·p, −½ max ‖Wⱼ‖² − L(0); with the
      memory E_s = −L_hid(Wᵀz) of a simplex, −½ max ‖W_μ‖² − L_hid(0);
    - layers with bounded activations, |g| ≤ r: Σ −L(0) − Σ A(r), the alignments A with the absolute
      values of the weights.

    Source: Krotov & Hopfield, arXiv:2008.06996.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import energy_bound
    >>> layers = {"x": hl.TanhLayer(3), "y": hl.SoftmaxLayer(2)}
    >>> W = hl.DenseSynapse([3, 2], W=jnp.ones((3, 2)))
    >>> ham = hl.HAM(layers, {"W": W}, [(("x", "y"), "W")])
    >>> print(f"{energy_bound(ham):.3f}")  # −ln 2 − 3·2
    -6.693

    ```
    """
    if type(model) is Layer:
        return model.energy_bound()
    if type(model) is not HAM:
        return None
    found = _of_identity_units(model)
    return _of_bounded_activations(model) if found is None else found


def _of_identity_units(ham: HAM) -> Array | None:
    """Where the square of z = x − b makes up for the one connection there is."""
    if len(ham.connections) != 1:
        return None
    (connection,) = ham.connections
    synapse: Any = ham.synapses[connection.synapse]
    hidden: Any = getattr(synapse, "hidden_lagrangian", None)
    layers = [ham.layers[name] for name in connection.layers]
    others = [layer for name, layer in ham.layers.items() if name not in connection.layers]
    rest = sum((layer.energy_bound() for layer in others), jnp.zeros(()))
    kinds = [type(layer.lagrangian) for layer in layers]
    if len(set(connection.layers)) < len(layers) or kinds[0] is not LIdentity:
        return None
    if type(synapse) is DenseSynapse and len(layers) == 2:
        if kinds[1] in (LIdentity, LRelu) and jnp.linalg.norm(synapse.W, 2) <= 1:
            return rest
        if kinds[1] in _SIMPLEX and len(layers[1].shape) == 1:
            longest = jnp.max(jnp.sum(synapse.W**2, axis=0))
            return rest - longest / 2 + layers[1].energy_bound()
    if type(synapse) is HiddenSynapse and len(layers) == 1 and type(hidden) in _SIMPLEX:
        (W,) = synapse.Ws
        at_0 = hidden(jnp.zeros(W.shape[1]))
        return rest - jnp.max(jnp.sum(W**2, axis=0)) / 2 - at_0
    return None


def _of_bounded_activations(ham: HAM) -> Array | None:
    ranges = {name: _range(layer) for name, layer in ham.layers.items()}
    bound = sum((layer.energy_bound() for layer in ham.layers.values()), jnp.zeros(()))
    for connection in ham.connections:
        synapse: Any = ham.synapses[connection.synapse]
        rs = [ranges[name] for name in connection.layers]
        hidden: Any = getattr(synapse, "hidden_lagrangian", None)
        known = type(synapse) in _OF_ABSOLUTES and (hidden is None or type(hidden) in _INCREASING)
        if not known or any(r is None for r in rs):
            return None
        weights, rest = eqx.partition(synapse, eqx.is_inexact_array)
        bound = bound + eqx.combine(jax.tree.map(jnp.abs, weights), rest).energy(*rs)
    return bound


def _range(layer: Layer) -> Array | None:
    """r with |g| ≤ r, or None where there is none."""
    lagrangian: Any = layer.lagrangian
    axis = getattr(lagrangian, "axis", -1)
    kind = type(lagrangian)
    if kind in (*_SIMPLEX, LTanh):
        size = jnp.ones(())
    elif kind is LSigmoid:
        size = jnp.abs(lagrangian.scale)
    elif kind is LLayerNorm:
        size = jnp.abs(lagrangian.gamma) * layer.shape[axis] ** 0.5 + jnp.abs(lagrangian.delta)
    elif kind is LSphericalNorm:
        size = jnp.abs(lagrangian.gamma) + jnp.abs(lagrangian.delta)
    else:
        return None
    return jnp.broadcast_to(size, layer.shape)
