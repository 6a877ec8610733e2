"""Laws of energy, to test your own Lagrangians, layers and networks against.

The strategies draw them and their states with Hypothesis, and the laws raise an `AssertionError`
that says which of them is broken, where and by how much. `check_lagrangian` does all of it at once.
Needs the extra `testing`.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
    import tqdm as _tqdm  # noqa: F401
except ImportError as error:
    raise ImportError(
        'hopfield_layers.testing needs Hypothesis and tqdm: pip install "hopfield_layers[testing]".'
    ) from error

from .bounds import energy_bound as energy_bound
from .gradient_laws import assert_gradients as assert_gradients
from .lagrangian_laws import assert_lagrangian as assert_lagrangian
from .model_laws import (
    assert_energy_bounded as assert_energy_bounded,
    assert_energy_descends as assert_energy_descends,
)
from .report import check_lagrangian as check_lagrangian, Finding as Finding, Report as Report
from .strategies import (
    lagrangians as lagrangians,
    layers as layers,
    networks as networks,
    states as states,
)
from .verdict import LAWS as LAWS, Violation as Violation
