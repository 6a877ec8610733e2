"""The Lagrangians."""

from .base import AbstractLagrangian as AbstractLagrangian, as_lagrangian as as_lagrangian
from .exponential import LCosh as LCosh, LExp as LExp, LRexp as LRexp
from .norms import LLayerNorm as LLayerNorm, LSphericalNorm as LSphericalNorm
from .powers import LIdentity as LIdentity, LPower as LPower, LRelu as LRelu, LRepu as LRepu
from .saturating import LSigmoid as LSigmoid, LTanh as LTanh
from .simplex import LGhostmax as LGhostmax, LSoftmax as LSoftmax
from .sparse import LEntmax as LEntmax, LSparsemax as LSparsemax
