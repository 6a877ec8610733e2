"""Networks of layers and synapses under one energy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from ._arrays import as_state, widened
from .lagrangians.base import pformat
from .layers import Layer
from .model import AbstractEnergyModel
from .synapses import as_synapse


State = dict[str, Array]


class Connection(NamedTuple):
    """A synapse at work: the layers it joins, in its order, by name."""

    layers: tuple[str, ...]
    synapse: str
    name: str


class HAM(AbstractEnergyModel):
    """A hierarchical associative memory: E = Σ layers E(x) + Σ connections E_s(g₁, g₂, …).

    Its state is a dict of arrays, one per layer, of shape `(*batch, *shape)` each, with any number
    of batch axes, the same in all layers. ∂E/∂g = (x − b) + ∂E_s/∂g by the Legendre transform: one
    reverse pass over the synapses and none over the layers. Every method keeps the state's dtype.

    **Arguments:**

    - `layers`: a dict of [`hopfield_layers.Layer`][]s by name.
    - `synapses`: a dict of synapses by name: [`hopfield_layers.AbstractSynapse`][]s, objects with a
        method `energy`, or callables; the latter two return the energy, −A.
    - `connections`: a list of `((layer, ...), synapse)` by name. A synapse may serve several, and
        their weights are then shared. A third entry names the connection; by default it is
        `"synapse(layer, ...)"`.

    **Raises:** `TypeError` for what is no layer or synapse; `ValueError` for connections with
    unknown names, or the same name, or whose synapse doesn't take the layers' activations or
    doesn't return a real scalar; every method, for a state with missing, unknown or misshapen
    entries or with different batch axes.

    Source: Krotov & Hopfield, arXiv:2008.06996; Krotov, "Hierarchical associative memory",
    arXiv:2107.06446; Hoover et al., "A universal abstraction for hierarchical Hopfield networks"
    (2022).

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> import jax.numpy as jnp
    >>> ham = hl.HAM(
    ...     {"x": hl.IdentityLayer(6), "y": hl.SoftmaxLayer(4, tau=0.1)},
    ...     {"W": hl.DenseSynapse((6, 4), key=jax.random.key(0), stdinit=1.0)},
    ...     [(("x", "y"), "W")],
    ... )
    >>> ham
    HAM with 27 parameters
      layer x: LIdentity(), shape=(6,), tau=1.0
      layer y: LSoftmax(beta=1.0), shape=(4,), tau=0.1
      connection W(x, y): DenseSynapse
    >>> rest = hl.relax(ham, ham.init_states(bs=5, rng=jax.random.key(1)))
    >>> print(rest.energy.shape, bool(jnp.all(rest.converged)))
    (5,) True

    ```
    """

    layers: dict[str, Layer]
    synapses: dict[str, Any]
    connections: tuple[Connection, ...] = eqx.field(static=True)

    def __init__(self, layers: dict[str, Layer], synapses: dict[str, Any], connections: Any):
        # In the order that jax gives dicts, so that it can't change what is added up first.
        self.layers = dict(sorted(_by_name("layers", layers).items()))
        synapses = dict(sorted(_by_name("synapses", synapses).items()))
        self.synapses = {name: _named(name, synapse) for name, synapse in synapses.items()}
        self.connections = tuple(map(_as_connection, connections))

    def __check_init__(self):
        if not self.layers:
            raise ValueError("Expected one layer at least, got none.")
        for name, layer in self.layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"Expected layer {name!r} to be a Layer, got {layer!r}.")
        names = [connection.name for connection in self.connections]
        for connection in self.connections:
            if names.count(connection.name) > 1:
                raise ValueError(
                    f"Two connections have the name {connection.name!r}: give one of them another, "
                    "((layer, ...), synapse, name)."
                )
            self._check(connection)

    def _check(self, connection: Connection) -> None:
        """Raises an error unless the connection's synapse gives an energy of its layers."""
        here = f"Connection {connection.name!r}"
        for kind, known, names in (
            ("layer", self.layers, connection.layers),
            ("synapse", self.synapses, (connection.synapse,)),
        ):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"{here}: no {kind} {unknown[0]!r}, there are {list(known)}.")
        shapes = {name: self.layers[name].shape for name in connection.layers}
        gs = [
            jax.ShapeDtypeStruct(shapes[name], jnp.result_type(float)) for name in connection.layers
        ]
        try:
            energy = jax.eval_shape(lambda *gs: self.synapses[connection.synapse].energy(*gs), *gs)
        except Exception as error:
            raise ValueError(
                f"{here}: the synapse doesn't take the activations of layers of shapes {shapes}: "
                f"{error}"
            ) from error
        if not isinstance(energy, jax.ShapeDtypeStruct):
            raise ValueError(f"{here}: expected a real scalar as the energy, got {energy!r}.")
        if energy.shape != () or not jnp.issubdtype(energy.dtype, jnp.floating):
            got = f"{energy.dtype}{list(energy.shape)}"
            raise ValueError(f"{here}: expected a real scalar as the energy, got {got}.")

    @property
    def tau(self) -> dict[str, Array]:
        """The time constant of each layer."""
        return {name: layer.tau for name, layer in self.layers.items()}

    def energy(self, xs: dict[str, ArrayLike]) -> Array:
        """E, of the shape of the batch axes."""
        states, batch, dtype = self._checked(xs)
        parts = jax.tree.leaves(self._energies(states, batch))
        return functools.reduce(jnp.add, parts).astype(dtype)

    def energies(self, xs: dict[str, ArrayLike]) -> dict[str, dict[str, Array]]:
        """`{"layers": {name: E}, "connections": {name: E}}`, which add up to the energy."""
        states, batch, dtype = self._checked(xs)
        return jax.tree.map(lambda energy: energy.astype(dtype), self._energies(states, batch))

    def activations(self, xs: dict[str, ArrayLike]) -> State:
        """g of each layer, of the shape of its x."""
        states, _, _ = self._checked(xs)
        return self._activations(states)

    def dEdg(self, xs: dict[str, ArrayLike]) -> State:
        """∂E/∂g = (x − b) + ∂E_s/∂g of each layer, of the shape of its x."""
        states, batch, _ = self._checked(xs)
        wide = jax.tree.map(widened, states)
        slope = jax.grad(lambda gs: sum(self._synaptic(gs).values(), 0.0))
        slopes = _batched(slope, batch)(self._activations(wide))
        return {
            name: (layer.dEdg(wide[name]) + slopes[name]).astype(states[name].dtype)
            for name, layer in self.layers.items()
        }

    def init_states(self, bs: int | None = None, rng: PRNGKeyArray | None = None) -> State:
        """Zeros, or standard normal with a key, of shape `(bs, *shape)`, without `bs` `shape`."""
        keys = [None] * len(self.layers) if rng is None else jr.split(rng, len(self.layers))
        named = zip(self.layers.items(), keys, strict=True)
        return {name: layer.init_state(bs, key) for (name, layer), key in named}

    def _checked(self, xs: dict[str, ArrayLike]) -> tuple[State, tuple[int, ...], Any]:
        """The states as arrays, their batch axes and the dtype of energies."""
        names = set(xs) if type(xs) is dict else None  # of other kinds trees don't fit
        if names != set(self.layers):
            got = repr(xs) if names is None else f"one of {sorted(names, key=str)}"
            raise ValueError(
                f"Expected a state of the layers {list(self.layers)}, a dict of arrays, got {got}."
            )
        states, batches = {}, {}
        for name, layer in self.layers.items():
            x = states[name] = as_state(xs[name], layer.shape, f" of layer {name!r}")
            batches[name] = x.shape[: x.ndim - len(layer.shape)]
        batch = next(iter(batches.values()))
        if any(other != batch for other in batches.values()):
            raise ValueError(f"Expected the same batch axes in all layers, got {batches}.")
        return states, batch, jnp.result_type(*states.values())

    def _activations(self, states: State) -> State:
        return {name: layer.activation(states[name]) for name, layer in self.layers.items()}

    def _energies(self, states: State, batch: tuple[int, ...]) -> dict[str, dict[str, Array]]:
        wide = jax.tree.map(widened, states)
        layers = {name: layer.energy(wide[name]) for name, layer in self.layers.items()}
        connections = _batched(self._synaptic, batch)(self._activations(wide))
        return {"layers": layers, "connections": connections}

    def _synaptic(self, gs: State) -> dict[str, Array]:
        """The energy of each connection, of one sample."""
        return {
            connection.name: self.synapses[connection.synapse].energy(
                *(gs[name] for name in connection.layers)
            )
            for connection in self.connections
        }

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array)))
        lines = [f"HAM with {count:,} parameters"]
        for name, layer in self.layers.items():
            about = f"shape={layer.shape}, tau={pformat(layer.tau)}"
            lines.append(f"layer {name}: {pformat(layer.lagrangian)}, {about}")
        for connection in self.connections:
            kind = type(self.synapses[connection.synapse]).__name__
            lines.append(f"connection {connection.name}: {kind}")
        return "\n  ".join(lines)


def _batched(fn: Callable[..., Any], batch: tuple[int, ...]) -> Callable[..., Any]:
    for _ in batch:
        fn = jax.vmap(fn)
    return fn


def _by_name(what: str, items: Any) -> dict[str, Any]:
    if not isinstance(items, dict) or not all(isinstance(name, str) for name in items):
        raise TypeError(f"Expected {what} to be a dict by name, got {items!r}.")
    return items


def _named(name: str, synapse: Any) -> Any:
    try:
        return as_synapse(synapse)
    except TypeError as error:
        raise TypeError(f"Synapse {name!r}: {error}") from error


def _as_connection(entry: Any) -> Connection:
    """`((layer, ...), synapse)` or `((layer, ...), synapse, name)` as a connection."""
    parts = list(entry) if isinstance(entry, tuple | list) else []
    layers = tuple(parts[0]) if parts and isinstance(parts[0], tuple | list) else ()
    names = [*layers, *parts[1:]]
    if len(parts) not in (2, 3) or not layers or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "Expected a connection ((layer, ...), synapse) or ((layer, ...), synapse, name), by "
            f"name, got {entry!r}."
        )
    default = f"{parts[1]}({', '.join(layers)})"
    return Connection(layers, parts[1], parts[2] if len(parts) == 3 else default)
