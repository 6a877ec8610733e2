"""Neuron layers from Lagrangians, networks of them, and the dynamics that lets them settle.

A layer is a convex scalar function L (its Lagrangian) of a state x, shifted by a bias b: z = x − b.

| | |
|---|---|
| activation | g = ∂L/∂z |
| energy, the Legendre transform | E = Σ z·g − L(z) = L*(g) ≥ −L(0) |
| network of layers and synapses | E = Σ layers E(x) + Σ synapses E_s(g₁, g₂, …) |
| drive, with an external input I | u = ∂E/∂g = z + ∂E_s/∂g − I |
| `flow="state"` | τ dx/dt = −∂E/∂x = −H u, with H = ∂²L/∂x² |
| `flow="activation"` | τ dx/dt = −∂E/∂g = −u |
| descent | dE/dt = −‖H u‖²/τ and −uᵀH u/τ, never positive |

Source: Krotov & Hopfield, "Large associative memory problem in neurobiology and machine learning"
(ICLR 2021), arXiv:2008.06996.

The examples of all docstrings begin with `import hopfield_layers as hl`, `import jax` and
`import jax.numpy as jnp`.
"""

import importlib
import importlib.metadata
import types
import typing


# fmt: off
# isort: off
from .dynamics import (
    BlockUpdates, energy_descent, EnergyFlow, ETD2RK, ETD4RK, fixed_points, FixedPoints,
    InputsWithJumps, langevin, newton_krylov, PiecewiseConstantInterpolation, relax, Relaxation,
    solve,
)
from .lagrangians import (
    AbstractLagrangian, as_lagrangian, LCosh, LEntmax, LExp, LGhostmax, LIdentity, LLayerNorm,
    LPower, LRelu, LRepu, LRexp, LSigmoid, LSoftmax, LSparsemax, LSphericalNorm, LTanh,
)
from .layer_constructors import (
    CoshLayer, EntmaxLayer, ExpLayer, GhostmaxLayer, IdentityLayer, LayerNormLayer, make_layer,
    MakeLayer, PowerLayer, ReluLayer, RepuLayer, RexpLayer, SigmoidLayer, SoftmaxLayer,
    SparsemaxLayer, SphericalNormLayer, TanhLayer,
)
from .layers import Layer
from .model import AbstractEnergyModel
from .network import HAM
from .synapses import (
    AbstractSynapse, AttentionSynapse, BiasSynapse, ConvSynapse, DenseSynapse, HiddenSynapse,
    HiddenTensorSynapse, MixerSynapse, SelfAttentionSynapse,
)
from .weights import trainable_weights
# isort: on
# fmt: on

if typing.TYPE_CHECKING:
    from . import plotting as plotting, testing as testing


__version__ = importlib.metadata.version("hopfield_layers")

# fmt: off
__all__ = [
    "ETD2RK", "ETD4RK", "HAM", "AbstractEnergyModel", "AbstractLagrangian", "AbstractSynapse",
    "AttentionSynapse", "BiasSynapse", "BlockUpdates", "ConvSynapse", "CoshLayer",
    "DenseSynapse", "EnergyFlow", "EntmaxLayer", "ExpLayer", "FixedPoints", "GhostmaxLayer",
    "HiddenSynapse", "HiddenTensorSynapse", "IdentityLayer", "InputsWithJumps", "LCosh", "LEntmax",
    "LExp", "LGhostmax", "LIdentity", "LLayerNorm", "LPower", "LRelu", "LRepu", "LRexp", "LSigmoid",
    "LSoftmax", "LSparsemax", "LSphericalNorm", "LTanh", "Layer", "LayerNormLayer", "MakeLayer",
    "MixerSynapse", "PiecewiseConstantInterpolation", "PowerLayer", "Relaxation", "ReluLayer",
    "RepuLayer", "RexpLayer", "SelfAttentionSynapse", "SigmoidLayer", "SoftmaxLayer",
    "SparsemaxLayer", "SphericalNormLayer", "TanhLayer", "as_lagrangian", "energy_descent",
    "fixed_points", "langevin", "make_layer", "newton_krylov", "relax", "solve",
    "trainable_weights",
]
# fmt: on


def __getattr__(name: str) -> types.ModuleType:
    """Imports `testing` or `plotting`, which need optional dependencies, when first used."""
    if name in ("plotting", "testing"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "plotting", "testing"]
