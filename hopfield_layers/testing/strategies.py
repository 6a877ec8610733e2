"""Hypothesis strategies for Lagrangians, layers, networks and their states.

Arguments are values or strategies for them. Shapes and dtypes come from few, so that a run compiles
a handful of programs; everything that shrinks does so towards zeros and ones.
"""

import inspect
import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.strategies import SearchStrategy
from jaxtyping import PyTree

from .. import lagrangians as _lagrangians
from ..lagrangians import (
    AbstractLagrangian,
    LGhostmax,
    LIdentity,
    LLayerNorm,
    LSigmoid,
    LSoftmax,
    LTanh,
)
from ..layers import Layer
from ..network import HAM
from ..synapses import BiasSynapse, DenseSynapse, HiddenSynapse, SelfAttentionSynapse


KINDS = tuple(
    kind
    for name, kind in sorted(vars(_lagrangians).items())
    if inspect.isclass(kind) and issubclass(kind, AbstractLagrangian) and name.startswith("L")
)
SHAPES = ((5,), (2, 3))
SCALES = (1.0, 1e-6, 0.1, 10.0, 100.0, 1e4)


def _positive(low: float, high: float) -> SearchStrategy[float]:
    """Numbers of any size between these, 1 the simplest, with few digits."""
    decades = st.floats(math.log10(low), math.log10(high))
    return st.just(1.0) | decades.map(lambda decade: float(f"{10**decade:.3g}"))


_PARAMETERS = {
    "beta": _positive(0.01, 100.0),
    "scale": _positive(0.01, 100.0),
    "gamma": _positive(0.01, 100.0),
    "delta": st.just(0.0) | st.floats(-2, 2, width=16),
    "n": st.just(2.0) | st.floats(1.25, 4, width=16),
    "p": st.just(2.0) | st.floats(1.25, 4, width=16),
    "alpha": st.just(1.5) | st.floats(1.125, 3, width=16),
}


def lagrangians(kind: Any = None, **parameters: Any) -> SearchStrategy[AbstractLagrangian]:
    """The library's Lagrangians, with parameters of any size that is of use.

    **Arguments:**

    - `kind`: a class, or a strategy for one. By default any of the library's.
    - `parameters`: by name, such as `beta=2.0` or `beta=st.floats(0.5, 2.0)`; where several classes
        are drawn, those that have it take it. By default β, s and γ between 0.01 and 100, δ within
        ±2, n and p between 1.25 and 4, α between 1.125 and 3; all others as the class has them.

    ```python
    >>> import hopfield_layers as hl
    >>> from hopfield_layers.testing import lagrangians
    >>> example = lagrangians(hl.LTanh, beta=3.0)
    >>> hl.Layer(hl.LTanh(beta=3.0), 2)  # what it draws
    Layer(lagrangian=LTanh(beta=3.0), shape=(2,), tau=1.0, bias=None, name=None)

    ```
    """
    several = kind is None or isinstance(kind, SearchStrategy)

    def of_kind(kind):
        given = {name: _as_strategy(value) for name, value in parameters.items()}
        names = inspect.signature(kind).parameters
        unknown = [] if several else [name for name in given if name not in names]
        if unknown:
            raise TypeError(f"{kind.__name__} has no parameter {unknown[0]!r}.")
        chosen = {name: s for name, s in (_PARAMETERS | given).items() if name in names}
        return st.builds(kind, **chosen)

    return (st.sampled_from(KINDS) if kind is None else _as_strategy(kind)).flatmap(of_kind)


def layers(
    lagrangian: Any = None, shape: Any = None, tau: Any = None, bias: Any = "any"
) -> SearchStrategy[Layer]:
    """Layers with any of the library's Lagrangians, time constants and biases.

    **Arguments:**

    - `lagrangian`: a Lagrangian, a convex callable, or a strategy for either. By default
        [`hopfield_layers.testing.lagrangians`][].
    - `shape`: a tuple of sizes or a strategy for one. By default (5,) or (2, 3).
    - `tau`: τ or a strategy for it. By default between 0.01 and 100.
    - `bias`: None, an array of the shape, or a strategy for either. By default entries within ±2.

    ```python
    >>> import hypothesis
    >>> from hopfield_layers.testing import assert_energy_bounded, layers, states
    >>> mine = lambda x: (x**2).sum()
    >>> @hypothesis.settings(max_examples=5, deadline=None)
    ... @hypothesis.given(data=hypothesis.strategies.data())
    ... def test_energy_is_bounded(data):
    ...     layer = data.draw(layers(lagrangian=mine, shape=(3,)))
    ...     assert_energy_bounded(layer, data.draw(states(layer)))
    >>> test_energy_is_bounded()

    ```
    """
    lagrangian = lagrangians() if lagrangian is None else _as_strategy(lagrangian)
    shape = st.sampled_from(SHAPES) if shape is None else _as_strategy(shape)
    tau = _positive(0.01, 100.0) if tau is None else _as_strategy(tau)

    def of_shape(shape):
        own = _filled(shape, st.floats(-2, 2, width=16))
        biases = own if isinstance(bias, str) else _as_strategy(bias)
        return st.builds(Layer, lagrangian, st.just(shape), tau, bias=biases)

    return shape.flatmap(of_shape)


def _of_graph(kinds, shapes, graph):
    """A strategy for networks of this structure."""

    def build(taus, biases, weights):
        parts = iter(weights)
        layers = {
            name: Layer(kind(), shape, tau, bias=bias)
            for (name, kind, shape), tau, bias in zip(
                zip("abc", kinds, shapes, strict=False), taus, biases, strict=True
            )
        }
        synapses = {name: make(*(next(parts) for _ in sizes)) for name, _, make, sizes in graph}
        return HAM(layers, synapses, [(tuple(joined), name) for name, joined, _, _ in graph])

    return build, [size for *_, sizes in graph for size in sizes]


# The kinds and shapes of the layers a, b, c; and of each synapse a name, the layers it joins, its
# constructor and the shapes of its weights.
_GRAPHS = {
    "pair": (
        (LTanh, LSoftmax),
        ((5,), (4,)),
        [("W", "ab", lambda W: DenseSynapse([5, 4], W=W), [(5, 4)])],
    ),
    "memory": (
        (LIdentity,),
        ((2, 3),),
        [("memory", "a", lambda p: HiddenSynapse.from_patterns(p, LSoftmax()), [(4, 2, 3)])],
    ),
    "hypergraph": (
        (LTanh, LSigmoid, LGhostmax),
        ((3,), (2, 2), (3,)),
        [
            ("triple", "abc", lambda W: DenseSynapse([3, (2, 2), 3], W=W), [(3, 4, 3)]),
            ("pair", "bc", lambda *Ws: HiddenSynapse([(2, 2), 3], 4, Ws=Ws), [(4, 4), (3, 4)]),
            ("field", "a", lambda b: BiasSynapse(3, b=b), [(3,)]),
        ],
    ),
    "tokens": (
        (LLayerNorm,),
        ((4, 3),),
        [
            (
                "attention",
                "a",
                lambda Wq, Wk: SelfAttentionSynapse((4, 3), Wq=Wq, Wk=Wk),
                [(3, 1, 2), (3, 1, 2)],
            ),
            ("hidden", "a", lambda W: HiddenSynapse([(4, 3)], 5, Ws=[W]), [(12, 5)]),
        ],
    ),
}


def networks(
    graph: Any = None, scale: Any = None, tau: Any = None, bias: Any = "any"
) -> SearchStrategy[HAM]:
    """Small networks with random weights, whose energy has a lower bound that is known.

    **Arguments:**

    - `graph`: "pair" (tanh and softmax units and a dense synapse), "memory" (identity units with a
        modern Hopfield memory), "hypergraph" (three layers, one synapse that joins them all and one
        with hidden units), "tokens" (layer-normalised tokens, self-attention and hidden units), or
        a strategy for one. By default any.
    - `scale`: the largest absolute value of a weight, or a strategy for it. By default 0.1 to 3.
    - `tau`: τ of a layer or a strategy for it. By default between 0.01 and 100.
    - `bias`: None for none, or "any" for entries within ±2.

    ```python
    >>> import hypothesis
    >>> from hopfield_layers.testing import assert_energy_bounded, networks, states
    >>> @hypothesis.settings(max_examples=3, deadline=None)
    ... @hypothesis.given(data=hypothesis.strategies.data())
    ... def test_energy_is_bounded(data):
    ...     network = data.draw(networks("pair"))
    ...     assert_energy_bounded(network, data.draw(states(network)))
    >>> test_energy_is_bounded()

    ```
    """
    graph = st.sampled_from(sorted(_GRAPHS)) if graph is None else _as_strategy(graph)
    scale = st.sampled_from([1.0, 0.1, 3.0]) if scale is None else _as_strategy(scale)
    tau = _positive(0.01, 100.0) if tau is None else _as_strategy(tau)

    def of_graph(name):
        if name not in _GRAPHS:
            raise ValueError(f"Expected a graph of {sorted(_GRAPHS)}, got {name!r}.")
        kinds, shapes, synapses = _GRAPHS[name]
        build, sizes = _of_graph(kinds, shapes, synapses)
        entries = st.floats(-1, 1, width=16)
        own = lambda shape: _filled(shape, st.floats(-2, 2, width=16))
        biases = [st.none() if bias is None else own(shape) for shape in shapes]
        weights = scale.flatmap(
            lambda scale: st.tuples(
                *(_filled(size, entries).map(lambda w: scale * w) for size in sizes)
            )
        )
        return st.builds(build, st.tuples(*[tau] * len(shapes)), st.tuples(*biases), weights)

    return graph.flatmap(of_graph)


def states(
    model: Any,
    scale: Any = None,
    dtype: Any = None,
    batch: Any = (),
    extremes: bool | None = None,
) -> SearchStrategy[PyTree]:
    """States with what breaks things: zeros, ties, equal entries, one huge entry, offsets.

    **Arguments:**

    - `model`: a layer or network, a shape, or a tree of arrays or of anything with a shape.
    - `scale`: the size of the entries, or a strategy for it. By default of 1e-6 to 1e4.
    - `dtype`: the dtype or a strategy for it. By default JAX's own.
    - `batch`: the batch axes, a tuple of sizes, or a strategy for one.
    - `extremes`: whether an entry may also be the dtype's largest, smallest or a subnormal one,
        whatever the scale. By default unless there is a scale.

    ```python
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import states
    >>> strategy = states({"visible": jnp.zeros(5), "hidden": jnp.zeros((2, 3))}, scale=1.0)

    ```
    """
    template = _template(model)
    extremes = scale is None if extremes is None else extremes
    scale = st.sampled_from(SCALES) if scale is None else _as_strategy(scale)
    dtype = _as_strategy(jnp.result_type(float) if dtype is None else dtype)

    def of_kind(kind):
        batch, dtype = kind
        leaves, structure = jax.tree.flatten(template)
        each = [_entries((*batch, *leaf.shape), scale, dtype, extremes) for leaf in leaves]
        return st.tuples(*each).map(lambda leaves: jax.tree.unflatten(structure, leaves))

    return st.tuples(_as_strategy(batch), dtype).flatmap(of_kind)


def _template(model: Any) -> PyTree:
    """The state's structure and shapes."""
    for name in ("init_state", "init_states"):
        if hasattr(model, name):
            return jax.eval_shape(getattr(model, name))
    if isinstance(model, tuple) and all(isinstance(size, int) for size in model):
        return jax.ShapeDtypeStruct(model, float)
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(model)):
        raise TypeError(f"Expected a model, a shape or a tree of arrays, got {model!r}.")
    return model


def _entries(shape, scale, dtype, extremes):
    """An array of this shape: an offset, plus the scale times entries within ±1."""
    info = jnp.finfo(dtype)
    most, tiny = float(info.max), float(info.tiny)
    entries = st.sampled_from([0.0, 1.0, -1.0, -0.0, 0.5]) | st.floats(-1, 1)
    offsets = st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e3])
    special = st.sampled_from([most, -most, most / 2, tiny, -tiny, tiny / 2, -tiny / 2])
    huge = special if extremes else st.sampled_from([1e3, -1e3])
    equal = st.booleans().flatmap(lambda equal: _filled(shape, entries, equal))

    def assemble(part):
        x, scale, offset, at, other = part
        x = scale * (x + offset)
        if at is not None and x.size:
            x.flat[at % x.size] = other if extremes else scale * other
        # By numpy, as XLA flushes subnormal numbers.
        return jnp.asarray(np.clip(x, -most, most).astype(jnp.dtype(dtype)))

    at = st.none() | st.integers(0, max(math.prod(shape) - 1, 0))
    return st.tuples(equal, scale, offsets, at, huge).map(assemble)


def _filled(shape, entries, equal=False):
    size = math.prod(shape)
    if equal:
        return entries.map(lambda entry: np.full(shape, entry))
    drawn = st.lists(entries, min_size=size, max_size=size)
    return drawn.map(lambda values: np.reshape(np.array(values, np.float64), shape))


def _as_strategy(value: Any) -> SearchStrategy[Any]:
    return value if isinstance(value, SearchStrategy) else st.just(value)
