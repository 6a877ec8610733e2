"""The largest errors of L, g and E against mpmath: `python -m benchmarks.accuracy`.

In units of eps times the true value times its condition number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.accuracy import errors, LAGRANGIANS, states


def main():
    """Prints one line per Lagrangian and dtype."""
    print(f"{'':25}{'dtype':10}{'L':>6}{'g':>6}{'E':>6}")
    for name, lagrangian in LAGRANGIANS.items():
        for dtype in (jnp.float64, jnp.float32):
            results = [errors(lagrangian, batch) for batch in states(lagrangian, dtype)]
            worst = [np.max(np.concatenate(each)) for each in zip(*results, strict=True)]
            print(f"{name:25}{dtype.__name__:10}" + "".join(f"{ulps:6.1f}" for ulps in worst))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
