"""`jax.lax.while_loop` for batches of which most samples are done long before the last."""

import functools as ft
from collections.abc import Callable
from typing import TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool

from .._meshes import is_on_mesh
from .._trees import filled
from .state_trees import tree_where


_State = TypeVar("_State")
# The loop goes on with the rest of the samples alone once that is at most this share of them.
_REST = 1 / 8
# The program for the rest compiles the body once more, which pays in large batches only.
_SMALLEST_BATCH = 64


def while_loop(
    continues: Callable[[_State], Bool[Array, ""]],
    step: Callable[[_State], _State],
    start: _State,
) -> _State:
    """`jax.lax.while_loop(continues, step, start)`, but for its time under `jax.vmap`.

    There every step of a loop of JAX evaluates all samples, also those that are done. This one
    moves the last eighth of the samples into a batch of their own. Reverse mode isn't supported.
    """
    start = jax.tree.map(jnp.asarray, start)
    # The function below must not close over the arrays of the model, which may have a batch axis.
    functions = [eqx.filter_closure_convert(fn, start) for fn in (continues, step)]
    arrays, static = eqx.partition(functions, eqx.is_array)

    @custom_vmap
    def run(arrays, start):
        continues, step = eqx.combine(arrays, static)
        return jax.lax.while_loop(lambda state: continues(state), lambda state: step(state), start)

    @run.def_vmap
    def _(size, in_batched, arrays, start):
        are_batched, has_batch = in_batched
        start = jax.tree.map(
            # Constants may be numbers of Python here.
            lambda x, has: x if has else jnp.broadcast_to(x, (size, *jnp.shape(x))),
            start,
            has_batch,
        )
        axes = jax.tree.map(lambda has: 0 if has else None, are_batched)

        @ft.partial(jax.vmap, in_axes=(axes, 0))
        def continue_(arrays, state):
            return eqx.combine(arrays, static)[0](state)

        @ft.partial(jax.vmap, in_axes=(axes, 0, 0))
        def step_if(arrays, going, state):
            return tree_where(going, eqx.combine(arrays, static)[1](state), state)

        def loop(arrays, states, fewest):
            """Steps until at most `fewest` samples continue: the states, and which these are."""

            def enough_continue(carry):
                # On several devices, where `fewest` is 0, the sum would exchange an integer.
                return jnp.sum(carry[1]) > fewest if fewest else jnp.any(carry[1])

            def body(carry):
                states, going = carry
                states = step_if(arrays, going, states)
                return states, continue_(arrays, states)

            begin = (states, continue_(arrays, states))
            return jax.lax.while_loop(enough_continue, body, begin)

        fewest = int(_REST * size) if size >= _SMALLEST_BATCH and not is_on_mesh(start) else 0
        states, going = loop(arrays, start, fewest)
        if fewest:
            (which,) = jnp.nonzero(going, size=fewest, fill_value=size)
            take = ft.partial(jnp.take, indices=which, axis=0, mode="clip")
            of_rest = jax.tree.map(lambda x, has: take(x) if has else x, arrays, are_batched)
            rest, _ = loop(of_rest, jax.tree.map(take, states), 0)
            states = jax.tree.map(lambda x, new: x.at[which].set(new, mode="drop"), states, rest)
        return states, filled(states, True)

    return run(arrays, start)


class LastSamplesApart(diffrax.ForwardMode):
    """Diffrax's loop over the steps of a solution as a `while_loop` of this module.

    It copies what is saved in every step, which should therefore be small.
    """

    @property
    def _loop(self):
        return ft.partial(_with_our_loop, super()._loop)


def _with_our_loop(loop, *, outer_while_loop, **arguments):
    del outer_while_loop
    return loop(outer_while_loop=_loop_over_steps, **arguments)


def _loop_over_steps(cond_fun, body_fun, init_val, *, max_steps, buffers):
    del buffers

    def continues(carry):
        state, num_steps = carry
        return cond_fun(state) & (num_steps < max_steps)

    def step(carry):
        state, num_steps = carry
        return body_fun(state), num_steps + 1

    state, _ = while_loop(continues, step, (init_val, jnp.zeros((), int)))
    return state
