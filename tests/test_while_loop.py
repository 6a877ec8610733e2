"""Loops over batches end as those of JAX, and drop the samples that are done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hopfield_layers.dynamics.while_loop import while_loop


def countdown(loop, number, factor, on_step=lambda x: x):
    """A product of `number` factors, none that is left, and their number."""

    def step(state):
        total, left, count = state
        return on_step(total) * factor, left - 1, count + 1

    start = jnp.ones(()), number, jnp.zeros((), int)
    return loop(lambda state: state[1] > 0, step, start)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100])
def test_results_are_those_of_jax(size):
    numbers = jax.random.randint(jax.random.key(0), (size,), 0, 30)
    factors = jax.random.uniform(jax.random.key(1), (size,))
    for axes in ((0, 0), (0, None), (None, 0)):
        number = numbers if axes[0] == 0 else jnp.array(7)
        factor = factors if axes[1] == 0 else jnp.array(0.5)
        ours, theirs = (
            jax.jit(jax.vmap(lambda n, f, loop=loop: countdown(loop, n, f), axes))(number, factor)
            for loop in (while_loop, jax.lax.while_loop)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("last", [0, 1, 8, 9, 100])
def test_the_last_samples_continue_alone(last):
    rows = []

    def on_step(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        counted = lambda x: (rows.append(np.shape(x)[0]), x)[1]
        return jax.pure_callback(counted, shape, x, vmap_method="expand_dims")

    numbers = jnp.full(100, 2).at[:last].set(10)
    factors = jnp.linspace(0.5, 1.0, 100)
    run = jax.vmap(lambda n, f: countdown(while_loop, n, f, on_step))
    total, left, count = run(numbers, factors)
    np.testing.assert_array_equal(left, 0)
    np.testing.assert_array_equal(count, numbers)
    np.testing.assert_allclose(total, factors**numbers, rtol=1e-12)
    # More than an eighth of 100 samples are not moved into another batch.
    alone = [12] * 8 if 0 < last <= 12 else [100] * 8 if last else []
    assert rows == [100, 100, *alone]


def test_two_batch_axes():
    numbers = jax.random.randint(jax.random.key(0), (3, 70), 0, 30).at[1].set(0)
    factors = jnp.array([0.5, 0.7, 0.9])
    run = jax.vmap(jax.vmap(lambda n, f: countdown(while_loop, n, f), (0, None)))
    total, left, count = run(numbers, factors)
    np.testing.assert_array_equal(left, 0)
    np.testing.assert_array_equal(count, numbers)
    np.testing.assert_allclose(total, factors[:, None] ** numbers, rtol=1e-12)
