"""Laws measured at drawn examples: the search for violations, and programs that reproduce them."""

import base64
import contextlib
import dataclasses
import functools as ft
import math
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy
from jaxtyping import PyTree
from tqdm.auto import tqdm

from .pickles import dumps
from .report import Finding, Report
from .verdict import check, excesses, LAWS, Laws, PROPERTIES, Violation


@dataclasses.dataclass(frozen=True)
class Run:
    """Laws that are measured together, the states at which they are, and the number of examples.

    `laws` is a partial of a function of this package, whose first argument is the model.
    """

    laws: ft.partial[Laws]
    states: dict[str, SearchStrategy[PyTree]]
    num_examples: int
    part: str = ""

    def excesses_at(self, example: dict[str, PyTree]) -> dict[str, float]:
        """The largest excess of each law, ∞ where it can't be measured."""
        try:
            return excesses(self.laws(**example))
        except Violation as violation:
            return {violation.law: math.inf}

    def first(self) -> dict[str, PyTree]:
        """The first example."""
        settings = hypothesis.settings(max_examples=1, phases=[hypothesis.Phase.generate])
        return hypothesis.find(
            st.fixed_dictionaries(self.states), lambda _: True, settings=settings
        )

    def search(self, stop: Callable[[dict[str, float]], bool]) -> dict[str, PyTree] | None:
        """The simplest example whose excesses meet the condition, if one is found.

        Hypothesis moves from the examples with the largest excesses to larger ones.
        """

        def condition(example):
            found = self.excesses_at(example)
            for law, excess in found.items():
                hypothesis.target(min(excess, 1e6), label=law)
            return stop(found)

        # Hypothesis derives the seed from its `find`: every condition sees the same examples.
        phases = [hypothesis.Phase.generate, hypothesis.Phase.target, hypothesis.Phase.shrink]
        settings = hypothesis.settings(
            max_examples=self.num_examples,
            deadline=None,
            derandomize=True,
            phases=phases,
            verbosity=hypothesis.Verbosity.quiet,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
        )
        with contextlib.suppress(NoSuchExample):
            return hypothesis.find(st.fixed_dictionaries(self.states), condition, settings=settings)
        return None

    def counterexample(self, law: str) -> str:
        """The text of the simplest violation, and a program that reproduces it."""
        example = self.search(lambda found: found.get(law, 0) > 1)
        if example is not None:
            try:
                check(self.laws(**example), example)
            except Violation as violation:
                return f"{violation}\n{self._program(example)}"
        return f"{law}: violated in the first run but not when repeated."

    def _program(self, example: dict[str, PyTree]) -> str:
        """Lines of Python which raise the violation at this example."""
        fn, (model, *rest) = self.laws.func, self.laws.args
        keywords = "".join(f", {k}={v!r}" for k, v in self.laws.keywords.items())
        others = "".join(f", {value!r}" for value in rest)
        lines = ["import base64, pickle, zlib, jax", "from jax.numpy import array"]
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            lines.append('jax.config.update("jax_enable_x64", True)')
        lines.append(f"from {fn.__module__} import {fn.__name__}")
        lines.append(f"from {check.__module__} import {check.__name__}")
        return "\n".join(
            [
                "Reproduce it with:",
                *(f"  {line}" for line in lines),
                f"  model = {_restored(model)}",
                f"  example = {_source(example)}",
                f"  check({fn.__name__}(model{others}{keywords}, **example), example)",
            ]
        )


def _restored(model: object) -> str:
    """An expression for the model, unless a part of it can't be pickled."""
    try:
        pickled = dumps(model)
    except Exception:  # which error depends on what can't be pickled
        return "...  # the one that was checked"
    text = base64.b85encode(zlib.compress(pickled, 9)).decode()
    return f'pickle.loads(zlib.decompress(base64.b85decode("{text}")))'


def _source(tree: PyTree) -> str:
    """An expression for a tree of dicts, tuples and arrays."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_source(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + "".join(f"{_source(value)}, " for value in tree) + ")"
    return f'array({np.asarray(tree, np.float64).tolist()}, "{tree.dtype}")'


def report_of(
    subject: object,
    levels: Sequence[Sequence[Run]],
    progress: bool | None,
    expected: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Runs the levels in turn, up to the first with a broken law, as those after it presume it.

    Laws that are expected to be broken end nothing.
    """
    findings: list[Finding] = []
    levels = [level for level in levels if level]
    total = sum(1 + run.num_examples for level in levels for run in level)
    with tqdm(total=total, delay=1, disable=None if progress is None else not progress) as bar:
        for level in levels:
            findings += _findings(level, bar)
            if any(f.is_broken and f.law not in expected for f in findings):
                if level is not levels[-1]:
                    notes = [*notes, "The laws that presume the broken one were not tried."]
                break
    return Report(subject, tuple(findings), tuple(notes))


def _findings(runs: Sequence[Run], bar: tqdm) -> list[Finding]:
    """What the runs find, in the order of the parts and of the laws."""
    # Compilation takes most of the time, and can be done in parallel.
    examples = [run.first() for run in runs]
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(Run.excesses_at, runs, examples):
            bar.update()
    found: dict[tuple[str, str], list[float]] = {}
    counterexamples: dict[tuple[str, str], str] = {}
    for run in runs:
        own: dict[str, float] = {}

        def record(excesses_by_law, run=run, own=own):
            bar.update()
            for law, excess in excesses_by_law.items():
                found.setdefault((run.part, law), []).append(excess)
                own[law] = max(own.get(law, 0.0), excess)
            return False

        run.search(record)
        for law, worst in own.items():
            if worst > 1 and law in LAWS and (run.part, law) not in counterexamples:
                counterexamples[run.part, law] = run.counterexample(law)
    parts = list(dict.fromkeys(run.part for run in runs))
    order = [(part, law) for part in parts for law in (*LAWS, *PROPERTIES)]
    return [
        Finding(key[1], len(found[key]), max(found[key]), counterexamples.get(key), key[0])
        for key in order
        if key in found
    ]
