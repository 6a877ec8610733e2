"""What a check found: a table of laws, with the counterexamples."""

import dataclasses
import html
from collections.abc import Iterator

from .verdict import LAWS, PROPERTIES


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a run for one law, or for a property that is not a law.

    `examples` is the number of examples at which the previous laws held; with both flows an example
    counts twice. `worst` is the largest violation in units of the allowed rounding error: the law
    holds if it is at most 1. `counterexample` is None, or the text of the simplest violation.
    `part` is the layer or connection, "" for the whole object.
    """

    law: str
    examples: int
    worst: float
    counterexample: str | None
    part: str = ""

    @property
    def formula(self) -> str:
        """The law in symbols."""
        return (LAWS | PROPERTIES)[self.law]

    @property
    def is_broken(self) -> bool:
        """Whether it is a law, and doesn't hold."""
        return self.law in LAWS and self.worst > 1

    @property
    def verdict(self) -> str:
        """A word for the table."""
        if self.law in PROPERTIES:
            return "yes" if self.worst <= 1 else "no"
        return "BROKEN" if self.is_broken else "holds"


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of [`hopfield_layers.testing.check_lagrangian`][] etc., which prints as a table.

    `notes` are sentences about what wasn't tried, or what a verdict means.
    """

    subject: object
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every law holds."""
        return not any(finding.is_broken for finding in self.findings)

    def __str__(self) -> str:
        table = list(self._rows())
        width = max(len(row[0]) for row in table)
        rows = [f"{a:{width}}  {b:>8}  {c:>7}  {d}" for a, b, c, d in table]
        return "\n".join([str(self.subject), *rows, *self._texts()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = ("</td><td>".join(row) for row in self._rows())
        table = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
        texts = "".join(f"<pre>{html.escape(text)}</pre>" for text in self._texts())
        return f"<code>{html.escape(str(self.subject))}</code><table>{table}</table>{texts}"

    def _texts(self) -> list[str]:
        found = [f for f in self.findings if f.counterexample]
        in_part = [f"{f.part}: " if f.part else "" for f in found]
        pairs = zip(in_part, found, strict=True)
        return [*self.notes, *(f"\n{part}{f.counterexample}" for part, f in pairs)]

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield "law", "examples", "worst", "verdict"
        for f in self.findings:
            name = f"{f.part}: {f.law}" if f.part else f.law
            yield name, str(f.examples), f"{f.worst:.2g}", f.verdict
