# %%
"""A Lagrangian of your own: the laws find what is wrong with it, and hold once it is repaired.

`LLogCosh` is the Lagrangian of tanh units as papers write it, L = Σ ln cosh(βx)/β. The formula is
right, but in floating-point numbers cosh overflows where its logarithm is still small.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp

import hopfield_layers as hl
from hopfield_layers.testing import assert_lagrangian, check_lagrangian


# %% The Lagrangian as it is written, and repaired.
class LLogCosh(eqx.Module):
    """L = Σ ln cosh(βx)/β, as it is written."""

    beta: jax.Array

    def __call__(self, x):
        return jnp.sum(jnp.log(jnp.cosh(self.beta * x))) / self.beta


class LStableLogCosh(eqx.Module):
    """The same, as ln cosh t = |t| + ln(1 + exp(−2|t|)) − ln 2, in which nothing overflows."""

    beta: jax.Array

    def __call__(self, x):
        t = jnp.abs(self.beta * x)
        return jnp.sum(t + jnp.log1p(jnp.exp(-2 * t)) - jnp.log(2.0)) / self.beta


# %% The reports.
def main() -> None:
    """Prints the reports of both, and the energy at x = 200."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="states to draw for each law")
    arguments, _ = parser.parse_known_args()  # a notebook has arguments of its own

    wrong, stable = LLogCosh(jnp.asarray(2.0)), LStableLogCosh(jnp.asarray(2.0))
    # It passes at an ordinary state.
    assert_lagrangian(wrong, jnp.array([0.5, -1.0]), jnp.array([2.0, 0.0]))
    reports = [check_lagrangian(each, max_examples=arguments.examples) for each in (wrong, stable)]
    print(*reports, sep="\n\n")
    assert not reports[0].ok
    assert reports[1].ok
    layer = hl.Layer(stable, 3)
    print("\nE at x = 200:", layer.energy(jnp.full(3, 200.0)))


if __name__ == "__main__":
    main()
