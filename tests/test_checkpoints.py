"""Training that is interrupted and resumed from its last checkpoint ends with the same bits."""

import os
import pathlib
import signal
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import hopfield_layers as hl


class Checkpoint(eqx.Module):
    """All on which the further training depends."""

    model: hl.HAM
    momentum: hl.HAM
    step: jax.Array
    key: jax.Array

    def save(self, path: pathlib.Path) -> None:
        # Written aside and then renamed, so that a kill never leaves half a file.
        aside = path.with_suffix(".new")
        eqx.tree_serialise_leaves(aside, self)
        os.replace(aside, path)


def beginning():
    layers = {"x": hl.TanhLayer(4, use_bias=True), "y": hl.SoftmaxLayer(3, beta=2.0)}
    synapses = {"W": hl.DenseSynapse((4, 3), key=jr.key(0))}
    model = hl.HAM(layers, synapses, [(("x", "y"), "W")])
    momentum = jax.tree.map(jnp.zeros_like, model)
    return Checkpoint(model, momentum, jnp.array(0), jr.key_data(jr.key(1)))


@eqx.filter_jit
def advanced(state):
    key, now = jr.split(jr.wrap_key_data(state.key))
    x = jr.normal(now, (8, 4))

    def loss(model):
        states = model.init_states(8)
        clamp = {"x": jnp.array(True)}
        rest = hl.relax(model, {**states, "x": x}, clamp=clamp)
        return jnp.mean(rest.x["y"][:, 0] * jnp.sign(x[:, 0]))

    slope = eqx.filter_grad(loss)(state.model)
    momentum = jax.tree.map(lambda m, d: 0.9 * m + d, state.momentum, slope)
    model = eqx.apply_updates(state.model, jax.tree.map(lambda m: -0.1 * m, momentum))
    return Checkpoint(model, momentum, state.step + 1, jr.key_data(key))


def train(path, steps, killed_at=None):
    state = beginning()
    if path.exists():
        state = eqx.tree_deserialise_leaves(path, state)
    while state.step < steps:
        if state.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        state = advanced(state)
        if state.step % 5 == 0:
            state.save(path)
    return state


def test_training_resumes_with_the_same_bits(tmp_path):
    whole = train(tmp_path / "whole.eqx", 12)
    command = [sys.executable, "-m", "tests.test_checkpoints", str(tmp_path / "parts.eqx")]
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    killed = subprocess.run(command, cwd=root, env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert eqx.tree_deserialise_leaves(tmp_path / "parts.eqx", beginning()).step == 5
    resumed = train(tmp_path / "parts.eqx", 12)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert not eqx.tree_equal(whole.model, beginning().model)


if __name__ == "__main__":
    train(pathlib.Path(sys.argv[1]), 12, killed_at=8)
