"""Pictures of Lagrangians, energies, landscapes, states and networks, with Matplotlib.

Each function draws into the axes `ax`, by default those of a new pyplot figure, and returns them.
It does not show, save or close the figure. Needs the extra `plots`.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        'hopfield_layers.plotting needs Matplotlib: pip install "hopfield_layers[plots]".'
    ) from error

from .energies import plot_energy
from .lagrangian import plot_lagrangian
from .landscapes import plot_landscape, plot_phase_portrait
from .networks import plot_network
from .states import plot_states


__all__ = [
    "plot_energy",
    "plot_lagrangian",
    "plot_landscape",
    "plot_network",
    "plot_phase_portrait",
    "plot_states",
]
