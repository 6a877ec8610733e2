"""Interleaved timings of several programs in one process.

On a machine whose speed varies, the ratio of neighbouring runs varies less than the times.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


Run = Callable[[], Any]


def interleaved(*runs: Run, repeats: int = 9) -> list[list[float]]:
    """The seconds of each run, `repeats` times in turns, after one that compiles."""
    for run in runs:
        jax.block_until_ready(run())
    taken: list[list[float]] = [[] for _ in runs]
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for run, seconds in zip(runs, taken, strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(run())
                seconds.append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return taken


class Ratio(NamedTuple):
    """The median and the quartiles of the ratios of two runs' times."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(a: list[float], b: list[float]) -> Ratio:
    """The times of a over those of b, pair by pair."""
    low, median, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return Ratio(median, low, high)


def machine() -> str:
    """The device and the version of JAX."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({jax.device_count()} device), jax {jax.__version__}"
