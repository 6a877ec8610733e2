# %%
"""The laws of `hopfield_layers.testing`, tried on the Lagrangians and layers of HAMUX 0.2.2.

`pip install ".[bench]" && python examples/hamux_report.py` prints how many laws each of them
satisfies, and the simplest counterexample to each law that it breaks. Lagrangians are checked as
plain callables. Layers are HAMUX's, with their own energy and activation, with τ = 1 and without
synapses, so that ∂E/∂g = x.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import hamux  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

import hopfield_layers as hl
from hopfield_layers.testing import check_lagrangian, check_model, Report


NAMES = (
    *("identity", "relu", "repu", "exp", "rexp", "tanh", "sigmoid"),
    *("softmax", "ghostmax", "layernorm", "spherical_norm"),
)


# %% A layer of HAMUX as a model.
class HamuxLayer(hl.AbstractEnergyModel):
    """A layer of HAMUX, for one sample."""

    lagrangian: Callable[..., jax.Array] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    tau: jax.Array

    @property
    def _layer(self) -> Any:
        constructor: Any = hamux.NeuronLayer
        return constructor(self.lagrangian, self.shape)

    def energy(self, x):
        return self._over_samples(lambda x: self._layer.energy(self._layer.activations(x), x), x)

    def activations(self, x):
        return self._over_samples(self._layer.activations, x)

    def dEdg(self, x):
        return x

    def _over_samples(self, fn, x):
        for _ in range(x.ndim - len(self.shape)):
            fn = jax.vmap(fn)
        return fn(x)


def reports(
    names: Iterable[str], shape: tuple[int, ...], examples: int
) -> Iterator[tuple[str, Report]]:
    """A report of each Lagrangian, and one of each layer."""
    for name in names:
        lagrangian: Any = getattr(hamux, f"lagr_{name}")
        if name == "repu":
            lagrangian = jax.tree_util.Partial(lagrangian, n=3.0)  # which has no default
        yield f"lagr_{name}", check_lagrangian(lagrangian, shape, max_examples=examples)
        layer = HamuxLayer(lagrangian=lagrangian, shape=shape, tau=jnp.ones(()))
        yield (
            f"NeuronLayer(lagr_{name})",
            check_model(layer, jnp.zeros(shape), max_examples=examples),
        )


# %% The table, and the counterexamples.
def main() -> None:
    """Prints the table, and the counterexamples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="states to draw for each law")
    parser.add_argument("--shape", type=int, nargs="*", default=[5])
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    arguments, _ = parser.parse_known_args()  # a notebook has arguments of its own
    texts = []
    print(f"| of HAMUX 0.2.2, {tuple(arguments.shape)} units | holds | breaks |\n|---|---|---|")
    of_each = reports(arguments.only, tuple(arguments.shape), arguments.examples)
    for name, report in of_each:
        broken = [finding for finding in report.findings if finding.is_broken]
        kept = {f.law for f in report.findings if not f.is_broken} - {f.law for f in broken}
        print(
            f"| `{name}` | {len(kept)} laws | {', '.join(f.law for f in broken) or '–'} |",
            flush=True,
        )
        texts += [f"\n{name}: {f.counterexample}" for f in broken]
        jax.clear_caches()
    print(*texts, sep="\n")


if __name__ == "__main__":
    main()
