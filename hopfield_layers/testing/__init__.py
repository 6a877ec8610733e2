"""Laws of energy, as property tests for your own Lagrangians, layers and networks.

The strategies draw these and their states with Hypothesis. The assertions raise an `AssertionError`
that tells which law is broken, where and by how much. `check_lagrangian`, `check_layer`,
`check_synapse`, `check_network` and `check_model` try all laws at once. Needs the extra `testing`.
"""

try:
    import cloudpickle as _cloudpickle  # noqa: F401
    import hypothesis as _hypothesis  # noqa: F401
    import tqdm as _tqdm  # noqa: F401
except ImportError as error:
    raise ImportError(
        "hopfield_layers.testing needs cloudpickle, Hypothesis and tqdm: "
        'pip install "hopfield_layers[testing]".'
    ) from error

from .bounds import energy_bound as energy_bound
from .checks import (
    check_lagrangian as check_lagrangian,
    check_layer as check_layer,
    check_model as check_model,
    check_network as check_network,
    check_synapse as check_synapse,
)
from .gradient_laws import assert_gradients as assert_gradients
from .lagrangian_laws import assert_lagrangian as assert_lagrangian
from .model_laws import (
    assert_energy_bounded as assert_energy_bounded,
    assert_energy_descends as assert_energy_descends,
)
from .parametrize import parametrize_with_laws as parametrize_with_laws
from .report import Finding as Finding, Report as Report
from .strategies import (
    lagrangians as lagrangians,
    layers as layers,
    networks as networks,
    states as states,
)
from .verdict import LAWS as LAWS, PROPERTIES as PROPERTIES, Violation as Violation
