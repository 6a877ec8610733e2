"""Programs with XLA's full optimization, which the tests' flags switch off, and their text."""

import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
from jax.stages import Compiled


Params = ParamSpec("Params")
Result = TypeVar("Result")

OPTIMIZED: dict[str, Any] = {}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIMIZED |= {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def compiled(fn: Callable[..., Any], *arguments: Any) -> Compiled:
    """`fn`, optimized for these arguments, which are arrays or their shapes."""
    return jax.jit(fn, compiler_options=OPTIMIZED).lower(*arguments).compile()


def optimized(fn: Callable[Params, Result]) -> Callable[Params, Result]:
    """`fn` under Equinox's jit, optimized."""
    # The overloads of filter_jit leave out the keywords that it passes on to jax.jit.
    return eqx.filter_jit(fn, compiler_options=OPTIMIZED)  # pyright: ignore[reportCallIssue]


def program_text(program: Compiled) -> str:
    """The program in XLA's language, to count its operations."""
    text = program.as_text()
    assert text is not None
    return text


def temporary_bytes(program: Compiled) -> int:
    """The memory that the program takes besides its arguments and results."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def exchanged_in(computation: str) -> Counter[str]:
    """The numbers and types of arrays that devices exchange in a computation of a program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", computation)
    return Counter(array for line in found for array in re.findall(r"[a-z]\w*\[[\d,]*\]", line))
