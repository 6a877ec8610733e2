"""The Energy Transformer block of the examples against the paper's formulas, arXiv:2302.07253."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest


PATH = pathlib.Path(__file__).parents[1] / "examples" / "energy_transformer.py"


@pytest.fixture(scope="module")
def block():
    spec = importlib.util.spec_from_file_location("energy_transformer", PATH)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.energy_transformer(
        jax.random.key(0), tokens=5, dim=6, heads=2, zspace=3, nhid=7, stdinit=0.8
    )


def weights(block):
    attention, memory = block.synapses["attention"], block.synapses["memory"].memory
    Wq, Wk = np.asarray(attention.Wq), np.asarray(attention.Wk)  # (d, heads, z)
    return Wq.transpose(1, 2, 0), Wk.transpose(1, 2, 0), np.asarray(memory.Ws[0]).T


def scores(block, g):
    """β K_B·Q_C of each head, as (B, C), −∞ where B = C; and K and Q, as (z, tokens)."""
    Wq, Wk, _ = weights(block)
    for q, k in zip(Wq, Wk, strict=True):
        K, Q = k @ g.T, q @ g.T
        S = 3**-0.5 * K.T @ Q
        np.fill_diagonal(S, -np.inf)
        yield S, K, Q


def test_energy_is_the_papers(block):
    g = np.random.default_rng(0).normal(size=(5, 6))
    attention = 0.0
    for S, _, _ in scores(block, g):
        attention -= 3**0.5 * np.sum(np.log(np.sum(np.exp(S), axis=0)))
    memory = -np.sum(np.maximum(weights(block)[2] @ g.T, 0) ** 2) / 2
    np.testing.assert_allclose(block.synapses["attention"].energy(g), attention, rtol=1e-13)
    np.testing.assert_allclose(block.synapses["memory"].energy(g), memory, rtol=1e-13)


def test_update_is_the_papers(block):
    x = np.random.default_rng(1).normal(size=(5, 6))
    g = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(block.activations({"tokens": x})["tokens"], g, rtol=1e-12)
    Wq, Wk, xi = weights(block)
    update = np.zeros((5, 6))
    for h, (S, K, Q) in enumerate(scores(block, g)):
        softmax = np.exp(S) / np.sum(np.exp(S), axis=0)  # over the keys B, of each query C
        for A in range(5):
            others = [B for B in range(5) if B != A]
            update[A] += Wq[h].T @ sum(K[:, B] * softmax[B, A] for B in others)
            update[A] += Wk[h].T @ sum(Q[:, C] * softmax[A, C] for C in others)
    for B in range(5):
        update[B] += xi.T @ np.maximum(xi @ g[B], 0)
    # x − dE/dg, as the leak x of the Legendre transform is not in the paper.
    actual = x - block.dEdg({"tokens": x})["tokens"]
    np.testing.assert_allclose(actual, update, rtol=1e-12, atol=1e-12)
