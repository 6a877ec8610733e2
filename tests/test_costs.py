"""Costs of evaluations and solutions, in counts that don't depend on the machine."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl

from .compiling import compiled, program_text, temporary_bytes
from .counting import CountedModel, Counter, evaluations
from .instances import NETWORKS


WEIGHTS = {"W": (30, 20), "U": (20, 10), "V": (10, 50)}
HAM = hl.HAM(
    {"a": hl.TanhLayer(30), "b": hl.SoftmaxLayer(20, tau=0.1), "c": hl.IdentityLayer(10)},
    {
        "W": hl.DenseSynapse([30, 20], W=np.ones(WEIGHTS["W"], np.float32)),
        "U": hl.DenseSynapse([20, 10], W=np.ones(WEIGHTS["U"], np.float32)),
        "V": hl.HiddenSynapse(
            [10], 50, Ws=[np.ones(WEIGHTS["V"], np.float32)], hidden_lagrangian=hl.LSoftmax()
        ),
    },
    [(("a", "b"), "W"), (("b", "c"), "U"), (("c",), "V")],
)
UNITS = 30 + 20 + 10 + 50
RUNS = {
    "energy": lambda ham, x: ham.energy(x),
    "activation flow": lambda ham, x: hl.EnergyFlow(ham, "activation")(0.0, x),
    "state flow": lambda ham, x: hl.EnergyFlow(ham, "state")(0.0, x),
    "solve": lambda ham, x: hl.solve(ham, x, 1.0, throw=False).ys,
    "relax": lambda ham, x: hl.relax(ham, x, throw=False).x,
}
# Products with weights in the program: the energy has one with each weight, a field two. `solve`
# has a field for the first stage of all, and one for each of the six that follow in a step.
PRODUCTS = {"energy": 3, "activation flow": 6, "state flow": 6, "solve": 42}
# The most temporary numbers per unit, hidden units included.
TEMPORARIES = {"energy": 4, "activation flow": 2, "state flow": 3, "solve": 24, "relax": 24}


def states(batch):
    shapes = {name: (*batch, *layer.shape) for name, layer in HAM.layers.items()}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, ()) for name in RUNS), ("energy", (7,)), ("state flow", (7,))]
)
def test_products_and_memory(name, batch):
    program = compiled(RUNS[name], HAM, states(batch))
    text = program_text(program)
    if name in PRODUCTS:
        assert text.count(" dot(") == PRODUCTS[name], text
    else:
        # The loop with the history of Anderson's method: a sweep evaluates the energy and the drive
        # of {a, c}, and that of {b} after these moved. The products with the 5 rows of the history
        # don't count.
        parts = re.split(r"\n(?=%|ENTRY)", text)
        loops = [p for p in parts if "f32[5,5]" in p and not p.startswith("ENTRY")]
        counts = [len(re.findall(r"= f32\[(?!5,1\])\S* dot\(", part)) for part in loops]
        assert 6 <= max(counts) <= 8, text
    moved = re.findall(r"= f32\[(\d+),(\d+)\]\S* (?:transpose|copy)\(", text)
    assert {(int(m), int(n)) for m, n in moved}.isdisjoint(
        shape[::step] for shape in WEIGHTS.values() for step in (1, -1)
    ), text
    count = temporary_bytes(program) / (4 * UNITS * np.prod(batch, initial=1))
    assert count <= TEMPORARIES[name]


def memory(patterns, units):
    """A network of one layer and a memory."""
    W = jnp.zeros((units, patterns), jnp.float32)
    synapse = hl.HiddenSynapse([units], patterns, Ws=[W], hidden_lagrangian=hl.LSoftmax())
    return hl.HAM({"x": hl.IdentityLayer(units)}, {"W": synapse}, [(("x",), "W")])


@pytest.mark.parametrize(
    ("name", "multiple"), [("energy", 3), ("activation flow", 2), ("state flow", 2)]
)
def test_memory_of_a_batch_in_a_large_memory(name, multiple):
    # For every batch a small multiple of the 256 MB that the million patterns take.
    large = eqx.filter_eval_shape(memory, 10**6, 64)
    for batch in ((64,), (10, 100), (4096,)):
        x = {"x": jax.ShapeDtypeStruct((*batch, 64), jnp.float32)}
        program = compiled(RUNS[name], large, x)
        assert temporary_bytes(program) <= multiple * 256e6
        moved = r"f32\[(64,1000000|1000000,64)\]\S* (transpose|copy)\("
        assert re.search(moved, program_text(program)) is None


def test_a_small_memory_is_evaluated_at_once():
    small = eqx.filter_eval_shape(memory, 1000, 64)
    x = {"x": jax.ShapeDtypeStruct((4096, 64), jnp.float32)}
    text = program_text(compiled(RUNS["activation flow"], small, x))
    assert text.count(" dot(") == 2
    assert " while(" not in text


@pytest.mark.parametrize(("solver", "stages"), [(diffrax.Tsit5(), 6), (hl.ETD2RK(), 2)])
def test_evaluations_of_a_path(solver, stages):
    constant = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.25, "solver": solver}

    def run(model):
        return hl.solve(model, jnp.ones(5), 2.0, flow="activation", **constant).ys

    _, count = evaluations(run, NETWORKS["memory"])
    assert count == 8 * stages + 1  # a step ends with the first stage of the next


def test_evaluations_until_rest():
    # A model of one block is measured by its sweeps: no further evaluation follows the last one.
    counter = Counter()
    rest = hl.relax(CountedModel(NETWORKS["memory"], counter), jnp.ones(5))
    jax.effects_barrier()  # callbacks may come after the result
    assert int(rest.num_steps) <= 3
    assert counter.calls == counter.count == int(rest.num_steps) + 1


def test_compilations(compilations):
    layer = hl.TanhLayer(5)
    runs = (
        lambda x: hl.solve(layer, x, 1.0),
        lambda x: hl.relax(layer, x),
        jax.jit(lambda x: layer.energy(x)),
    )
    # The first run also compiles small programs that all shapes share.
    for batch, count in ((2, None), (3, 1), (2, 0), (3, 0)):
        x = jax.device_put(np.ones((batch, 5)))
        for run in runs:
            compilations.clear()
            run(x)
            assert count is None or len(compilations) == count
