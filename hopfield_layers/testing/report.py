"""All the laws of one Lagrangian, with a table of what they found."""

import contextlib
import dataclasses
import html
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy
from jax.typing import DTypeLike
from jaxtyping import PyTree
from tqdm.auto import tqdm

from .._conversion import as_shape, ShapeLike
from ..lagrangians import AbstractLagrangian
from ..layers import Layer
from ..synapses.base import LagrangianLike
from .gradient_laws import gradient_laws
from .lagrangian_laws import check_dtypes, checked_lagrangian, jit_laws, lagrangian_laws
from .model_laws import bound_laws, descent_laws
from .strategies import states, ValueOrStrategy
from .verdict import check, excesses, LAWS, Laws, Violation


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
    """What [`hopfield_layers.testing.check_lagrangian`][] returns; prints as a table."""

    lagrangian: AbstractLagrangian
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every law holds."""
        return all(finding.worst <= 1 for finding in self.findings)

    def __str__(self) -> str:
        rows = [f"{a:14}  {b:>8}  {c:>7}  {d}" for a, b, c, d in self._rows()]
        counterexamples = [f"\n{f.counterexample}" for f in self.findings if f.counterexample]
        return "\n".join([str(self.lagrangian), *rows, *counterexamples])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = ("</td><td>".join(row) for row in self._rows())
        table = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
        found = [html.escape(f.counterexample) for f in self.findings if f.counterexample]
        name = f"<code>{html.escape(str(self.lagrangian))}</code>"
        return f"{name}<table>{table}</table>" + "".join(f"<pre>{text}</pre>" for text in found)

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield "law", "examples", "worst", "verdict"
        for f in self.findings:
            yield f.law, str(f.examples), f"{f.worst:.2g}", "holds" if f.worst <= 1 else "BROKEN"


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

    **Returns:** A [`hopfield_layers.testing.Report`][], with the simplest counterexample that
    Hypothesis finds for each law that is broken.

    **Raises:** `TypeError` for what is no Lagrangian, such as a layer.

    Examples:
        >>> hl.testing.check_lagrangian(hl.LTanh(), max_examples=20).ok
        True
        >>> hl.testing.check_lagrangian(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), max_examples=20).ok
        False
    """
    lagrangian, shape = checked_lagrangian(lagrangian), as_shape(shape)
    try:
        num_dtypes = check_dtypes(lagrangian, shape)
        bias = 0.5 * jnp.cos(jnp.arange(math.prod(shape))).reshape(shape)
        layer = Layer(lagrangian, shape, tau=2.0, bias=bias)
    except Violation as error:
        finding = Finding(error.law, LAWS[error.law], 1, math.inf, str(error))
        return Report(lagrangian, (finding,))
    wide = states(shape, scale=scale, dtype=dtype, extremes=extremes)
    moderate = states(shape, scale=1.0 if scale is None else scale, dtype=dtype)
    few = max(max_examples // 10, 1)
    runs = [
        _Run(partial(lagrangian_laws, lagrangian), {"x": wide, "y": wide}, max_examples),
        _Run(partial(jit_laws, lagrangian), {"x": wide}, few),
        _Run(partial(bound_laws, layer), {"x": moderate}, max_examples),
        _Run(partial(descent_laws, layer), {"x0": moderate}, few),
        _Run(partial(gradient_laws, layer), {"x": moderate}, few),
    ]
    excesses_by_law: dict[str, list[float]] = {law: [] for law in LAWS}
    excesses_by_law |= {"scalar": [0.0] * num_dtypes, "dtype": [0.0] * num_dtypes}
    counterexamples: dict[str, str] = {}
    zeros = jnp.zeros(shape, float if dtype is None else dtype)
    total = sum(1 + run.num_examples for run in runs)
    with tqdm(total=total, delay=1, disable=None if progress is None else not progress) as bar:
        # Compilation takes most of the time, and can be done in parallel.
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda run: run.excesses_at(dict.fromkeys(run.states, zeros)), runs):
                bar.update()
        for run in runs:
            for example in run.examples():
                bar.update()
                for law, excess in run.excesses_at(example).items():
                    excesses_by_law[law].append(excess)
            for law, excess in excesses_by_law.items():
                if max(excess, default=0) > 1 and law not in counterexamples:
                    counterexamples[law] = run.counterexample(law)
    findings = (
        Finding(law, LAWS[law], len(excess), max(excess), counterexamples.get(law))
        for law, excess in excesses_by_law.items()
        if excess
    )
    return Report(lagrangian, tuple(findings))


@dataclasses.dataclass(frozen=True)
class _Run:
    """Laws that are measured together, the states at which they are, and the number of examples."""

    laws: Callable[..., Laws]
    states: dict[str, SearchStrategy[PyTree]]
    num_examples: int

    def excesses_at(self, example: dict[str, PyTree]) -> dict[str, float]:
        try:
            return excesses(self.laws(**example))
        except Violation as violation:
            return {violation.law: math.inf}

    def examples(self) -> list[dict[str, PyTree]]:
        examples = []

        def collect(example):
            examples.append(example)
            return False

        with contextlib.suppress(NoSuchExample):
            self._find(collect)
        return examples

    def counterexample(self, law: str) -> str:
        """The text of the simplest violation."""
        try:
            example = self._find(lambda example: self.excesses_at(example).get(law, 0) > 1)
            check(self.laws(**example), example)
        except Violation as violation:
            return str(violation)
        except NoSuchExample:
            pass
        return f"{law}: violated in the first run but not when repeated."

    def _find(self, condition: Callable[[dict[str, PyTree]], bool]) -> dict[str, PyTree]:
        # Hypothesis derives the seed from its `find`: every condition sees the same examples.
        settings = hypothesis.settings(
            max_examples=self.num_examples,
            deadline=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            verbosity=hypothesis.Verbosity.quiet,
        )
        return hypothesis.find(st.fixed_dictionaries(self.states), condition, settings=settings)
