"""What evaluations and solves cost, in counts that are the same on every machine."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl
from benchmarks.dynamics import Counted, POINTS

from .compiling import OPTIMIZED
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
# Products of weights in the program: one of each in the energy and two in a field. In `solve` that
# is one field before the loop and one in a loop over the stages; in `relax` one before the loop,
# and in it two stages and what the energy adds to them.
PRODUCTS = {"energy": 3, "activation flow": 6, "state flow": 6, "solve": 12, "relax": 20}
# Temporaries in numbers per unit, hidden ones included.
TEMPORARIES = {"energy": 4, "activation flow": 2, "state flow": 3, "solve": 16, "relax": 24}


def compiled(fn, *arguments):
    """`fn`, compiled as users do for arrays or their shapes."""
    return jax.jit(fn, compiler_options=OPTIMIZED).lower(*arguments).compile()


def states(batch):
    shapes = {name: (*batch, *layer.shape) for name, layer in HAM.layers.items()}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, ()) for name in RUNS), ("energy", (7,)), ("state flow", (7,))]
)
def test_products_and_memory(name, batch):
    program = compiled(RUNS[name], HAM, states(batch))
    text = program.as_text()
    assert text.count(" dot(") == PRODUCTS[name], text
    moved = re.findall(r"= f32\[(\d+),(\d+)\]\S* (?:transpose|copy)\(", text)
    assert {(int(m), int(n)) for m, n in moved}.isdisjoint(
        shape[::step] for shape in WEIGHTS.values() for step in (1, -1)
    ), text
    count = program.memory_analysis().temp_size_in_bytes / (4 * UNITS * np.prod(batch, initial=1))
    assert count <= TEMPORARIES[name]


MODEL = Counted(NETWORKS["memory"])


def memory(patterns, units):
    """A network of one layer and a memory."""
    W = jnp.zeros((units, patterns), jnp.float32)
    synapse = hl.HiddenSynapse([units], patterns, Ws=[W], hidden_lagrangian=hl.LSoftmax())
    return hl.HAM({"x": hl.IdentityLayer(units)}, {"W": synapse}, [(("x",), "W")])


@pytest.mark.parametrize(
    ("name", "multiple"), [("energy", 3), ("activation flow", 2), ("state flow", 2)]
)
def test_memory_of_a_batch_in_a_large_memory(name, multiple):
    # Whatever the batch, a small multiple of the 256 MB that a million patterns take by themselves.
    large = eqx.filter_eval_shape(memory, 10**6, 64)
    for batch in ((64,), (10, 100), (4096,)):
        x = {"x": jax.ShapeDtypeStruct((*batch, 64), jnp.float32)}
        program = compiled(RUNS[name], large, x)
        assert program.memory_analysis().temp_size_in_bytes <= multiple * 256e6
        assert (
            re.search(r"f32\[(64,1000000|1000000,64)\]\S* (transpose|copy)\(", program.as_text())
            is None
        )


def test_a_small_memory_is_evaluated_at_once():
    small = eqx.filter_eval_shape(memory, 1000, 64)
    x = {"x": jax.ShapeDtypeStruct((4096, 64), jnp.float32)}
    text = compiled(RUNS["activation flow"], small, x).as_text()
    assert text.count(" dot(") == 2
    assert " while(" not in text


def evaluations(run):
    """What `run` returns, and the points at which it evaluated ∂E/∂g."""
    POINTS.clear()
    result = jax.block_until_ready(run())
    jax.effects_barrier()
    return result, len(POINTS)


@pytest.mark.parametrize(("solver", "stages"), [(diffrax.Tsit5(), 6), (hl.ETD2RK(), 2)])
def test_evaluations_of_a_path(solver, stages):
    constant = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.25, "solver": solver}
    run = lambda: hl.solve(MODEL, jnp.ones(5), 2.0, flow="activation", **constant).ys
    assert evaluations(run)[1] == 8 * stages + 1  # a step ends with the first stage of the next


def test_evaluations_until_rest():
    rest, count = evaluations(lambda: hl.relax(MODEL, jnp.ones(5)))
    assert int(rest.num_steps) <= 3
    assert count == 2 * int(rest.num_steps) + 1


def test_compilations(compilations):
    layer = hl.TanhLayer(5)
    runs = (
        lambda x: hl.solve(layer, x, 1.0),
        lambda x: hl.relax(layer, x),
        jax.jit(lambda x: layer.energy(x)),
    )
    # The first compiles what all shapes share.
    for batch, count in ((2, None), (3, 1), (2, 0), (3, 0)):
        x = jax.device_put(np.ones((batch, 5)))
        for run in runs:
            compilations.clear()
            run(x)
            assert count is None or len(compilations) == count
