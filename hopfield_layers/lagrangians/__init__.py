"""The Lagrangians: formulas and parameters; their kernels are in `_numerics`."""

from .base import AbstractLagrangian as AbstractLagrangian
from .callables import as_lagrangian as as_lagrangian
from .exponential import (
    LCosh as LCosh,
    LExp as LExp,
    LRexp as LRexp,
    LSigmoid as LSigmoid,
    LTanh as LTanh,
)
from .normalization import LLayerNorm as LLayerNorm, LSphericalNorm as LSphericalNorm
from .powers import LIdentity as LIdentity, LPower as LPower, LRelu as LRelu, LRepu as LRepu
from .simplex import (
    LEntmax as LEntmax,
    LGhostmax as LGhostmax,
    LSoftmax as LSoftmax,
    LSparsemax as LSparsemax,
)
