"""All the laws of one Lagrangian, with a table of what they found."""

import contextlib
import dataclasses
import html
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
from hypothesis.strategies import SearchStrategy
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from .._conversion import as_shape, ShapeLike
from ..dynamics import EnergyFlow
from ..lagrangians import AbstractLagrangian
from ..layers import Layer
from ..synapses.base import LagrangianLike
from .gradient_laws import gradient_laws
from .lagrangian_laws import check_dtypes, checked_lagrangian, jit_laws, lagrangian_laws
from .model_laws import bound_laws, descent_laws
from .strategies import states, ValueOrStrategy
from .verdict import check, excesses, LAWS, Laws, Violation


Excesses = dict[str, list[float]]  # at each example, for each law


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a run for one law.

    `examples` counts those at which the laws before it held, and `worst` is the largest violation
    in units of what rounding explains: up to 1 it holds. `counterexample` is None, or the text of
    the simplest violation.
    """

    law: str
    formula: str
    examples: int
    worst: float
    counterexample: str | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What [`hopfield_layers.testing.check_lagrangian`][] returns; prints as a table.

    `ok` is whether every law holds, and `findings` are the rows.
    """

    lagrangian: AbstractLagrangian
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every law holds."""
        return all(finding.worst <= 1 for finding in self.findings)

    def __str__(self) -> str:
        lines = [str(self.lagrangian)]
        lines += [f"{a:14}  {b:>8}  {c:>7}  {d}" for a, b, c, d in self._rows()]
        lines += [f"\n{f.counterexample}" for f in self.findings if f.counterexample]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = ["</td><td>".join(map(html.escape, row)) for row in self._rows()]
        table = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
        found = [html.escape(f.counterexample) for f in self.findings if f.counterexample]
        name = f"<code>{html.escape(str(self.lagrangian))}</code>"
        return f"{name}<table>{table}</table>" + "".join(f"<pre>{text}</pre>" for text in found)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [
            (f.law, str(f.examples), f"{f.worst:.2g}", "holds" if f.worst <= 1 else "BROKEN")
            for f in self.findings
        ]
        return [("law", "examples", "worst", "verdict"), *rows]


def check_lagrangian(
    lagrangian: LagrangianLike,
    shape: ShapeLike = (5,),
    *,
    max_examples: int = 200,
    scale: ValueOrStrategy[int | float] | None = None,
    dtype: DTypeLike | None = None,
    extremes: bool = False,
    progress: bool | None = None,
) -> Report:
    """Every law of a Lagrangian, and of a layer with it, over drawn states: a table, no test.

    The laws are those of [`hopfield_layers.testing.assert_lagrangian`][], and for a layer with a
    bias and τ = 2 those of [`hopfield_layers.testing.assert_energy_bounded`][],
    [`hopfield_layers.testing.assert_energy_descends`][] along the state flow and
    [`hopfield_layers.testing.assert_gradients`][]. Every run draws the same states.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `shape`: the shape of the states, of a few dozen units at most.
    - `max_examples`: how many pairs of states to draw; a tenth of it for gradients and solves.
    - `scale`, `dtype`, `extremes`: as for [`hopfield_layers.testing.states`][]; plain callables
        seldom survive extremes.
    - `progress`: whether to show the progress on stderr. By default if that is a terminal.

    **Returns:** A [`hopfield_layers.testing.Report`][], which prints as a table, with the simplest
    counterexample that Hypothesis finds for each law that is broken.

    **Raises:** `TypeError` for what is no Lagrangian, such as a layer.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> hl.testing.check_lagrangian(hl.LTanh(), max_examples=20).ok
    True
    >>> hl.testing.check_lagrangian(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), max_examples=20).ok
    False

    ```
    """
    lagrangian, shape = checked_lagrangian(lagrangian), as_shape(shape)
    try:
        num_dtypes = check_dtypes(lagrangian, shape)
        bias = 0.5 * jnp.cos(jnp.arange(math.prod(shape))).reshape(shape)
        layer = Layer(lagrangian, shape, tau=2.0, bias=bias)
    except Violation as violation:
        return _report(lagrangian, {violation.law: [math.inf]}, {violation.law: str(violation)})
    wide_range_states = states(shape, scale=scale, dtype=dtype, extremes=extremes)
    pairs = {"x": wide_range_states, "y": wide_range_states}
    moderate_states = states(shape, scale=1.0 if scale is None else scale, dtype=dtype)
    num_slow_examples = max(max_examples // 10, 1)
    runs = [
        _Run(partial(lagrangian_laws, lagrangian), pairs, max_examples),
        _Run(partial(jit_laws, lagrangian), {"x": wide_range_states}, num_slow_examples),
        _Run(partial(bound_laws, layer), {"x": moderate_states}, max_examples),
        _Run(partial(descent_laws, EnergyFlow(layer)), {"x0": moderate_states}, num_slow_examples),
        _Run(partial(gradient_laws, layer), {"x": moderate_states}, num_slow_examples),
    ]
    excesses_by_law: Excesses = {law: [] for law in LAWS}
    excesses_by_law |= {"scalar": [0.0] * num_dtypes, "dtype": [0.0] * num_dtypes}
    counterexamples: dict[str, str] = {}
    total = sum(1 + run.examples for run in runs)
    with tqdm(total=total, delay=1, disable=None if progress is None else not progress) as bar:
        _compile(runs, jnp.zeros(shape, float if dtype is None else dtype), bar)
        for run in runs:
            run.update(excesses_by_law, counterexamples, bar)
    return _report(lagrangian, excesses_by_law, counterexamples)


def _report(lagrangian, excesses_by_law: Excesses, counterexamples: dict[str, str]) -> Report:
    findings = [
        Finding(law, LAWS[law], len(excess), max(excess), counterexamples.get(law))
        for law, excess in excesses_by_law.items()
        if excess
    ]
    return Report(lagrangian, tuple(findings))


def _compile(runs: list["_Run"], x: Array, bar: tqdm) -> None:
    """Compiles the programs of the runs in parallel, as that takes most of their time."""

    def run_once(run):
        # An error here occurs again in the run itself.
        with contextlib.suppress(Exception):
            run.laws(**dict.fromkeys(run.states, x))

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(run_once, runs):
            bar.update()


@dataclasses.dataclass(frozen=True)
class _Run:
    """Laws that are measured together, the states at which they are, and the number of examples."""

    laws: Callable[..., Laws]
    states: dict[str, SearchStrategy[PyTree]]
    examples: int

    def update(self, excesses_by_law: Excesses, counterexamples: dict[str, str], bar: tqdm) -> None:
        """Adds the excesses at each example, and the simplest violation of each broken law."""

        def measure(example):
            bar.update()
            try:
                found = excesses(self.laws(**example))
            except Violation as violation:
                found = {violation.law: math.inf}
            for law, excess in found.items():
                excesses_by_law[law].append(excess)

        self._for_each_example(measure)
        for law, excess in excesses_by_law.items():
            if max(excess, default=0) > 1 and law not in counterexamples:
                counterexamples[law] = self._counterexample(law)

    def _counterexample(self, law: str) -> str:
        def assert_law(example):
            try:
                check(self.laws(**example), example)
            except Violation as violation:
                if violation.law == law:
                    raise

        try:
            self._for_each_example(assert_law)
        except Violation as violation:
            return str(violation)
        return f"{law}: violated in the first run but not when repeated."

    def _for_each_example(self, body: Callable[[dict[str, PyTree]], None]) -> None:
        # Hypothesis derives the seed from this function, so that each body sees the same examples.
        @hypothesis.settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            verbosity=hypothesis.Verbosity.quiet,
        )
        @hypothesis.given(st.fixed_dictionaries(self.states))
        def run(example):
            body(example)

        run()
