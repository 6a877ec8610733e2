"""Errors in a batch that two processes share: each of them raises the same kind of error.

`test_devices` runs `python -m tests.two_processes --processes 2 --coordinator localhost:PORT` with
`--process 0`, and beside it with `--process 1`. `distributed_retrieval.py` of the examples has the
case without errors.
"""

import argparse

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import hopfield_layers as hl


SAMPLES, UNITS = 8, 3


def batch(mesh, sample: int | slice = slice(None), value=0.5):
    """Zeros, and this value in one sample or all. Each process makes the samples of its devices."""
    x = np.zeros((SAMPLES, UNITS), np.float32)
    x[sample] = value
    divided = NamedSharding(mesh, P("samples"))
    return jax.make_array_from_callback(x.shape, divided, lambda index: x[index])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()
    jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    automatic = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=automatic)
    layer = hl.TanhLayer(UNITS)
    rest = hl.relax(layer, batch(mesh))
    assert all(bool(part.data.all()) for part in rest.converged.addressable_shards)

    own = rf"in {SAMPLES // 2} of {SAMPLES} samples, \({arguments.process * SAMPLES // 2},\)"
    message = f"(?s){own}.*Each process names those of its own"
    with pytest.raises(RuntimeError, match=message):
        hl.relax(layer, batch(mesh), flow="state", max_steps=2)
    with pytest.raises(RuntimeError, match=message):
        hl.relax(layer, batch(mesh), solver=hl.ETD2RK(), dt0=0.1, max_steps=2)
    slow = batch(mesh, SAMPLES - 1, 3.0)
    message = r"in 1 of 8 samples, \(7,\)" if arguments.process else "of this process converged"
    with pytest.raises(RuntimeError, match=f"(?s)did not bring every unit to rest.*{message}"):
        hl.relax(layer, slow, flow="state", max_steps=2)
    with pytest.raises(RuntimeError, match="max_steps"):
        hl.solve(layer, batch(mesh), 1e3, max_steps=2)
    with pytest.raises(ValueError, match="t1 > t0"):
        hl.solve(layer, batch(mesh), -1.0)
    for run in (lambda x: hl.relax(layer, x), lambda x: hl.solve(layer, x, 1.0)):
        # The process without the bad sample fails as well, and doesn't wait for the other.
        with pytest.raises(ValueError, match="NaN or infinite"):
            run(batch(mesh, SAMPLES - 1, np.nan))


if __name__ == "__main__":
    main()
