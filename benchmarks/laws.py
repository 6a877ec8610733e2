"""The laws of `hopfield_layers.testing`, over thousands of random cases of what is right.

`python -m benchmarks.laws` counts violations: for the library's Lagrangians and synapses, with
parameters and states of any size, and for random networks, there should be none. For each law the
table has the number of examples, the largest excess in units of the rounding error that is allowed,
and how many are more than 1.

`python -m benchmarks.laws --examples 10000 --networks 200` is the full sweep: each of 25 structures
of networks is compiled for itself, and has 8 networks with 50 states each. `--minutes` begins
nothing new after that time, and a line says how much was done; `--first-structure` and
`--structures` take a part of them.
"""

import argparse
import inspect
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hopfield_layers as hl
from hopfield_layers.model import Flow
from hopfield_layers.testing import (
    energy_bound,
    gradient_laws,
    lagrangian_laws,
    LAWS,
    model_laws,
    PROPERTIES,
    rest_laws,
    synapse_laws,
)
from hopfield_layers.testing.strategies import KINDS
from hopfield_layers.testing.verdict import Laws
from tests.instances import SYNAPSES
from tests.networks import draws_of


# Heun's method has few stages, which compile fast.
FEW_STEPS = {"max_steps": 64, "solver": diffrax.Heun()}
RANGES = {
    "beta": (0.01, 100),
    "scale": (0.01, 100),
    "gamma": (0.01, 100),
    "n": (1.25, 4),
    "p": (1.25, 4),
    "alpha": (1.125, 3),
}


def drawn(rng: np.random.Generator, kind: Any, count: int) -> dict[str, np.ndarray]:
    """Parameters of any size; each is the default in half of the examples."""
    parameters = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in RANGES:
            low, high = np.log(RANGES[name])
            value = np.exp(rng.uniform(low, high, count))
            parameters[name] = np.where(rng.random(count) < 0.5, value, parameter.default)
    return parameters


def drawn_states(rng: np.random.Generator, count: int, units: int, most: float) -> np.ndarray:
    """States with ties, zeros, huge entries and offsets, from 1e-6 up to `most`."""
    shape = (count, units)
    entries = np.where(rng.random(shape) < 0.3, rng.integers(-1, 2, shape), rng.normal(size=shape))
    entries = np.where(rng.random((count, 1)) < 0.1, entries[:, :1], entries)
    offset = rng.choice([0.0, 0.0, 1.0, -1.0, 1e3], (count, 1))
    scale = np.exp(rng.uniform(np.log(1e-6), np.log(most), (count, 1)))
    one = rng.random(shape) < np.where(rng.random((count, 1)) < 0.2, 1 / units, 0)
    return scale * (entries + offset) * np.where(one, 1e3, 1.0)


def layer_of(kind: Any, parameters: Any, bias: Any) -> hl.Layer:
    """A layer with this Lagrangian and τ = 2."""
    return hl.Layer(kind(**parameters), bias.shape, tau=2.0, bias=bias)


def of_lagrangian(
    rng: np.random.Generator, kind: Any, count: int, units: int, dtype: Any
) -> Iterator[Laws]:
    """The laws at random states: those of the Lagrangian, then those of a layer with it."""
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    parameters, bias = cast((drawn(rng, kind, count), rng.normal(size=(count, units))))
    x, y, moderate = (cast(drawn_states(rng, count, units, most)) for most in (1e4, 1e4, 30.0))
    yield jax.vmap(lambda p, x, y: lagrangian_laws.measure(kind(**p), x, y))(parameters, x, y)
    yield from of_layer(lambda p, bias: layer_of(kind, p, bias), (parameters, bias), moderate)


def of_layer(make: Callable[..., Any], parameters: Any, x: Any) -> Iterator[Laws]:
    """The laws of layers made of the parameters, at the states x; the first axis is of examples."""

    def bounded(parameters, x):
        layer = make(*parameters)
        return model_laws.bound_laws(layer, x, layer.energy_bound())

    yield jax.vmap(bounded)(parameters, x)
    for flow in get_args(Flow):

        def falls(parameters, x, flow: Flow = flow):
            layer = make(*parameters)
            return model_laws.descent_laws(layer, x, flow, t1=10 * layer.tau, **FEW_STEPS)

        yield jax.vmap(falls)(parameters, x)
    yield jax.vmap(lambda p, x: gradient_laws.gradient_laws(make(*p), x))(parameters, x)


def of_synapse(rng: np.random.Generator, synapse: Any, count: int, dtype: Any) -> Iterator[Laws]:
    """The laws of a synapse of random weights at random activations."""
    arrays, static = eqx.partition(synapse, eqx.is_inexact_array)
    # Parameters that have to be positive stay so.
    factors = lambda a: np.exp(rng.normal(size=(count, *a.shape)) / 2)
    weights = jax.tree.map(lambda a: jnp.asarray(a * factors(a), dtype), arrays)

    def states():
        return tuple(
            jnp.asarray(drawn_states(rng, count, math.prod(shape), 1e4), dtype).reshape(-1, *shape)
            for shape in synapse.shapes
        )

    def laws(weights, gs, others):
        return synapse_laws.synapse_laws(eqx.combine(weights, static), gs, others)

    examples = (weights, states(), states())
    if isinstance(synapse, hl.ConvSynapse):
        # XLA takes longer for many kernels at once than for one after another.
        one = lambda i: laws(*jax.tree.map(lambda x: x[i], examples))
        yield _stacked([one(i) for i in range(count)])
    else:
        yield jax.vmap(laws)(*examples)


def of_networks(seed: int, count: int, each: int) -> Iterator[Laws]:
    """The laws of `count` random networks of one structure, at `each` states, and of their rests.

    One at a time: a program for many at once takes longer to compile than these do to run.
    """
    draw = eqx.filter_jit(draws_of(seed))
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), (count, each))
    networks = [draw(row[0])[0] for row in keys]
    examples = [(ham, draw(key)[1]) for ham, row in zip(networks, keys, strict=True) for key in row]
    bounds = [bound for ham in networks for bound in [eqx.filter_jit(energy_bound)(ham)] * each]

    def of_all(laws, *arguments):
        return _stacked(list(map(laws, *zip(*examples, strict=True), *arguments)))

    yield of_all(model_laws.bound_laws, bounds)
    for flow in get_args(Flow):
        yield of_all(partial(model_laws.descent_laws, flow=flow, **FEW_STEPS))
    yield of_all(gradient_laws.gradient_laws)
    yield of_all(rest_laws.rest_laws)


def _stacked(laws: list[Laws]) -> Laws:
    """The laws of several examples as those of a stack of them."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *laws)


class Table:
    """For each law the number of examples, the largest excess and the number of violations."""

    def __init__(self):
        self.rows: dict[str, list[float]] = {law: [0, 0.0, 0] for law in LAWS}

    def add(self, name: str, count: int, batches: Iterator[Laws]) -> None:
        """Adds the laws of an object, and prints the largest excess of each."""
        found: dict[str, float] = {}
        for laws in batches:
            for law in laws.keys() - PROPERTIES.keys():
                excess = [each.excess().reshape(count, -1) for each in laws[law]]
                worst = np.max(np.concatenate(excess, axis=1), axis=1, initial=0)
                found[law] = max(found.get(law, 0.0), float(np.max(worst)))
                row = self.rows[law]
                row[:] = row[0] + count, max(row[1], found[law]), row[2] + int(np.sum(worst > 1))
        print(
            name, ", ".join(f"{law} {found[law]:.2g}" for law in LAWS if law in found), flush=True
        )
        jax.clear_caches()
        eqx.clear_caches()

    def __str__(self) -> str:
        lines = [f"\n{'law':18}{'examples':>10}{'worst':>10}{'violated':>9}"]
        for law, (count, worst, violated) in self.rows.items():
            # The laws about scalars, dtypes and jit have no excess: the tests check them.
            lines += [f"{law:18}{count:>10}{worst:>10.2g}{violated:>9}"] * (count > 0)
        return "\n".join(lines)


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Iterator[Laws]]]:
    """The name of each object, the number of its examples, and its laws, which are lazy."""
    count, only = arguments.examples, arguments.only
    for dtype in map(jnp.dtype, arguments.dtypes):
        for i, kind in enumerate(KINDS):
            if only is None or kind.__name__ in only:
                rng = np.random.default_rng(i)
                laws = of_lagrangian(rng, kind, count, arguments.units, dtype)
                yield kind.__name__, count, laws
        for i, (name, synapse) in enumerate(SYNAPSES.items()):
            if only is None or name in only:
                yield name, count, of_synapse(np.random.default_rng(i), synapse, count, dtype)
    first, each = arguments.first_structure, arguments.states
    structures = min(arguments.structures, arguments.networks)
    for seed in range(first, first + structures):
        count = arguments.networks // structures
        yield f"networks {seed}", count * each, of_networks(seed, count, each)


def main() -> None:
    """Prints the excess of each object, and the table of the laws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="of each Lagrangian and synapse")
    parser.add_argument("--networks", type=int, default=25, help="random networks")
    parser.add_argument("--structures", type=int, default=25, help="of the networks")
    parser.add_argument("--first-structure", type=int, default=0, help="the seed of the first one")
    parser.add_argument("--states", type=int, default=50, help="of each network")
    parser.add_argument("--units", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of Lagrangians and synapses; may be empty")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table, end = Table(), time.monotonic() + 60 * arguments.minutes
    cases = list(_cases(arguments))
    for done, (name, count, batches) in enumerate(cases):
        if time.monotonic() > end:
            print(f"Out of time before {name}: {done} of {len(cases)} objects were tried.")
            break
        table.add(name, count, batches)
    print(table)
    raise SystemExit(any(violated for _, _, violated in table.rows.values()))


if __name__ == "__main__":
    main()
