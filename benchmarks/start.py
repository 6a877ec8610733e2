"""The time to import the library and to a first solution: `python -m benchmarks.start`.

| row | what |
|---|---|
| import | `import hopfield_layers` in a new process, over `import jax, equinox, diffrax` in one |
| first `solve`, `relax` | in a new process, after the imports: without a cache and with one |

JAX can keep compiled programs on disk for later processes. The cache is switched on by

    export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/jax
    export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
    export EQX_ON_ERROR=nan

in the environment. By default JAX keeps only programs that took a second to compile, and never one
that calls Python, as `solve` and `relax` do to report errors. With `nan` a failure at run time
gives NaN instead of an error. The rows with `raise` are without that last line.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from .side_by_side import machine, ratio


_CLOCK = "import time; begin = time.perf_counter(); {what}; print(time.perf_counter() - begin)"
_FIRST = """
import time
import jax, jax.numpy as jnp
import hopfield_layers as hl
layer, x0 = hl.TanhLayer(5), jax.block_until_ready(jnp.ones(5))
begin = time.perf_counter()
jax.block_until_ready(hl.{call})
print(time.perf_counter() - begin)
"""


def seconds(code: str, **env: str) -> float:
    """The number that `code` prints in a new process."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | env,  # as after an installation
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(process.stdout)


def in_turns(
    first: Callable[[], float], second: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """The seconds of two processes in turns, after a first of each that writes bytecode."""
    _ = first(), second()
    pairs = [(first(), second()) for _ in range(repeats)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def imports(repeats: int) -> str:
    """The row of the import."""
    ours = lambda: seconds(_CLOCK.format(what="import hopfield_layers"))
    dependencies = lambda: seconds(_CLOCK.format(what="import jax, equinox, diffrax"))
    taken, least = in_turns(ours, dependencies, repeats)
    medians = " | ".join(f"{statistics.median(each):.2f} s" for each in (least, taken))
    return f"| import | {medians} | {ratio(taken, least)} | 1.05 |"


def first(call: str, on_error: str, repeats: int) -> str:
    """The row of a first call without the cache and with it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "EQX_ON_ERROR": on_error,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        code = _FIRST.format(call=call)
        none = lambda: seconds(code, **settings, JAX_ENABLE_COMPILATION_CACHE="false")
        cached = lambda: seconds(code, **settings, JAX_COMPILATION_CACHE_DIR=folder)
        without, taken = in_turns(none, cached, repeats)
    medians = " | ".join(f"{statistics.median(each):.2f} s" for each in (without, taken))
    name = call.partition("(")[0]
    return f"| first `{name}`, `EQX_ON_ERROR={on_error}` | {medians} | {ratio(taken, without)} | |"


def main(repeats: int = 9, call_repeats: int = 7) -> None:
    """Prints the two tables."""
    print(f"float32, {machine()}\n")
    print("| | jax, equinox, diffrax | hopfield_layers | ratio | bar |\n" + "|---" * 5 + "|")
    print(imports(repeats), flush=True)
    print("\n| | no cache | cached | ratio | bar |\n" + "|---" * 5 + "|")
    for on_error in ("nan", "raise"):
        for call in ("solve(layer, x0, 20.0)", "relax(layer, x0)"):
            print(first(call, on_error, call_repeats), flush=True)


if __name__ == "__main__":
    main()
