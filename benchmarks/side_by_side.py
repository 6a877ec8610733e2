"""Times of several programs in one process, in turns, so that a noisy machine is fair to all."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


Run = Callable[[], Any]


def times(*runs: Run, repeats: int = 9) -> list[list[float]]:
    """The seconds of each run, `repeats` times in turns after a first that compiles."""
    for run in runs:
        jax.block_until_ready(run())
    taken: list[list[float]] = [[] for _ in runs]
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for run, own in zip(runs, taken, strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(run())
                own.append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return taken


class Ratio(NamedTuple):
    """The median of the ratios of two runs' times, and their quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(a: list[float], b: list[float]) -> Ratio:
    """How many times as long as b's runs those of a took, each pair side by side."""
    low, median, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return Ratio(median, low, high)


def machine() -> str:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({jax.device_count()} device), jax {jax.__version__}"
