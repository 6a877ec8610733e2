"""The laws of `hopfield_layers.testing`, over thousands of random cases of every Lagrangian.

`python -m benchmarks.laws` counts violations: for the library's Lagrangians, with parameters and
states of any size, there should be none. For each law the table has the number of examples, the
largest excess in units of the rounding error that is allowed, and how many are more than 1.
"""

import argparse
import inspect
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hopfield_layers as hl
from hopfield_layers.testing import gradient_laws, lagrangian_laws, LAWS, model_laws
from hopfield_layers.testing.strategies import KINDS


Flow = Literal["state", "activation"]
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


def batches(rng: np.random.Generator, kind: Any, count: int, units: int, dtype: Any):
    """Yields the laws at random states: those of single states, then those of solutions."""
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    parameters, bias = drawn(rng, kind, count), cast(rng.normal(size=(count, units)))
    x, y, moderate_states = (
        cast(drawn_states(rng, count, units, most)) for most in (1e4, 1e4, 30.0)
    )
    cast_parameters = cast(parameters)
    yield jax.vmap(lambda p, x, y: lagrangian_laws.measure(kind(**p), x, y))(cast_parameters, x, y)

    def bounded(p, bias, x):
        return model_laws.bound_laws(layer_of(kind, p, bias), x)

    yield jax.vmap(bounded)(cast_parameters, bias, moderate_states)
    flows: tuple[Flow, ...] = ("state", "activation")
    for flow in flows:

        def falls(p, bias, x, flow: Flow = flow):
            layer = layer_of(kind, p, bias)
            return model_laws.descent_laws(layer, x, flow, t1=20.0, max_steps=64)

        yield jax.vmap(falls)(cast_parameters, bias, moderate_states)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)

        def gradients(p, bias, x):
            return gradient_laws.gradient_laws(layer_of(kind, p, bias), x)

        yield jax.vmap(gradients)(*wide((parameters, bias, moderate_states)))


def main() -> None:
    """Prints the excess of each Lagrangian, and the table of the laws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="of each Lagrangian")
    parser.add_argument("--units", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of Lagrangians")
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    total: dict[str, list[float]] = {law: [0, 0.0, 0] for law in LAWS}
    for i, kind in enumerate(KINDS):
        if arguments.only and kind.__name__ not in arguments.only:
            continue
        rng, excesses_by_law = np.random.default_rng(i), {}
        for dtype in map(jnp.dtype, arguments.dtypes):
            for laws in batches(rng, kind, arguments.examples, arguments.units, dtype):
                for law, verdicts in laws.items():
                    # The first axis is that of examples.
                    excess = [each.excess().reshape(arguments.examples, -1) for each in verdicts]
                    worst = np.max(np.concatenate(excess, axis=1), axis=1, initial=0)
                    excesses_by_law[law] = max(excesses_by_law.get(law, 0.0), float(np.max(worst)))
                    row = total[law]
                    row[0] += arguments.examples
                    row[1] = max(row[1], excesses_by_law[law])
                    row[2] += int(np.sum(worst > 1))
        found = ", ".join(f"{law} {worst:.2g}" for law, worst in excesses_by_law.items())
        print(kind.__name__, found)
        jax.clear_caches()
        eqx.clear_caches()
    # The laws about scalars, dtypes and jit have no excess: the tests check them.
    print(f"\n{'law':16}{'examples':>10}{'worst':>10}{'violated':>9}")
    for law, (count, worst, violated) in total.items():
        if count:
            print(f"{law:16}{count:>10}{worst:>10.2g}{violated:>9}")
    raise SystemExit(any(violated for _, _, violated in total.values()))


if __name__ == "__main__":
    main()
