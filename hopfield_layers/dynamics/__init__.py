"""The dynamics of models: vector fields, their solutions, and fixed points."""

from .block_updates import BlockUpdates as BlockUpdates
from .descent import energy_descent as energy_descent
from .exponential import ETD2RK as ETD2RK, ETD4RK as ETD4RK
from .fixed_points import fixed_points as fixed_points, FixedPoints as FixedPoints
from .flow import EnergyFlow as EnergyFlow
from .inputs import (
    InputsWithJumps as InputsWithJumps,
    PiecewiseConstantInterpolation as PiecewiseConstantInterpolation,
)
from .langevin import langevin as langevin
from .newton_krylov import newton_krylov as newton_krylov
from .relax import relax as relax, Relaxation as Relaxation
from .solve import solve as solve
