"""All the laws of one Lagrangian, with a table of what they found."""

import contextlib
import dataclasses
import functools
import html
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
from hypothesis.strategies import SearchStrategy
from tqdm.auto import tqdm

from ..lagrangians import AbstractLagrangian, as_lagrangian
from ..layers import Layer
from .gradient_laws import gradient_laws
from .lagrangian_laws import check_dtypes, DTYPES, jit_laws, lagrangian_laws
from .model_laws import bound_laws, descent_laws
from .strategies import states
from .verdict import check, excesses, first_broken, LAWS, Laws, Violation


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a run found of one law.

    `examples` are those at which the laws before it held, and `worst` is the largest violation in
    units of what rounding explains: up to 1 it holds.
    `counterexample` is None, or the text of the simplest violation.
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

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (f.law, str(f.examples), f"{f.worst:.2g}", "holds" if f.worst <= 1 else "BROKEN")
            for f in self.findings
        ]

    def __str__(self) -> str:
        rows = [_HEADER, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        pad = lambda row: "  ".join(
            cell.ljust(width) if i in (0, 3) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        lines = [str(self.lagrangian), *map(pad, rows)]
        lines += [f"\n{f.counterexample}" for f in self.findings if f.counterexample]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self._rows())
        texts = [html.escape(f.counterexample) for f in self.findings if f.counterexample]
        return (
            f"<p><code>{html.escape(str(self.lagrangian))}</code></p>"
            f"<table><tr>{cells(_HEADER, 'th')}</tr>{rows}</table>"
            + "".join(f"<pre>{text}</pre>" for text in texts)
        )


_HEADER = ("law", "examples", "worst", "verdict")


def check_lagrangian(
    lagrangian: Any,
    shape: tuple[int, ...] = (5,),
    *,
    max_examples: int = 200,
    scale: Any = None,
    dtype: Any = None,
    extremes: bool = False,
    progress: bool | None = None,
) -> Report:
    """Every law of a Lagrangian, and of a layer with it, over drawn states: a table, no test.

    The laws are those of [`hopfield_layers.testing.assert_lagrangian`][], and for a layer with a
    bias and τ = 2 those of [`hopfield_layers.testing.assert_energy_bounded`][],
    [`hopfield_layers.testing.assert_energy_descends`][] (along the state flow: the other is its
    leak alone) and [`hopfield_layers.testing.assert_gradients`][]. Of each that is broken the
    report shows the simplest counterexample that Hypothesis finds. Every run draws the same states.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `shape`: the shape of the states, of a few dozen units at most.
    - `max_examples`: how many pairs of states to draw; a tenth of it for gradients and solves.
    - `scale`, `dtype`: as for [`hopfield_layers.testing.states`][].
    - `extremes`: whether states may also have the dtype's largest, smallest and subnormal numbers,
        which plain callables seldom survive.
    - `progress`: whether to show the progress on stderr. By default if that is a terminal.

    **Returns:**

    A [`hopfield_layers.testing.Report`][], which prints as a table. `worst` there is the largest
    violation, in units of what rounding explains.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.testing import check_lagrangian
    >>> check_lagrangian(hl.LTanh(), max_examples=20).ok
    True
    >>> check_lagrangian(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), max_examples=20).ok
    False

    ```
    """
    lagrangian = as_lagrangian(lagrangian)
    shape = tuple(shape)
    try:
        check_dtypes(lagrangian, shape)
        bias = 0.5 * jnp.cos(jnp.arange(math.prod(shape))).reshape(shape)
        layer = Layer(lagrangian, shape, tau=2.0, bias=bias)
    except Violation as violation:
        return Report(lagrangian, (_finding(violation.law, 1, math.inf, violation),))
    wild = states(shape, scale=scale, dtype=dtype, extremes=extremes)
    mild = states(shape, scale=1.0 if scale is None else scale, dtype=dtype)
    few = max(max_examples // 10, 1)
    runs = [
        _Run(lambda x, y: lagrangian_laws(lagrangian, x, y), {"x": wild, "y": wild}, max_examples),
        _Run(lambda x: jit_laws(lagrangian, x), {"x": wild}, few),
        _Run(lambda x: bound_laws(layer, x), {"x": mild}, max_examples),
        _Run(lambda x: descent_laws(layer, x), {"x": mild}, few),
        _Run(lambda x: gradient_laws(layer, x), {"x": mild}, few),
    ]
    findings = {law: _finding(law, len(DTYPES), 0.0, None) for law in ("scalar", "dtype")}
    total = sum(1 + run.examples for run in runs)
    with tqdm(total=total, delay=1, disable=None if progress is None else not progress) as bar:
        _compile(runs, shape, dtype, bar)
        for run in runs:
            for law, found in run.findings(bar).items():
                findings[law] = found if law not in findings else _both(findings[law], found)
    return Report(lagrangian, tuple(findings[law] for law in LAWS if law in findings))


def _compile(runs: list["_Run"], shape: tuple[int, ...], dtype: Any, bar: Any) -> None:
    """Has the programs of the runs compiled beside one another, which is most of their time."""

    def once(run):
        # What goes wrong here does so again in the run itself.
        with contextlib.suppress(Exception):
            x = jnp.zeros(shape, float if dtype is None else dtype)
            run.laws(**dict.fromkeys(run.arguments, x))

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(once, runs):
            bar.update()


def _both(a: Finding, b: Finding) -> Finding:
    """One law, found in two runs."""
    return dataclasses.replace(
        a,
        examples=a.examples + b.examples,
        worst=max(a.worst, b.worst),
        counterexample=a.counterexample or b.counterexample,
    )


def _finding(law: str, examples: int, worst: float, violation: Any) -> Finding:
    text = None if violation is None else str(violation)
    return Finding(law, LAWS[law], examples, worst, text)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Laws that are measured together, over states of one strategy."""

    laws: Callable[..., Laws]
    arguments: dict[str, SearchStrategy[Any]]
    examples: int

    def findings(self, bar: Any) -> dict[str, Finding]:
        """Of each law, and of those that are broken the simplest counterexample."""
        worst: dict[str, float] = {}
        counts: dict[str, int] = {}

        def watch(**example):
            bar.update()
            try:
                excess = excesses(self.laws(**example))
            except Violation as violation:
                excess = {violation.law: math.inf}
            broken = first_broken(excess)
            for law in list(LAWS)[: None if broken is None else list(LAWS).index(broken) + 1]:
                if law in excess:
                    worst[law] = max(worst.get(law, 0.0), float(excess[law]))
                    counts[law] = counts.get(law, 0) + 1

        def show(law, **example):
            try:
                measured = self.laws(**example)
            except Violation as violation:
                if violation.law == law:
                    raise
                return
            if first_broken(excesses(measured)) == law:
                check(measured, example)

        self._over(watch)
        found = {}
        for law, value in worst.items():
            violation = None
            if not value <= 1:
                try:
                    self._over(functools.partial(show, law))
                except Violation as error:
                    violation = error
                else:
                    violation = f"{law}: missed {value:.3g} times what rounding explains, and once."
            found[law] = _finding(law, counts[law], value, violation)
        return found

    def _over(self, body: Callable[..., None]) -> None:
        settings = hypothesis.settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            verbosity=hypothesis.Verbosity.quiet,
        )

        def run(drawn):
            body(**drawn)

        settings(hypothesis.given(st.fixed_dictionaries(self.arguments))(run))()  # pyright: ignore
