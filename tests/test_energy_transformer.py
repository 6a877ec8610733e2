"""The Energy Transformer block of the examples against the paper's formulas, arXiv:2302.07253."""

import importlib.util
import itertools
import pathlib

import diffrax
import jax
import numpy as np
import pytest

import hopfield_layers as hl

from .solutions import saved


PATH = pathlib.Path(__file__).parents[1] / "examples" / "energy_transformer.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("energy_transformer", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PATH.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def block(example):
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


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def papers_update(block, g):
    """−∂E/∂g of attention and memory, written out."""
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
    return update


def test_update_is_the_papers(block):
    x = np.random.default_rng(1).normal(size=(5, 6))
    g = layer_norm(x)
    np.testing.assert_allclose(block.activations({"tokens": x})["tokens"], g, rtol=1e-12)
    # x − dE/dg, as the leak x of the Legendre transform is not in the paper.
    actual = x - block.dEdg({"tokens": x})["tokens"]
    np.testing.assert_allclose(actual, papers_update(block, g), rtol=1e-12, atol=1e-12)


def test_twelve_steps_without_leak_are_the_papers(example, block):
    x = np.random.default_rng(2).normal(size=(5, 6))
    solution = hl.solve(
        example.WithoutLeak(block),
        {"tokens": x},
        t1=1.2,
        dt0=0.1,
        flow="activation",
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
        saveat=diffrax.SaveAt(t0=True, steps=True),
        max_steps=12,
    )
    assert solution.stats["num_steps"] == 12
    path = saved(solution)["tokens"]
    for before, after in itertools.pairwise(path):
        step = 0.1 * papers_update(block, layer_norm(np.asarray(before)))
        np.testing.assert_allclose(after, before + step, rtol=1e-10, atol=1e-12)
    energy = np.asarray(example.WithoutLeak(block).energy({"tokens": path}))
    synapses = [
        block.synapses[name].energy(layer_norm(np.asarray(path[-1])))
        for name in ("attention", "memory")
    ]
    np.testing.assert_allclose(energy[-1], sum(synapses), rtol=1e-12)
    assert np.all(np.diff(energy) < 0)
