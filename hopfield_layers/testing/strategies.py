"""Hypothesis strategies for Lagrangians, layers, networks and their states.

Arguments are values or strategies for them. There are only a few shapes and dtypes, so that a run
compiles a handful of programs. Examples shrink towards zeros and ones.
"""

import inspect
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.strategies import SearchStrategy
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

import hopfield_layers as hl

from .._conversion import as_shape, ShapeLike
from ..model import StateLike
from ..synapses.base import LagrangianLike
from .kinds import checked_lagrangian


_T = TypeVar("_T")
ValueOrStrategy = _T | SearchStrategy[_T]
KINDS = tuple(
    kind
    for name, kind in sorted(vars(hl).items())
    if inspect.isclass(kind) and issubclass(kind, hl.AbstractLagrangian) and name.startswith("L")
)
SHAPES = st.sampled_from([(5,), (2, 3)])
SCALES = st.sampled_from([1.0, 1e-6, 0.1, 10.0, 100.0, 1e4])
GRAPHS = ("hypergraph", "memory", "pair", "tokens")


# Between 0.01 and 100 on a logarithmic scale, with few digits; 1 is the simplest.
_POSITIVE = st.just(1.0) | st.floats(-2, 2).map(lambda decade: float(f"{10**decade:.3g}"))
_POWERS = st.just(2.0) | st.floats(1.25, 4, width=16)
_PARAMETERS = {
    **dict.fromkeys(("beta", "scale", "gamma"), _POSITIVE),
    **dict.fromkeys(("n", "p"), _POWERS),
    "delta": st.just(0.0) | st.floats(-2, 2, width=16),
    "alpha": st.just(1.5) | st.floats(1.125, 3, width=16),
}


def lagrangians(
    kind: ValueOrStrategy[Callable[..., hl.AbstractLagrangian]] | None = None, **parameters: object
) -> SearchStrategy[hl.AbstractLagrangian]:
    """The library's Lagrangians, with parameters of any useful size.

    **Arguments:**

    - `kind`: a class, or a strategy for one. By default any of the library's.
    - `parameters`: by name, such as `beta=2.0` or `beta=st.floats(0.5, 2.0)`; a class takes those
        that it has. By default β, s and γ are between 0.01 and 100, δ within ±2, n and p between
        1.25 and 4, and α between 1.125 and 3; all others have their own defaults.

    Examples:
        >>> strategy = hl.testing.lagrangians(hl.LTanh, beta=3.0)
    """
    if kind is not None and not isinstance(kind, SearchStrategy):
        unknown = parameters.keys() - inspect.signature(kind).parameters
        if unknown:
            raise TypeError(f"{getattr(kind, '__name__', kind)} has no parameter {min(unknown)!r}.")
    strategies = _PARAMETERS | {name: _as_strategy(value) for name, value in parameters.items()}

    def with_parameters(kind):
        names = [name for name in inspect.signature(kind).parameters if name in strategies]
        return st.builds(kind, **{name: strategies[name] for name in names})

    return _as_strategy(kind, st.sampled_from(KINDS)).flatmap(with_parameters)


def layers(
    lagrangian: ValueOrStrategy[LagrangianLike] | None = None,
    shape: ValueOrStrategy[ShapeLike] | None = None,
    tau: ValueOrStrategy[ArrayLike] | None = None,
    bias: ValueOrStrategy[ArrayLike | None] | Literal["any"] = "any",
) -> SearchStrategy[hl.Layer]:
    """Layers with any Lagrangian, time constant and bias. Arguments are values or strategies.

    **Arguments:**

    - `lagrangian`: by default any of [`hopfield_layers.testing.lagrangians`][]; or a callable.
    - `shape`: by default (5,) or (2, 3).
    - `tau`: by default between 0.01 and 100.
    - `bias`: None or an array of the shape. By default entries within ±2.

    Examples:
        >>> import hypothesis
        >>> from hopfield_layers.testing import assert_energy_bounded, layers, states
        >>> @hypothesis.settings(max_examples=5, deadline=None)
        ... @hypothesis.given(layers(lagrangian=lambda x: (x**2).sum(), shape=3), states((3,)))
        ... def test_energy_is_bounded(layer, x):
        ...     assert_energy_bounded(layer, x)
        >>> test_energy_is_bounded()
    """
    if lagrangian is not None and not isinstance(lagrangian, SearchStrategy):
        lagrangian = checked_lagrangian(lagrangian)

    @st.composite
    def layer(draw):
        sizes = as_shape(draw(_as_strategy(shape, SHAPES)))
        biases = _filled(sizes, st.floats(-2, 2, width=16))
        b = draw(biases if isinstance(bias, str) else _as_strategy(bias))
        drawn = draw(_as_strategy(lagrangian, lagrangians()))
        return hl.Layer(drawn, sizes, draw(_as_strategy(tau, _POSITIVE)), bias=b)

    return layer()


def networks(
    graph: ValueOrStrategy[str] | None = None,
    scale: ValueOrStrategy[int | float] | None = None,
    tau: ValueOrStrategy[ArrayLike] | None = None,
    bias: Literal["any"] | None = "any",
) -> SearchStrategy[hl.HAM]:
    """Small networks with random weights, whose energy has a known lower bound.

    **Arguments:**

    - `graph`: "pair" (tanh and softmax units and a dense synapse), "memory" (identity units with a
        modern Hopfield memory), "hypergraph" (three layers, one synapse that joins them all and one
        with hidden units), "tokens" (layer-normalised tokens, self-attention and hidden units), or
        a strategy for one. By default any.
    - `scale`: the largest absolute value of a weight, or a strategy for it. By default 0.1 to 3.
    - `tau`: τ of a layer or a strategy for it. By default between 0.01 and 100.
    - `bias`: None for none, or "any" for entries within ±2.

    Examples:
        >>> strategy = hl.testing.networks("pair", scale=0.5)
    """

    @st.composite
    def network(draw):
        joined, synapses, connections = _graph(draw(_as_strategy(graph, st.sampled_from(GRAPHS))))
        size = draw(_as_strategy(scale, st.sampled_from([1.0, 0.1, 3.0])))

        def weights(leaf):
            entries = _filled(leaf.shape, st.floats(-1, 1, width=16))
            return jnp.asarray(size * draw(entries)) if leaf.ndim else leaf

        for name, layer in joined.items():
            joined[name] = draw(layers(layer.lagrangian, layer.shape, tau, bias))
        return hl.HAM(joined, jax.tree.map(weights, synapses), connections)

    return network()


def _graph(name: str) -> tuple[dict[str, hl.Layer], dict[str, hl.AbstractSynapse], list]:
    """The layers, synapses and connections of a graph. Its weights are yet to be drawn."""
    key = jax.random.key(0)
    if name == "pair":
        layers = {"a": hl.TanhLayer(5), "b": hl.SoftmaxLayer(4)}
        return layers, {"W": hl.DenseSynapse([5, 4], key=key)}, [(("a", "b"), "W")]
    if name == "memory":
        memory = hl.HiddenSynapse([(2, 3)], 4, key=key, hidden_lagrangian=hl.LSoftmax())
        return {"a": hl.IdentityLayer((2, 3))}, {"memory": memory}, [(("a",), "memory")]
    if name == "hypergraph":
        layers = {"a": hl.TanhLayer(3), "b": hl.SigmoidLayer((2, 2)), "c": hl.GhostmaxLayer(3)}
        synapses = {
            "triple": hl.DenseSynapse([3, (2, 2), 3], key=key),
            "pair": hl.HiddenSynapse([(2, 2), 3], 4, key=key),
            "field": hl.BiasSynapse(3, key=key),
        }
        connections = [(("a", "b", "c"), "triple"), (("b", "c"), "pair"), (("a",), "field")]
        return layers, synapses, connections
    if name == "tokens":
        synapses = {
            "attention": hl.SelfAttentionSynapse((4, 3), zspace_dim=2, key=key),
            "hidden": hl.HiddenSynapse([(4, 3)], 5, key=key),
        }
        connections = [(("a",), "attention"), (("a",), "hidden")]
        return {"a": hl.LayerNormLayer((4, 3))}, synapses, connections
    raise ValueError(f"Expected a graph of {list(GRAPHS)}, got {name!r}.")


def states(
    model: StateLike | jax.ShapeDtypeStruct,
    scale: ValueOrStrategy[int | float] | None = None,
    dtype: ValueOrStrategy[DTypeLike] | None = None,
    batch: ValueOrStrategy[tuple[int, ...]] = (),
    extremes: bool | None = None,
) -> SearchStrategy[PyTree]:
    """Random states, with the special values that reveal errors: zeros, ties, huge entries.

    **Arguments:**

    - `model`: a layer or network, a shape, or a tree of arrays or of anything with a shape.
    - `scale`: the size of the entries, or a strategy for it. By default from 1e-6 to 1e4.
    - `dtype`: the dtype or a strategy for it. By default JAX's own.
    - `batch`: the batch axes, a tuple of sizes, or a strategy for one.
    - `extremes`: whether an entry may also be the dtype's largest, smallest or a subnormal one,
        whatever the scale. By default True if `scale` is not given.

    Examples:
        >>> strategy = hl.testing.states({"a": jnp.zeros(5), "b": jnp.zeros((2, 3))}, scale=1.0)
    """
    extremes = scale is None if extremes is None else extremes
    leaves, structure = jax.tree.flatten(_template(model))
    scales, dtypes = _as_strategy(scale, SCALES), _as_strategy(dtype, jnp.result_type(float))

    @st.composite
    def state(draw):
        axes, dtype = draw(_as_strategy(batch)), draw(dtypes)
        arrays = [draw(_arrays((*axes, *leaf.shape), scales, dtype, extremes)) for leaf in leaves]
        return jax.tree.unflatten(structure, arrays)

    return state()


def _template(model: PyTree) -> PyTree:
    """The state's structure and shapes."""
    if init := getattr(model, "init_state", getattr(model, "init_states", None)):
        return jax.eval_shape(init)
    if isinstance(model, tuple) and all(isinstance(size, int) for size in model):
        return jax.ShapeDtypeStruct(model, float)
    # The arrays of these are parameters and no states.
    parametric = isinstance(model, hl.AbstractLagrangian | hl.AbstractEnergyModel)
    if parametric or not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(model)):
        raise TypeError(
            f"Expected a model, a shape or a tree of arrays, got {model!r}; a model without "
            "init_state or init_states needs a tree of arrays like its state."
        )
    return model


@st.composite
def _arrays(draw, shape, scales, dtype, extremes) -> Array:
    """Arrays of this shape: an offset, plus the scale times entries within ±1."""
    most, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).tiny)
    entries = st.sampled_from([0.0, 1.0, -1.0, -0.0, 0.5]) | st.floats(-1, 1)
    equal = draw(st.booleans())
    x = np.full(shape, draw(entries)) if equal else draw(_filled(shape, entries))
    scale, offset = draw(scales), draw(st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e3]))
    x = np.asarray(scale * (x + offset))
    special = (most, -most, most / 2, tiny, -tiny, tiny / 2, -tiny / 2)
    index = draw(st.none() | st.integers(0, max(x.size - 1, 0)))
    entry = draw(st.sampled_from(special if extremes else (1e3 * scale, -1e3 * scale)))
    if index is not None and x.size:
        x.flat[index] = entry
    # NumPy converts, as XLA flushes subnormal numbers.
    return jnp.asarray(np.clip(x, -most, most).astype(jnp.dtype(dtype)))


def _filled(shape, entries: SearchStrategy[float]) -> SearchStrategy[np.ndarray]:
    """Arrays of independent entries."""
    drawn = st.lists(entries, min_size=math.prod(shape), max_size=math.prod(shape))
    return drawn.map(lambda values: np.reshape(np.array(values, np.float64), shape))


def _as_strategy(value, default=None) -> SearchStrategy:
    """The value, or the default instead of None, as a strategy."""
    value = default if value is None else value
    return value if isinstance(value, SearchStrategy) else st.just(value)
