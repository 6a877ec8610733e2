"""Lower bounds of energies, where a sufficient condition gives one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import hopfield_layers as hl


# The bounds hold for the library's own formulas, so classes are compared by identity.
_SIMPLEX = (hl.LSoftmax, hl.LGhostmax, hl.LSparsemax, hl.LEntmax)
# All but these have L(h) ≤ L(|h|), and increase where h ≥ 0. The alignment of each synapse is then
# largest for the absolute values of its weights and activations.
_NORMS = (hl.LLayerNorm, hl.LSphericalNorm)


def energy_bound(model: hl.AbstractEnergyModel) -> Float[Array, ""] | None:
    """A number that E never falls below, or None where no condition that is known gives one.

    −L(0) for a layer. For a [`hopfield_layers.HAM`][], in the order of preference:

    - identity units and rectified or identity ones with E_s = −g₁·W·g₂ and ‖W‖₂ ≤ 1: 0;
    - identity units z, and rows of a simplex p: with E_s = −z·W·p, −½ max ‖Wⱼ‖² − L(0); with the
      memory E_s = −L_hid(Wᵀz + b) of a simplex, −½ max ‖W_μ‖² − L_hid(b);
    - layers with bounded activations, |g| ≤ r: Σ −L(0) − Σ A(r), the alignments A with the absolute
      values of the weights.

    Source: Krotov & Hopfield, arXiv:2008.06996.

    Examples:
        >>> layers = {"x": hl.TanhLayer(3), "y": hl.SoftmaxLayer(2)}
        >>> W = hl.DenseSynapse([3, 2], W=jnp.ones((3, 2)))
        >>> ham = hl.HAM(layers, {"W": W}, [(("x", "y"), "W")])
        >>> print(f"{hl.testing.energy_bound(ham):.3f}")  # −ln 2 − 3·2
        -6.693
    """
    checked_model(model)
    if type(model) is hl.Layer:
        return model.energy_bound()
    if type(model) is not hl.HAM:
        return None
    # How far E may fall below Σ −L(0), the least energy of the layers alone.
    descent = _descent_by_squares(model)
    if descent is None:
        descent = _descent_by_ranges(model)
    bounds = [layer.energy_bound() for layer in model.layers.values()]
    return None if descent is None else sum(bounds, -descent)


def checked_model(model: hl.AbstractEnergyModel) -> hl.AbstractEnergyModel:
    """The model, or an error that names what it should be."""
    if isinstance(model, hl.AbstractEnergyModel):
        return model
    instead = "Layer(lagrangian, shape)" if isinstance(model, hl.AbstractLagrangian) else "a Layer"
    raise TypeError(f"Expected an AbstractEnergyModel, {instead} for instance, got {model!r}.")


def _descent_by_squares(ham: hl.HAM) -> Array | None:
    """½ max ‖W_μ‖² or so, if ½‖z‖² of identity units outgrows the one connection."""
    if len(ham.connections) != 1:
        return None
    (connection,) = ham.connections
    synapse = ham.synapses[connection.synapse]
    joined = [ham.layers[name] for name in connection.layers]
    kinds = [type(layer.lagrangian) for layer in joined]
    if len(set(connection.layers)) < len(joined) or kinds[0] is not hl.LIdentity:
        return None
    if type(synapse) is hl.DenseSynapse and len(joined) == 2:
        if kinds[1] in (hl.LIdentity, hl.LRelu) and jnp.linalg.norm(synapse.W, 2) <= 1:
            return jnp.zeros(())
        if kinds[1] in _SIMPLEX and len(joined[1].shape) == 1:
            return jnp.max(jnp.sum(synapse.W**2, axis=0)) / 2
    if type(synapse) is not hl.HiddenSynapse or len(joined) > 1:
        return None
    if type(synapse.hidden_lagrangian) in _SIMPLEX:
        stored = True if synapse.mask is None else synapse.mask
        squares = jnp.sum(_wide(synapse.Ws[0]) ** 2, axis=0)
        # At g = 0 the alignment is L_hid(b).
        least = synapse.alignment(jnp.zeros(joined[0].shape))
        return jnp.max(jnp.where(stored, squares, 0)) / 2 + least
    return None


def _wide(weights: Array) -> Array:
    """Weights in float32 at least, as integers of 8 bits don't hold their squares."""
    return weights.astype(jnp.promote_types(weights.dtype, jnp.float32))


def _descent_by_ranges(ham: hl.HAM) -> Array | None:
    """Σ A(r), if every activation is bounded and every alignment is monotone in them."""
    descent = jnp.zeros(())
    for connection in ham.connections:
        synapse = ham.synapses[connection.synapse]
        ranges = [_range(ham.layers[name]) for name in connection.layers]
        hidden = getattr(synapse, "hidden_lagrangian", hl.LIdentity())
        # Classes that the library exports, and no wrappers of callables.
        known = all(getattr(hl, type(a).__name__, None) is type(a) for a in (synapse, hidden))
        if not known or type(hidden) in _NORMS or any(r is None for r in ranges):
            return None
        weights, rest = eqx.partition(synapse, lambda a: eqx.is_array(a) and a.dtype != bool)
        magnitudes = jax.tree.map(lambda a: jnp.abs(_wide(a)), weights)
        descent -= eqx.combine(magnitudes, rest).energy(*ranges)
    return descent


def _range(layer: hl.Layer) -> Array | None:
    """r with |g| ≤ r, or None where there is none."""
    lagrangian = layer.lagrangian
    if type(lagrangian) in (*_SIMPLEX, hl.LTanh):
        r = 1.0
    elif type(lagrangian) is hl.LSigmoid:
        r = abs(lagrangian.scale)
    elif type(lagrangian) is hl.LLayerNorm or type(lagrangian) is hl.LSphericalNorm:
        size = layer.shape[lagrangian.axis] if type(lagrangian) is hl.LLayerNorm else 1
        r = abs(lagrangian.gamma) * size**0.5 + abs(lagrangian.delta)
    else:
        return None
    return jnp.broadcast_to(r, layer.shape)
