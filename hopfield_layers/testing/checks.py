"""Every law of an object at once, as a report."""

import contextlib
import dataclasses
import functools as ft
import math
from collections.abc import Collection, Sequence
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from hypothesis.strategies import SearchStrategy
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from .._conversion import as_float, as_shape, ShapeLike
from ..layers import Layer
from ..model import AbstractEnergyModel, Flow, StateLike
from ..network import Connection, HAM
from ..synapses.base import as_shapes, LagrangianLike, SynapseLike
from . import lagrangian_laws, model_laws, synapse_laws
from .bounds import energy_bound
from .cost_laws import cost_laws
from .gradient_laws import gradient_laws
from .kinds import checked_kind, checked_lagrangian, checked_synapse, is_of_the_library
from .report import Report
from .rest_laws import rest_laws
from .runs import report_of, Run
from .strategies import states, ValueOrStrategy
from .verdict import Laws, Violation


Levels = list[list[Run]]
Scale = ValueOrStrategy[int | float] | None


def check_lagrangian(
    lagrangian: LagrangianLike,
    shape: ShapeLike = (5,),
    *,
    max_examples: int = 200,
    scale: Scale = None,
    dtype: DTypeLike | None = None,
    extremes: bool = False,
    progress: bool | None = None,
    expected: Collection[str] = (),
) -> Report:
    """Checks every law of a Lagrangian, and of a layer with it, at drawn states; returns a report.

    The laws are those of [`hopfield_layers.testing.assert_lagrangian`][] and, if they hold, those
    of [`hopfield_layers.testing.check_layer`][] for a layer with a bias and τ = 2. Every run draws
    the same states, and moves from those that come closest to breaking a law to worse ones.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `shape`: the shape of the states, of a few dozen units at most.
    - `max_examples`: how many pairs of states to draw; a tenth of that for gradients and solves.
    - `scale`, `dtype`, `extremes`: as for [`hopfield_layers.testing.states`][]; plain callables
        seldom survive extremes.
    - `progress`: whether to show the progress on stderr. By default only if it is a terminal.
    - `expected`: names of laws that may be broken without ending the check.

    **Returns:** A [`hopfield_layers.testing.Report`][], with the simplest counterexample that
    Hypothesis finds for each law that is broken, and a program that reproduces it.

    **Raises:** `TypeError` for something that is not a Lagrangian, such as a layer.

    Examples:
        >>> hl.testing.check_lagrangian(hl.LTanh(), max_examples=20).ok
        True
        >>> hl.testing.check_lagrangian(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), max_examples=20).ok
        False
    """
    lagrangian, shape = checked_lagrangian(lagrangian), as_shape(shape)
    kinds = {"scale": scale, "dtype": dtype, "extremes": extremes}
    levels = _of_lagrangian(lagrangian, shape, max_examples, kinds)

    # No layer can be made of what is not a Lagrangian; the first level reports why.
    with contextlib.suppress(Violation):
        lagrangian_laws.dtype_laws(lagrangian, shape)
        bias = 0.5 * jnp.cos(jnp.arange(math.prod(shape))).reshape(shape)
        layer = Layer(lagrangian, shape, tau=2.0, bias=bias)
        levels += _of_model(layer, _moderate(shape, scale, dtype), max_examples)
    return report_of(lagrangian, levels, progress, expected)


def check_layer(
    layer: Layer,
    *,
    max_examples: int = 200,
    scale: Scale = None,
    dtype: DTypeLike | None = None,
    extremes: bool = False,
    progress: bool | None = None,
    expected: Collection[str] = (),
) -> Report:
    """Checks every law of a layer's Lagrangian and, if they hold, of the layer.

    The laws of the layer are those of [`hopfield_layers.testing.assert_energy_bounded`][],
    [`hopfield_layers.testing.assert_energy_descends`][] along both flows and
    [`hopfield_layers.testing.assert_gradients`][]. The report also says whether a drive evaluates
    the activation once and compiles once. Arguments are those of
    [`hopfield_layers.testing.check_lagrangian`][].

    Examples:
        >>> print(hl.testing.check_layer(hl.ExpLayer(3, tau=0.5), max_examples=10).ok)
        True
    """
    checked_kind("layer", layer)
    kinds = {"scale": scale, "dtype": dtype, "extremes": extremes}
    levels = _of_lagrangian(layer.lagrangian, layer.shape, max_examples, kinds)
    moderate = _moderate(layer, scale, dtype)
    levels += _of_model(layer, moderate, max_examples)
    return report_of(layer, levels, progress, expected)


def check_synapse(
    synapse: SynapseLike,
    shapes: Sequence[ShapeLike],
    *,
    max_examples: int = 100,
    scale: Scale = None,
    dtype: DTypeLike | None = None,
    progress: bool | None = None,
    expected: Collection[str] = (),
) -> Report:
    """Checks every law of a synapse, at drawn activations, and returns a report.

    E_s is a scalar of the dtype of the activations, and neither jit, vmap nor a second evaluation
    changes it. It is finite, also for large activations, and E_s = −A. ∂A/∂g agrees with central
    differences in float64, its derivative is symmetric, and A doesn't jump. If there is a field
    `mask` of booleans `(queries, keys)`, a key that is left out of every query has no influence.
    The report also has a property that is not a law: whether A is convex along each layer, so that
    [`hopfield_layers.BlockUpdates`][] can't raise E.

    **Arguments:**

    - `synapse`: a [`hopfield_layers.AbstractSynapse`][], a callable that returns an energy, or an
        object whose method `energy` returns one.
    - `shapes`: the shapes of its activations, of a few dozen units at most.
    - others: as for [`hopfield_layers.testing.check_lagrangian`][].

    **Returns:** A [`hopfield_layers.testing.Report`][].

    **Raises:** `TypeError` for something that is not a synapse.

    Examples:
        >>> report = hl.testing.check_synapse(lambda g, h: -jnp.sum(g) * jnp.sum(h), [3, 2])
        >>> report.ok
        True
    """
    joins, sizes = checked_synapse(synapse), as_shapes(shapes)
    # Large activations but no extremes: their squares overflow in float64, in which A is
    # differentiated, and whether a product inside of A overflows can't be seen from outside.
    like = tuple(jax.ShapeDtypeStruct(size, float) for size in sizes)
    drawn = {name: states(like, scale, dtype, extremes=False) for name in ("gs", "others")}
    few = max(max_examples // 10, 1)
    runs = [
        Run(ft.partial(synapse_laws.dtype_laws, joins, sizes), {}, 1),
        Run(ft.partial(synapse_laws.repeated_laws, joins), drawn, few),
        Run(ft.partial(synapse_laws.synapse_laws, joins), drawn, max_examples),
    ]
    return report_of(joins, [runs[:1], runs[1:2], runs[2:]], progress, expected)


def check_network(
    ham: HAM,
    *,
    max_examples: int = 50,
    bound: ArrayLike | None = None,
    progress: bool | None = None,
    expected: Collection[str] = (),
) -> Report:
    """Checks the Lagrangians and synapses that you wrote and, if their laws hold, the network.

    Lagrangians are checked as by [`hopfield_layers.testing.check_lagrangian`][], synapses as by
    [`hopfield_layers.testing.check_synapse`][], at activations that their layers can have, and the
    network as by [`hopfield_layers.testing.check_model`][]. Those of the library keep their laws,
    and aren't checked again. The report also says whether −E_s is convex along each layer.

    **Arguments:**

    - `ham`: a [`hopfield_layers.HAM`][] of a few dozen units at most.
    - `max_examples`: how many states to draw; a tenth of that for gradients and solves.
    - `bound`, `progress`, `expected`: as for [`hopfield_layers.testing.check_model`][].

    Examples:
        >>> layers = {"x": hl.IdentityLayer(3), "y": hl.SoftmaxLayer(2)}
        >>> W = hl.DenseSynapse([3, 2], W=jnp.ones((3, 2)))
        >>> ham = hl.HAM(layers, {"W": W}, [(("x", "y"), "W")])
        >>> hl.testing.check_network(ham, max_examples=5).ok
        True
    """
    checked_kind("network", ham)
    drawn, few = states(ham, scale=1.0), max(max_examples // 10, 1)
    parts: Levels = [[], []]
    for name, layer in ham.layers.items():
        lagrangian = layer.lagrangian
        if is_of_the_library(lagrangian):
            continue
        runs = _of_lagrangian(lagrangian, layer.shape, max_examples, {"extremes": False})
        for level, new in zip(parts, runs, strict=True):
            level += [dataclasses.replace(run, part=f"layer {name}") for run in new]
    pair = {"x": drawn, "y": drawn}
    for index, connection in enumerate(ham.connections):
        if is_of_the_library(ham.synapses[connection.synapse]):
            continue
        laws, part = (_connection_jit, _connection_laws), f"connection {connection.name}"
        for level, law, count in zip(parts, laws, (few, max_examples), strict=True):
            level.append(Run(ft.partial(law, ham, index), pair, count, part))
    levels = parts + _of_model(ham, drawn, max_examples, bound)
    levels[-1].append(Run(ft.partial(_network_properties, ham), pair, max_examples))
    return report_of(ham, levels, progress, expected, _notes(ham, bound))


def check_model(
    model: AbstractEnergyModel,
    x: StateLike,
    *,
    bound: ArrayLike | None = None,
    max_examples: int = 100,
    progress: bool | None = None,
    expected: Collection[str] = (),
) -> Report:
    """Checks every law of an energy model, at drawn states, and returns a report.

    E has a lower bound and is continuous; ∂E/∂x agrees with central differences and with H u; E
    falls along both flows; relaxations come to rest, and their derivatives are those of the fixed
    point; no sample depends on its batch; a drive evaluates each activation once and compiles once.

    **Arguments:**

    - `model`: a [`hopfield_layers.AbstractEnergyModel`][].
    - `x`: a state, for its structure and shapes, of a few dozen units at most.
    - `bound`: what E should not fall below. By default
        [`hopfield_layers.testing.energy_bound`][]. If none is known, a search tries to make E fall
        without end; if it finds nothing, that proves nothing.
    - `max_examples`: how many states to draw; a tenth of that for gradients, solves and rests.
    - `progress`, `expected`: as for [`hopfield_layers.testing.check_lagrangian`][].

    **Returns:** A [`hopfield_layers.testing.Report`][].

    **Raises:** `TypeError` for something that is not a model.

    Examples:
        >>> class Spring(hl.AbstractEnergyModel):
        ...     tau: jax.Array
        ...     def energy(self, x):
        ...         return jnp.sum(x**2, axis=-1)
        ...     def activations(self, x):
        ...         return x
        ...     def dEdg(self, x):
        ...         return 2 * x
        >>> hl.testing.check_model(Spring(jnp.array(1.0)), jnp.zeros(3), max_examples=10).ok
        True
    """
    checked_kind("model", model)
    drawn = states(jax.tree.map(as_float, x), scale=1.0)
    levels = _of_model(model, drawn, max_examples, bound)
    return report_of(model, levels, progress, expected, _notes(model, bound))


def _moderate(model: PyTree, scale: Scale, dtype: DTypeLike | None) -> SearchStrategy[PyTree]:
    return states(model, scale=1.0 if scale is None else scale, dtype=dtype)


def _notes(model: AbstractEnergyModel, bound: ArrayLike | None) -> list[str]:
    if bound is not None or energy_bound(model) is not None:
        return []
    return [
        "bounded: no bound is known, and a search that finds no fall without end proves nothing."
    ]


def _of_lagrangian(
    lagrangian, shape: tuple[int, ...], max_examples: int, kinds: dict[str, Any]
) -> Levels:
    wide = states(shape, **kinds)
    few = max(max_examples // 10, 1)
    return [
        [Run(ft.partial(lagrangian_laws.dtype_laws, lagrangian, shape), {}, 1)],
        [
            Run(
                ft.partial(lagrangian_laws.lagrangian_laws, lagrangian),
                {"x": wide, "y": wide},
                max_examples,
            ),
            Run(ft.partial(lagrangian_laws.jit_laws, lagrangian), {"x": wide}, few),
        ],
    ]


def _of_model(
    model: AbstractEnergyModel,
    drawn: SearchStrategy[PyTree],
    max_examples: int,
    bound: ArrayLike | None = None,
) -> Levels:
    if bound is None and (known := energy_bound(model)) is not None:
        bound = float(known)
    few = max(max_examples // 10, 1)
    levels = [
        [Run(ft.partial(model_laws.dtype_laws, model), {"x": drawn}, 1)],
        [Run(ft.partial(model_laws.bound_laws, model, bound=bound), {"x": drawn}, max_examples)],
        [
            *(
                Run(ft.partial(model_laws.flow_laws, model, flow=flow), {"x0": drawn}, few)
                for flow in get_args(Flow)
            ),
            Run(ft.partial(gradient_laws, model), {"x": drawn}, few),
        ],
        [Run(ft.partial(cost_laws, model), {"x": drawn}, 1)],
    ]
    if not isinstance(model, Layer | HAM):  # whose own parts have been evaluated without jit
        levels[0].append(Run(ft.partial(model_laws.repeated_laws, model), {"x": drawn}, few))
    if not isinstance(model, Layer):  # which rests at its bias
        levels[-1].append(Run(ft.partial(rest_laws, model), {"x0": drawn}, few))
    return levels


def _connection_laws(ham: HAM, index: int, x: PyTree, y: PyTree) -> Laws:
    return synapse_laws.synapse_laws(*_joined(ham, ham.connections[index], x, y))


def _connection_jit(ham: HAM, index: int, x: PyTree, y: PyTree) -> Laws:
    return synapse_laws.repeated_laws(*_joined(ham, ham.connections[index], x, y))


def _network_properties(ham: HAM, x: PyTree, y: PyTree) -> Laws:
    activations = (tuple(gs[name] for name in sorted(gs)) for gs in _activations(ham, x, y))
    return synapse_laws.properties(synapse_laws.AllJoined(ham), *activations)


def _joined(ham: HAM, connection: Connection, x: PyTree, y: PyTree):
    """The connection's synapse as a function of each layer once, and two of its activations."""
    names = list(dict.fromkeys(connection.layers))
    synapse = ham.synapses[connection.synapse]
    if len(names) < len(connection.layers):
        synapse = synapse_laws.Joined(synapse, tuple(map(names.index, connection.layers)))
    activations = _activations(ham, x, y)
    return (synapse, *(tuple(gs[name] for name in names) for gs in activations))


def _activations(ham: HAM, *states: PyTree) -> list[PyTree]:
    return [eqx.filter_jit(ham.activations)(state) for state in states]
