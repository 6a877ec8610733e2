"""What it costs to divide a memory or a batch among devices, and what it would on accelerators.

`python -m benchmarks.devices`. Virtual devices share the cores of one machine, so that the same
work takes the same time at best: the ratios show the cost of dividing and of the reductions. The
second table is a projection on paper.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from typing import NamedTuple


PATTERNS, UNITS, SAMPLES = 200_000, 64, 256


def measured(devices: int, divided: str) -> None:
    """Prints the milliseconds of a drive and what it exchanges, in a process of its own."""
    import jax
    import jax.random as jr
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    import hopfield_layers as hl
    from tests.compiling import exchanged_in

    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())
    patterns = jr.normal(jr.key(0), (PATTERNS, UNITS)) / 8
    x = jr.normal(jr.key(1), (SAMPLES, UNITS))
    patterns = jax.device_put(patterns, split if divided == "patterns" else whole)
    x = {"x": jax.device_put(x, split if divided == "batch" else whole)}
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax())
    layers = {"x": hl.IdentityLayer(UNITS)}
    ham = hl.HAM(layers, {"memory": memory}, [(("x",), "memory")])
    drive = jax.jit(lambda ham, x: ham.dEdg(x)).lower(ham, x).compile()
    times = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(drive(ham, x))
        times.append(time.perf_counter() - start)
    exchanged = exchanged_in(drive.as_text() or "").elements()
    print(f"{1e3 * sorted(times)[5]:.2f};{' '.join(exchanged) or 'nothing'}")


def on_virtual_devices() -> None:
    print(f"{PATTERNS:,} patterns of {UNITS} units, {SAMPLES} states: one drive")
    print("\n| divided | devices | time over one device | exchanged |\n|---|---|---|---|")
    for divided in ("patterns", "batch"):
        alone = math.nan
        for devices in (1, 2, 4, 8):
            flags = f"--xla_force_host_platform_device_count={devices}"
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.devices", "--of", divided, str(devices)],
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=True,
            )
            milliseconds, exchanged = run.stdout.strip().split(";")
            alone = float(milliseconds) if devices == 1 else alone
            ratio = float(milliseconds) / alone
            print(f"| {divided} | {devices} | {ratio:.2f} | {exchanged} |")


class Accelerator(NamedTuple):
    """Figures of an NVIDIA H100 SXM's data sheet, and of a 400 Gb/s network."""

    memory: float = 80e9  # bytes
    bandwidth: float = 3.35e12  # bytes per second
    arithmetic: float = 989e12  # bfloat16 operations per second
    network: float = 50e9  # bytes per second and device
    latency: float = 5e-6  # seconds per step of a tree


def projection(units: int = 1024, samples: int = 1024, itemsize: int = 2, drives: int = 2) -> None:
    """The time of a retrieval in `drives` drives, all devices dividing the patterns."""
    chip = Accelerator()
    print(f"\nMilliseconds of a retrieval: {units} units in bfloat16, {samples} states")
    print("\n| patterns | 1 device | 8 | 64 | 1024 |\n|---|---|---|---|---|")
    for exponent in range(6, 11):
        cells = []
        for devices in (1, 8, 64, 1024):
            rows = 10**exponent / devices
            if rows * units * itemsize > chip.memory:
                cells.append("too large")
                continue
            reduced = 2 * (devices - 1) / devices * 4 * samples * (units + 2)
            limits = {
                "memory": rows * units * itemsize / chip.bandwidth,
                "arithmetic": 4 * rows * units * samples / chip.arithmetic,
                "network": reduced / chip.network,
                "latency": 2 * chip.latency * math.ceil(math.log2(devices)),
            }
            # Products and the reading of patterns overlap; a reduction follows them.
            seconds = max(limits["memory"], limits["arithmetic"])
            seconds += limits["network"] + limits["latency"]
            largest = max(limits, key=lambda name: limits[name])
            cells.append(f"{1e3 * drives * seconds:.3g} {largest}")
        print(f"| 10^{exponent} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The cost of dividing a memory among devices.")
    parser.add_argument("--of", nargs=2, help="what is divided, and the number of devices")
    of = parser.parse_args().of
    if of is None:
        on_virtual_devices()
        for samples in (1024, 1):
            projection(samples=samples)
    else:
        measured(int(of[1]), of[0])
