"""An Energy Transformer block: tokens that fall down the energy of attention and a memory.

The tokens are a layer-norm layer, E = E_layer + E_att + E_HN. Attention leaves each token's own key
out, and the memory, −½ Σ relu(ξ·g)², acts on each token by itself. τ dx/dt = −∂E/∂g is the paper's
update with a leak −x, which comes with E_layer and keeps the tokens from growing without end. The
leak is a choice: the Euler steps of `WithoutLeak(block)` are those of the paper.
Prints the energy, and draws it and the network next to this file or to `--out FOLDER`.

Source: Hoover et al., "Energy transformer" (NeurIPS 2023), arXiv:2302.07253.
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import hopfield_layers as hl
from hopfield_layers.plotting import plot_energy, plot_network


class TokenMemory(hl.AbstractSynapse):
    """A memory of single tokens, applied to each."""

    memory: hl.HiddenSynapse

    def alignment(self, *gs):
        return jnp.sum(jax.vmap(self.memory.alignment)(*gs))


class WithoutLeak(hl.AbstractEnergyModel):
    """The energy of a network's synapses alone: τ dx/dt = −∂E_s/∂g, the paper's update."""

    ham: hl.HAM

    @property
    def tau(self):
        return self.ham.tau

    def energy(self, x):
        return jnp.sum(jnp.stack(list(self.ham.energies(x)["connections"].values())), axis=0)

    def activations(self, x):
        return self.ham.activations(x)

    def dEdg(self, x):
        return jax.tree.map(jnp.subtract, self.ham.dEdg(x), x)  # the leak of a layer without bias


def energy_transformer(key, tokens=16, dim=32, heads=4, zspace=16, nhid=64, stdinit=0.1):
    """The block, with β = 1/√zspace; stdinit is that of all weights."""
    keys, mask = jax.random.split(key), ~jnp.eye(tokens, dtype=bool)
    size = {"num_heads": heads, "zspace_dim": zspace, "stdinit": stdinit}
    softmax = {"hidden_lagrangian": hl.LSoftmax(beta=zspace**-0.5), "mask": mask}
    attention = hl.SelfAttentionSynapse((tokens, dim), key=keys[0], **size, **softmax)
    memory = TokenMemory(hl.HiddenSynapse([dim], nhid, key=keys[1], stdinit=stdinit))
    return hl.HAM(
        {"tokens": hl.LayerNormLayer((tokens, dim))},
        {"attention": attention, "memory": memory},
        [(("tokens",), "attention"), (("tokens",), "memory")],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="for the picture")
    out = parser.parse_args().out
    block = energy_transformer(jax.random.key(0))
    x0 = block.init_states(bs=3, rng=jax.random.key(1))
    saveat = diffrax.SaveAt(ts=jnp.linspace(0, 5, 101))
    path = hl.solve(block, x0, 5.0, flow="activation", saveat=saveat)
    energy = block.energy(path.ys)[:, ::20]  # pyright: ignore[reportArgumentType]
    print(f"{block}\nThe energy of each sample at t = 0, 1, 2, 3, 4, 5:\n{energy}")
    figure = Figure((9, 4), layout="constrained")
    plot_network(block, ax=figure.add_subplot(1, 2, 1))
    plot_energy(block, path, ax=figure.add_subplot(1, 2, 2))
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "energy_transformer.png")
