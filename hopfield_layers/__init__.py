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
"""

from .dynamics import (
    energy_descent,
    EnergyFlow,
    ETD2RK,
    ETD4RK,
    newton_krylov,
    relax,
    Relaxation,
    solve,
)
from .lagrangians import (
    AbstractLagrangian,
    as_lagrangian,
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
from .layers import (
    CoshLayer,
    EntmaxLayer,
    ExpLayer,
    GhostmaxLayer,
    IdentityLayer,
    Layer,
    LayerNormLayer,
    make_layer,
    MakeLayer,
    PowerLayer,
    ReluLayer,
    RepuLayer,
    RexpLayer,
    SigmoidLayer,
    SoftmaxLayer,
    SparsemaxLayer,
    SphericalNormLayer,
    TanhLayer,
)
from .model import AbstractEnergyModel
from .network import HAM
from .synapses import (
    AbstractSynapse,
    AttentionSynapse,
    BiasSynapse,
    ConvSynapse,
    DenseSynapse,
    HiddenSynapse,
    HiddenTensorSynapse,
    MixerSynapse,
    SelfAttentionSynapse,
)


__all__ = [
    "ETD2RK",
    "ETD4RK",
    "HAM",
    "AbstractEnergyModel",
    "AbstractLagrangian",
    "AbstractSynapse",
    "AttentionSynapse",
    "BiasSynapse",
    "ConvSynapse",
    "CoshLayer",
    "DenseSynapse",
    "EnergyFlow",
    "EntmaxLayer",
    "ExpLayer",
    "GhostmaxLayer",
    "HiddenSynapse",
    "HiddenTensorSynapse",
    "IdentityLayer",
    "LCosh",
    "LEntmax",
    "LExp",
    "LGhostmax",
    "LIdentity",
    "LLayerNorm",
    "LPower",
    "LRelu",
    "LRepu",
    "LRexp",
    "LSigmoid",
    "LSoftmax",
    "LSparsemax",
    "LSphericalNorm",
    "LTanh",
    "Layer",
    "LayerNormLayer",
    "MakeLayer",
    "MixerSynapse",
    "PowerLayer",
    "Relaxation",
    "ReluLayer",
    "RepuLayer",
    "RexpLayer",
    "SelfAttentionSynapse",
    "SigmoidLayer",
    "SoftmaxLayer",
    "SparsemaxLayer",
    "SphericalNormLayer",
    "TanhLayer",
    "as_lagrangian",
    "energy_descent",
    "make_layer",
    "newton_krylov",
    "relax",
    "solve",
]
