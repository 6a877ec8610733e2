"""Lower bounds of energies, where a sufficient condition gives one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

import hopfield_layers as hl

from .kinds import checked_model, is_of_the_library
from .verdict import Measured, rounding


# The bounds hold for the library's own formulas, so classes are compared by identity.
_SIMPLEX = (hl.LSoftmax, hl.LGhostmax, hl.LSparsemax, hl.LEntmax)
# All but these have L(h) ≤ L(|h|), and increase where h ≥ 0. The alignment of each synapse is then
# largest for the absolute values of its weights and activations.
_NORMS = (hl.LLayerNorm, hl.LSphericalNorm)


def energy_bound(model: hl.AbstractEnergyModel) -> Float[Array, ""] | None:
    """A number that E never falls below, or None if no known condition gives one.

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
    return None if descent is None else _bound_of_layers(model) - descent


@eqx.filter_jit
def _bound_of_layers(ham: hl.HAM) -> Array:
    """Σ −L(0)."""
    return sum((layer.energy_bound() for layer in ham.layers.values()), jnp.zeros(()))


def falls_without_end(model: hl.AbstractEnergyModel, x: PyTree) -> Measured:
    """A search for an energy without a lower bound, in float64: along a ray away from x, and along
    one in the direction to which repeated updates x ← x − u/2 lead from there.

    E falls without end if, as x becomes 2¹⁰ times as large twice, it falls by more than 2⁵ times as
    much each time, or if it leaves the range on the way. Not finding that proves nothing.
    """
    start, unravel = ravel_pytree(x)

    def update(_, x):
        moved = x - ravel_pytree(model.dEdg(unravel(x)))[0] / 2
        length = jnp.linalg.norm(moved)
        # Powers of a linear map, which converge to its steepest direction, stay in range.
        moved = jnp.where(length > 1e3, moved * (1e3 / length), moved)
        return jnp.where(jnp.isfinite(moved), moved, x)

    directions = jnp.stack([start, jax.lax.fori_loop(0, 64, update, start)])
    scales = 2.0 ** jnp.arange(31.0)

    def along(direction):
        def at(scale):
            state = unravel(scale * direction)
            products = scale * direction * ravel_pytree(model.activations(state))[0]
            energy = model.energy(state)
            return energy + rounding(energy, jnp.sum(jnp.abs(products)), start.size)

        return jax.lax.map(at, scales)

    energies = jax.lax.map(along, directions)
    ten, twenty, thirty = energies[:, 10::10].T
    falls = (ten < 0) & (twenty < 32 * ten) & (thirty < 32 * twenty)
    lowest = jnp.min(energies, axis=1, where=jnp.isfinite(energies), initial=0)
    falls |= lowest < -1e100
    worst = jnp.argmin(jnp.where(falls, lowest, jnp.inf))
    terms = {"x": directions[worst], "E at 1, 2, 4, … times x": energies[worst]}
    return Measured(falls[worst], 0.0, 0.5, terms, subject="any bound", has_sides=False)


def _descent_by_squares(ham: hl.HAM) -> Array | None:
    """How far E may fall if ½‖z‖² of identity units outgrows the one connection, or else None."""
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


@eqx.filter_jit
def _descent_by_ranges(ham: hl.HAM) -> Array | None:
    """Σ A(r), if every activation is bounded and every alignment is monotone in them."""
    descent = jnp.zeros(())
    for connection in ham.connections:
        synapse = ham.synapses[connection.synapse]
        ranges = [_range(ham.layers[name]) for name in connection.layers]
        hidden = getattr(synapse, "hidden_lagrangian", hl.LIdentity())
        if (
            not is_of_the_library(synapse)
            or type(hidden) in _NORMS
            or any(r is None for r in ranges)
        ):
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
