"""Networks of layers and synapses under one energy."""

import functools as ft
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from ._conversion import as_state, over_samples, wide_dtype
from .lagrangians.base import pformat
from .layers import Layer
from .model import AbstractEnergyModel
from .synapses.base import as_synapse, HasEnergy, pure_energy, SynapseLike


State = dict[str, Float[Array, "..."]]
NamedArrays = Mapping[str, Shaped[ArrayLike, "..."]]
_T = TypeVar("_T")


class Connection(NamedTuple):
    """The names of the layers that a synapse joins, in the order of its arguments."""

    layers: tuple[str, ...]
    synapse: str
    name: str


class HAM(AbstractEnergyModel):
    """A hierarchical associative memory: E = Σ layers E(x) + Σ connections E_s(g₁, g₂, …).

    Its state is a dict of arrays, one per layer, of shape `(*batch, *shape)` each, with any number
    of batch axes, the same in all layers. ∂E/∂g = (x − b) + ∂E_s/∂g by the Legendre transform, so
    that only the synapses are differentiated. Every method keeps the state's dtype. At rest
    z = x − b = I − ∂E_s/∂g doesn't depend on b: for a trainable threshold use a
    [`hopfield_layers.BiasSynapse`][]. As for a layer, `jax.jit(ham.energy)` fails: write
    `equinox.filter_jit(ham.energy)`.

    **Arguments:**

    - `layers`: a dict of [`hopfield_layers.Layer`][]s by name.
    - `synapses`: a dict by name of [`hopfield_layers.AbstractSynapse`][]s, of objects with a method
        `energy`, or of callables; the last two return the energy, −A.
    - `connections`: a list of `((layer, ...), synapse)`, given by their names. A third entry may
        name the connection, by default `"synapse(layer, ...)"`. Connections that use the same
        synapse share its weights.

    **Raises:** `TypeError` for something that is not a layer or synapse; `ValueError` for a
    connection of unknown layers or synapses, with the name of another connection, or whose synapse
    doesn't map the activations to a real scalar; and in every method, for a state of other layers
    or shapes, or with unequal batch axes.

    Source: Krotov, "Hierarchical associative memory", arXiv:2107.06446; Hoover et al., "A universal
    abstraction for hierarchical Hopfield networks" (2022).

    Examples:
        >>> ham = hl.HAM(
        ...     {"x": hl.IdentityLayer(6), "y": hl.SoftmaxLayer(4, tau=0.1)},
        ...     {"W": hl.DenseSynapse((6, 4), key=jax.random.key(0), stdinit=1.0)},
        ...     [(("x", "y"), "W")],
        ... )
        >>> rest = hl.relax(ham, ham.init_states(bs=5, rng=jax.random.key(1)))
        >>> print(rest.energy.shape, bool(jnp.all(rest.converged)))
        (5,) True
    """

    layers: dict[str, Layer]
    synapses: dict[str, HasEnergy]
    connections: tuple[Connection, ...] = eqx.field(static=True)
    _order: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        layers: Mapping[str, Layer],
        synapses: Mapping[str, SynapseLike],
        connections: Iterable[Sequence[str | Sequence[str]]],
    ):
        for kind, items in (("layers", layers), ("synapses", synapses)):
            if not isinstance(items, dict) or not all(isinstance(name, str) for name in items):
                raise TypeError(f"Expected {kind} to be a dict by name, got {items!r}.")
        # Sorted like the keys of JAX's dicts, so that the order of summation never changes.
        self.layers = dict(sorted(layers.items()))
        self.synapses = {name: as_synapse(name, synapses[name]) for name in sorted(synapses)}
        self.connections = tuple(map(_as_connection, connections))
        self._order = tuple(layers)

    def __check_init__(self):
        if not self.layers:
            raise ValueError("Expected one layer at least, got none.")
        for name, layer in self.layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"Expected layer {name!r} to be a Layer, got {layer!r}.")
        names = [connection.name for connection in self.connections]
        for connection in self.connections:
            self._check(connection)
            if names.count(connection.name) > 1:
                raise ValueError(
                    f"Two connections have the name {connection.name!r}: give one of them another, "
                    "((layer, ...), synapse, name)."
                )

    def _check(self, connection: Connection) -> None:
        """Raises an error unless the connection's synapse gives an energy of its layers."""
        label = f"Connection {connection.name!r}"
        _check_known(f"{label}: no layer", connection.layers, self._order)
        _check_known(f"{label}: no synapse", (connection.synapse,), tuple(self.synapses))
        shapes = {name: self.layers[name].shape for name in connection.layers}
        gs = [jax.eval_shape(self.layers[name].init_state) for name in connection.layers]
        try:
            energy = jax.eval_shape(self.synapses[connection.synapse].energy, *gs)
        except Exception as error:
            raise ValueError(
                f"{label}: the synapse doesn't take the activations of layers of shapes {shapes}: "
                f"{error}"
            ) from error
        array = isinstance(energy, jax.ShapeDtypeStruct)
        if not array or energy.shape != () or not jnp.issubdtype(energy.dtype, jnp.floating):
            got = f"{energy.dtype}{list(energy.shape)}" if array else repr(energy)
            raise ValueError(f"{label}: expected a real scalar as the energy, got {got}.")

    @property
    def tau(self) -> State:
        """The time constant of each layer."""
        return {name: layer.tau for name, layer in self.layers.items()}

    def energy(self, xs: NamedArrays) -> Float[Array, "*batch"]:
        """E, of the shape of the batch axes."""
        states = self._checked(xs)
        return self._over_samples(self._energy, states).astype(jnp.result_type(*states.values()))

    def energies(self, xs: NamedArrays) -> dict[str, dict[str, Float[Array, "*batch"]]]:
        """`{"layers": {name: E}, "connections": {name: E}}`, which add up to the energy."""
        states = self._checked(xs)
        dtype = jnp.result_type(*states.values())
        energies = self._over_samples(self._energies, states)
        return jax.tree.map(lambda energy: energy.astype(dtype), energies)

    def activations(self, xs: NamedArrays) -> State:
        """g of each layer, of the shape of its x."""
        states = self._checked(xs)
        return _in_dtypes_of(states, self._over_samples(self._activations, states))

    def dEdg(self, xs: NamedArrays) -> State:
        """∂E/∂g = (x − b) + ∂E_s/∂g of each layer, of the shape of its x."""
        states = self._checked(xs)
        return _in_dtypes_of(states, self._over_samples(self._drive, states))

    def energy_and_dEdg(self, xs: NamedArrays) -> tuple[Float[Array, "*batch"], State]:
        """The energy and ∂E/∂g, in one pass over the patterns of large memories."""
        states = self._checked(xs)
        energy, drive = self._over_samples(self._energy_and_drive, states)
        return energy.astype(jnp.result_type(*states.values())), _in_dtypes_of(states, drive)

    def coupled(self, held: Mapping[str, Bool[Array, "..."]]) -> dict[str, Bool[Array, "..."]]:
        """The units whose activation depends on a unit of `held`, which may leave out layers."""
        _check_known("no layer", held, self._order)
        return {name: self.layers[name].coupled(mask) for name, mask in held.items()}

    def blocks(self) -> tuple[dict[str, bool], ...]:
        """Sets of layers, each a dict of booleans; no connection joins two layers of one set."""
        colours: dict[str, int] = {}
        for name in self._order:
            joined = [c.layers for c in self.connections if name in c.layers]
            taken = {colours.get(other) for layers in joined for other in layers}
            colours[name] = next(i for i in range(len(self.layers)) if i not in taken)
        return tuple(
            {name: colour == block for name, colour in sorted(colours.items())}
            for block in range(max(colours.values()) + 1)
        )

    def synaptic_slopes(self, gs: State) -> State:
        """∂E_s/∂g of each layer, as a function of the activations of one sample."""
        return self._slopes_and_energies(gs)[0]

    def init_states(
        self, bs: SupportsIndex | None = None, rng: PRNGKeyArray | None = None
    ) -> State:
        """Zeros, or standard normal with a key: `(bs, *shape)` each, or `shape` without `bs`."""
        keys = [None] * len(self.layers) if rng is None else jr.split(rng, len(self.layers))
        pairs = zip(self.layers.items(), keys, strict=True)
        return {name: layer.init_state(bs, key) for (name, layer), key in pairs}

    def _checked(self, xs: NamedArrays) -> State:
        """The states as arrays, or an error if they are not those of the layers."""
        names = set(xs) if type(xs) is dict else None  # to JAX other mappings are other trees
        if names != set(self.layers):
            got = repr(xs) if names is None else f"one of {sorted(names, key=str)}"
            raise ValueError(
                f"Expected a state of the layers {list(self._order)}, a dict of arrays, got {got}."
            )
        states, batches = {}, {}
        for name, layer in self.layers.items():
            x = states[name] = as_state(xs[name], layer.shape, f" of layer {name!r}")
            batches[name] = x.shape[: x.ndim - len(layer.shape)]
        if len(set(batches.values())) > 1:
            raise ValueError(f"Expected the same batch axes in all layers, got {batches}.")
        return states

    def _over_samples(self, formula: Callable[[State], _T], states: State) -> _T:
        """Applies `formula` to every sample, with all layers in one dtype, float32 or wider."""
        dtype = wide_dtype(jnp.result_type(*states.values()))
        wide = {name: x.astype(dtype) for name, x in states.items()}
        name, layer = next(iter(self.layers.items()))
        return over_samples(formula, wide, wide[name].ndim - len(layer.shape))

    # The formulas of one sample, whose layers are all of one dtype, float32 or wider.

    def _activations(self, xs: State) -> State:
        return {name: layer._activation(xs[name]) for name, layer in self.layers.items()}

    def _energies(self, xs: State) -> dict[str, dict[str, Array]]:
        return self._with_layers(xs, self._connection_energies(self._activations(xs)))

    def _with_layers(self, xs: State, connections: dict[str, Array]) -> dict[str, dict[str, Array]]:
        layers = {name: layer._energy(xs[name]) for name, layer in self.layers.items()}
        return {"layers": layers, "connections": connections}

    def _energy(self, xs: State) -> Array:
        return _total(self._energies(xs))

    def _drive(self, xs: State) -> State:
        return self._energy_and_drive(xs)[1]

    def _energy_and_drive(self, xs: State) -> tuple[Array, State]:
        slopes, connections = self._slopes_and_energies(self._activations(xs))
        drive = {name: layer._drive(xs[name]) + slopes[name] for name, layer in self.layers.items()}
        return _total(self._with_layers(xs, connections)), drive

    def _slopes_and_energies(self, gs: State) -> tuple[State, dict[str, Array]]:
        """∂E_s/∂g of each layer, and the energy of each connection."""

        def synaptic_energy(gs: State) -> tuple[Array | float, dict[str, Array]]:
            energies = self._connection_energies(gs)
            return sum(energies.values(), 0.0), energies

        return jax.grad(synaptic_energy, has_aux=True)(gs)

    def _connection_energies(self, gs: State) -> dict[str, Array]:
        energies = {}
        for layers, synapse, name in self.connections:
            energies[name] = pure_energy(self.synapses[synapse])(*(gs[layer] for layer in layers))
        return energies

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array)))
        lines = [f"HAM with {count:,} parameters"]
        for name in self._order:
            layer = self.layers[name]
            numbers = f"shape={layer.shape}, tau={pformat(layer.tau)}"
            lines.append(f"layer {name}: {pformat(layer.lagrangian)}, {numbers}")
        for _, synapse, name in self.connections:
            lines.append(f"connection {name}: {type(self.synapses[synapse]).__name__}")
        return "\n  ".join(lines)


def _total(energies: dict[str, dict[str, Array]]) -> Array:
    return ft.reduce(jnp.add, jax.tree.leaves(energies))


def _in_dtypes_of(states: State, results: State) -> State:
    return {name: result.astype(states[name].dtype) for name, result in results.items()}


def _check_known(error: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{error} {name!r}, there are {list(known)}.")


def _as_connection(entry: Sequence[str | Sequence[str]]) -> Connection:
    """`((layer, ...), synapse)` or `((layer, ...), synapse, name)` as a connection."""
    match entry:
        case ([*layers], str(synapse), *label) if layers and len(label) <= 1:
            if all(isinstance(name, str) for name in (*layers, *label)):
                default = f"{synapse}({', '.join(layers)})"
                return Connection(tuple(layers), synapse, str(label[0]) if label else default)
    raise ValueError(
        "Expected a connection ((layer, ...), synapse) or ((layer, ...), synapse, name), by name, "
        f"got {entry!r}."
    )
