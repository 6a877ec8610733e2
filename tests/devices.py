"""Programs for several devices, each of which raises an exception if a check fails.

`test_devices` runs each of them in a process with eight virtual devices:
`XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_ENABLE_X64=1 python -m tests.devices NAME`.
"""

import re
import sys
from collections import Counter

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import auto_axes, AxisType, NamedSharding, PartitionSpec as P

import hopfield_layers as hl
from hopfield_layers._numerics import streaming
from hopfield_layers.testing.strategies import KINDS

from .compiling import exchanged_in


UNITS, HIDDEN, SAMPLES, PATTERNS = 5, 3, 16, 4 * 1100  # the patterns of a shard are streamed
MEMORIES = {
    "softmax": hl.LSoftmax(beta=4.0),
    "ghostmax": hl.LGhostmax(beta=4.0),
    "ReLU": hl.LRelu(),
    "sparsemax": hl.LSparsemax(beta=4.0),
    "entmax": hl.LEntmax(beta=4.0),
}


def network(W):
    layers = {"x": hl.TanhLayer(UNITS), "y": hl.TanhLayer(HIDDEN)}
    synapses = {"W": hl.DenseSynapse((UNITS, HIDDEN), W=W)}
    return hl.HAM(layers, synapses, [(("x", "y"), "W")])


def memory(patterns, lagrangian=MEMORIES["softmax"]):
    synapse = hl.HiddenSynapse.from_patterns(patterns, lagrangian)
    return hl.HAM({"x": hl.IdentityLayer(UNITS)}, {"memory": synapse}, [(("x",), "memory")])


W = jr.normal(jr.key(0), (UNITS, HIDDEN))
x0 = {"x": jr.normal(jr.key(1), (SAMPLES, UNITS)), "y": jnp.zeros((SAMPLES, HIDDEN))}
patterns = 0.5 * jr.normal(jr.key(2), (PATTERNS, UNITS))
queries = {"x": x0["x"]}

# The ends of the three ways to run the dynamics, as functions of a model and a batch.
RUNS = {
    "relax": lambda model, x: hl.relax(model, x).x,
    "relax by the state flow": lambda model, x: hl.relax(model, x, flow="state").x,
    "solve": lambda model, x: jax.tree.map(lambda y: y[:, 0], hl.solve(model, x, 2.0).ys),
}


def mesh_of(*axes, kind=AxisType.Auto):
    """A mesh of the axes, each a pair of a name and a size."""
    names, sizes = zip(*axes, strict=True)
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(axes))


def placed(tree, mesh, *spec):
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


def compiled(fn, *arguments):
    """The results of the program, and the numbers and types of arrays that devices exchange."""
    ends, within_loops, outside = compiled_in_parts(fn, *arguments)
    return ends, sum(within_loops, outside)


def compiled_in_parts(fn, *arguments):
    """The results, and what devices exchange in a step of each loop, and outside of all loops."""
    program = jax.jit(fn).lower(*arguments).compile()
    text = program.as_text() or ""
    # A loop's condition and body are computations of their own.
    computations = {part.split(" ")[0].strip("%"): part for part in text.split("\n\n")}
    pattern = r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)"
    loops = [
        exchanged_in("".join(map(computations.pop, pair))) for pair in re.findall(pattern, text)
    ]
    outside = sum(map(exchanged_in, computations.values()), Counter())
    return program(*arguments), [loop for loop in loops if loop], outside


def close(actual, expected, tol=1e-9):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), actual, expected
    )


def is_split(tree, *spec):
    return all(x.sharding.spec == P(*spec) for x in jax.tree.leaves(tree))


def total(tree):
    return sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(tree))


def slope_of(run):
    return lambda W, x: jax.grad(lambda W: total(run(network(W), x)))(W)


def sharded_batch():
    """The batch stays where it is, and a step exchanges one boolean."""
    batch = placed(x0, mesh_of(("samples", 8)), "samples")
    for run in RUNS.values():
        expected = run(network(W), x0)
        ends, within_loops, outside = compiled_in_parts(run, network(W), batch)
        for x in (ends, run(network(W), batch)):
            close(x, expected)
            assert is_split(x, "samples")
        # A step of each loop reduces one boolean, whether all samples are done.
        assert within_loops
        assert all(loop == {"pred[]": 1} for loop in within_loops)
        assert set(outside) <= {"pred[]", "s64[]", "s32[]"}, outside
    for run in (RUNS["relax"], RUNS["solve"]):
        close(jax.jit(slope_of(run))(W, batch), slope_of(run)(W, x0))


def errors():
    """Known errors are raised as on one device; in a program for several, results are NaN."""
    batch = placed(x0, mesh_of(("samples", 8)), "samples")
    bad = {**batch, "x": batch["x"].at[3, 1].set(jnp.nan)}
    for name in ("relax", "solve"):
        expect(ValueError, "got 1 NaN or infinite of 80 entries", RUNS[name], network(W), bad)
        ends = jax.jit(RUNS[name])(network(W), bad)
        assert all(bool(jnp.isnan(x).all()) for x in jax.tree.leaves(ends))
    short = {"solver": hl.ETD2RK(), "max_steps": 2}
    expect(RuntimeError, r"in 16 of 16 samples.*after 2 of 2", hl.relax, network(W), batch, **short)
    expect(RuntimeError, "max_steps", hl.solve, network(W), batch, 1e3, max_steps=2)
    expect(ValueError, "t1 > t0", hl.solve, network(W), batch, -1.0)
    saveat = diffrax.SaveAt(ts=jnp.array([1.0, 2.0]))
    path = lambda x: hl.solve(network(W), x, 2.0, saveat=saveat).ys
    expect(ValueError, "got 1 NaN or infinite of 80 entries", path, bad)
    assert all(bool(jnp.isnan(x).all()) for x in jax.tree.leaves(jax.jit(path)(bad)))

    @jax.jit
    def late(x, t):
        return hl.solve(network(W), x, 2.0, saveat=diffrax.SaveAt(ts=jnp.array([1.0, t]))).ys

    assert all(bool(jnp.isnan(x).all()) for x in jax.tree.leaves(late(batch, 3.0)))


def under_shard_map():
    """Each device stops independently, and gradients are those of the whole batch."""
    mesh = mesh_of(("samples", 8))
    batch = placed(x0, mesh, "samples")
    for name, run in RUNS.items():
        expected, expected_slope = run(network(W), x0), slope_of(run)(W, x0)
        for check in (True, False) if name == "relax" else (True,):
            specs = {"mesh": mesh, "in_specs": (P(), P("samples")), "check_vma": check}
            by_device = jax.shard_map(
                lambda W, x, run=run: run(network(W), x), **specs, out_specs=P("samples")
            )
            ends, exchanged = compiled(by_device, W, batch)
            close(ends, expected)
            assert not exchanged
            if name == "relax" and not check:
                outside = jax.grad(lambda W, x, run=by_device: total(run(W, x)))
                slope, exchanged = compiled(outside, W, batch)
                close(slope, expected_slope)
                assert exchanged == {f"f64[{UNITS},{HIDDEN}]": 1}
        within = jax.shard_map(
            slope_of(run), mesh=mesh, in_specs=(P(), P("samples")), out_specs=P()
        )
        slope, exchanged = compiled(within, W, batch)
        close(slope, expected_slope)
        assert exchanged == {f"f64[{UNITS},{HIDDEN}]": 1}, (name, exchanged)
    run = jax.shard_map(
        lambda patterns, x: memory(patterns).energy_and_dEdg({"x": x}),
        mesh=mesh,
        in_specs=(P(), P("samples")),
        out_specs=(P("samples"), P("samples")),
    )
    close(run(patterns, batch["x"]), memory(patterns).energy_and_dEdg(queries))
    rested = jax.shard_map(
        lambda patterns, x: RUNS["relax"](memory(patterns), {"x": x})["x"],
        mesh=mesh,
        in_specs=(P(), P("samples")),
        out_specs=P("samples"),
    )
    slope = jax.jit(jax.grad(lambda patterns, x: total(rested(patterns, x))))
    expected = jax.grad(lambda patterns: total(RUNS["relax"](memory(patterns), queries)))
    close(slope(patterns, batch["x"]), expected(patterns))


def options():
    """Clamps and inputs are divided like the batch, with and without jit."""
    mesh = mesh_of(("samples", 8))
    held = {"x": jnp.arange(SAMPLES)[:, None] % 3 == jnp.arange(UNITS)}
    inputs = {"x": jnp.ones((SAMPLES, UNITS))}
    arrays = (x0, held, inputs)
    divided = placed(arrays, mesh, "samples")
    runs = {
        "relax": lambda x, c, i: hl.relax(network(W), x, clamp=c, inputs=i).x,
        "relax by the state flow": lambda x, c, i: (
            hl.relax(network(W), x, clamp=c, inputs=i, flow="state").x
        ),
        "solve": lambda x, c, i: (
            hl.solve(network(W), x, 2.0, clamp=c, inputs=i, batch_size=2, flow="activation").ys
        ),
    }
    for name, run in runs.items():
        expected = run(*arrays)
        by_device = jax.shard_map(run, mesh=mesh, in_specs=P("samples"), out_specs=P("samples"))
        ways = [run, jax.jit(by_device)]
        if name == "relax":
            ways += [jax.jit(run), by_device]
        for fn in ways:
            close(fn(*divided), expected)
    slope = jax.shard_map(
        slope_of(RUNS["relax"]), mesh=mesh, in_specs=(P(), P("samples")), out_specs=P()
    )
    close(slope(W, divided[0]), slope_of(RUNS["relax"])(W, x0))
    # Masks that would let the energy rise are an error, and NaN in a program for several devices.
    layer, x = hl.SoftmaxLayer(UNITS), divided[0]["x"]
    run = jax.jit(lambda x, c: hl.relax(layer, x, clamp=c).x)
    assert jnp.isnan(run(x, divided[1]["x"])).all()
    none = placed(jnp.zeros((SAMPLES, UNITS), bool), mesh, "samples")
    ends, exchanged = compiled(lambda x, c: hl.relax(layer, x, clamp=c).x, x, none)
    close(ends, hl.relax(layer, x0["x"]).x)
    assert set(exchanged) <= {"pred[]", "s64[]", "s32[]"}, exchanged


def sharded_memory():
    """The patterns stay where they are; a drive reduces one state and some numbers per sample."""
    mesh = mesh_of(("samples", 2), ("patterns", 4))
    rows = placed(patterns, mesh, "patterns")
    batch = placed(queries, mesh, "samples")
    placements = ((queries, ()), (batch, ("samples",)))
    others = {kind.__name__: kind() for kind in KINDS if kind not in map(type, MEMORIES.values())}
    for name, lagrangian in (MEMORIES | others).items():

        def drive(patterns, x, lagrangian=lagrangian):
            return memory(patterns, lagrangian).dEdg(x)

        expected = drive(patterns, queries)
        for x, axes in placements[1:] if name in others else placements:
            result, exchanged = compiled(drive, rows, x)
            close(result, expected)
            assert is_split(result, *axes)
            samples = SAMPLES // (2 if axes else 1)
            reduced = {"pred[]", f"f64[{samples}]", f"f64[{samples},{UNITS}]"}
            assert set(exchanged) <= reduced, (name, exchanged)
            assert exchanged[f"f64[{samples},{UNITS}]"] == 1, (name, exchanged)


def memory_and_batch():
    """Both at once: relaxation, its implicit gradients, and a step of training."""
    mesh = mesh_of(("samples", 2), ("patterns", 4))
    rows = placed(patterns, mesh, "patterns")
    batch = placed(queries, mesh, "samples")
    targets = placed(queries["x"][::-1], mesh, "samples")

    def loss(patterns, x, targets, lagrangian):
        rest = hl.relax(memory(patterns, lagrangian), x).x["x"]
        return jnp.mean((rest - targets) ** 2)

    for name in ("softmax", "entmax"):

        def step(patterns, x, targets, lagrangian=MEMORIES[name]):
            value, slope = jax.value_and_grad(loss)(patterns, x, targets, lagrangian)
            return value, patterns - 0.1 * slope

        expected = step(patterns, queries, queries["x"][::-1])
        (value, trained), exchanged = compiled(step, rows, batch, targets)
        close((value, trained), expected)
        assert is_split(trained, "patterns"), trained.sharding
        assert not any(str(PATTERNS) in array for array in exchanged), exchanged
        assert exchanged[f"f64[{PATTERNS // 4},{UNITS}]"] == 1, exchanged
    slope = jax.value_and_grad(lambda patterns, x: total(RUNS["solve"](memory(patterns), x)))
    (value, trained), exchanged = compiled(slope, rows, batch)
    close((value, trained), slope(patterns, queries))
    assert is_split(trained, "patterns"), trained.sharding
    assert not any(str(PATTERNS) in array for array in exchanged), exchanged
    # Both along one axis: each device has a part of the patterns and of the states.
    mesh = mesh_of(("devices", 8))
    rows, batch = placed(patterns, mesh, "devices"), placed(queries, mesh, "devices")
    close(
        jax.jit(lambda rows, x: memory(rows).dEdg(x))(rows, batch), memory(patterns).dEdg(queries)
    )


def explicit_axes():
    """The error tells what to write instead, and that works."""
    mesh = mesh_of(("samples", 8), kind=AxisType.Explicit)
    batch, rows = placed(x0, mesh, "samples"), placed(patterns, mesh, "samples")
    message = "automatic axes, got explicit ones.*auto_axes"
    for run in RUNS.values():
        for call in (run, jax.jit(run)):
            expect(ValueError, message, call, network(W), batch)
    # Arrays among the options may lie on such a mesh as well.
    everywhere = placed(jnp.array(1.0), mesh)
    held = {"x": placed(jnp.zeros(SAMPLES, bool), mesh, "samples")}
    for options in ({"t1": everywhere}, {"t1": 2.0, "dt0": everywhere}, {"t1": 2.0, "clamp": held}):
        expect(ValueError, message, hl.solve, network(W), x0, **options)
    expect(ValueError, message, hl.relax, network(W), x0, clamp=held)
    inputs = lambda t: batch["x"] * t
    expect(ValueError, message, hl.solve, hl.TanhLayer(UNITS), x0["x"], 1.0, inputs=inputs)
    expect(ValueError, message, lambda: memory(rows).energy(queries))
    relaxed = auto_axes(
        lambda x: RUNS["relax"](network(W), x), out_sharding=NamedSharding(mesh, P("samples"))
    )
    close(relaxed(batch), RUNS["relax"](network(W), x0))
    drive = auto_axes(
        lambda rows: memory(rows).dEdg(queries), out_sharding=NamedSharding(mesh, P())
    )
    close(drive(rows), memory(patterns).dEdg(queries))
    with jax.set_mesh(mesh):
        for run in RUNS.values():
            expect(ValueError, message, run, network(W), x0)
        close(hl.TanhLayer(UNITS).energy(batch["x"]), hl.TanhLayer(UNITS).energy(x0["x"]))
        close(network(W).dEdg(batch), network(W).dEdg(x0))


def expect(kind, message, fn, *arguments, **options):
    """`fn` raises this error."""
    with pytest.raises(kind, match=f"(?s){message}"):
        fn(*arguments, **options)


PROGRAMS = {
    fn.__name__: fn
    for fn in (
        sharded_batch,
        errors,
        under_shard_map,
        options,
        sharded_memory,
        memory_and_batch,
        explicit_axes,
    )
}


if __name__ == "__main__":
    streaming.FEW_SCORES = 0
    PROGRAMS[sys.argv[1]]()
