"""Pytest tests for each law of each object."""

import dataclasses
import functools as ft
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hopfield_layers as hl

from . import checks
from .kinds import kind_of
from .report import Report
from .verdict import LAWS, Violation


_OF_LAYERS = ("batch", "bounded", "slope", "continuous", "drive", "time constants")
_OF_FLOWS = ("dissipation", "descent", "gradients")
_OF_SYNAPSES = ("scalar", "dtype", "jit", "vmap", "finite", "sign", "symmetric", "gradient")
_OF_LAGRANGIANS = ("coupling", "Legendre", "convex", "Fenchel–Young")
_OF_RESTS = ("rest", "gradient of rest")
_NOT_OF_LAGRANGIANS = ("sign", "symmetric", "mask", *_OF_RESTS)
_LAWS_OF = {
    "Lagrangian": [law for law in LAWS if law not in _NOT_OF_LAGRANGIANS],
    "layer": [law for law in LAWS if law not in _NOT_OF_LAGRANGIANS],
    "synapse": [*_OF_SYNAPSES, "mask", "continuous", "gradients"],
    "network": list(LAWS),
    "model": ["scalar", "dtype", "jit", "finite", *_OF_LAYERS, *_OF_FLOWS, *_OF_RESTS],
}


def parametrize_with_laws(
    objects: Mapping[str, Any] | Sequence[Any],
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a pytest test for each law of each object, with the name `object-law`.

    In this name hyphens stand for the blanks of the law, as in `object-gradient-of-rest`.

    The test takes one argument, `law`, and calls it. An object is checked once in each process. A
    law that wasn't tried is skipped: it doesn't apply, or presumes a law that is broken.

    **Arguments:**

    - `objects`: a dict by name, or a list of objects: Lagrangians and convex callables, layers,
        networks, pairs `(synapse, shapes)` and pairs `(model, x)`.
    - `expected_failures`: reasons by law, or by `object-law`. Such a law fails if it holds.
    - `options`: options of all checks, such as `max_examples`.

    **Raises:** `ValueError` for an expected failure of no law of these objects.

    Examples:
        >>> @hl.testing.parametrize_with_laws(
        ...     {"naive": lambda x: jnp.sum(jnp.log(jnp.cosh(x)))},
        ...     expected_failures={"finite": "cosh overflows"},
        ... )
        ... def test_laws(law):
        ...     law()
    """
    import pytest

    named = objects if isinstance(objects, Mapping) else {_name(each): each for each in objects}
    expected, unused = dict(expected_failures or {}), set(expected_failures or {})
    cases = []
    for name, candidate in named.items():
        kind, check = _check_of(candidate)
        laws = _LAWS_OF[kind]
        own = {law: key for law in laws for key in (law, f"{name}-{law}") if key in expected}
        unused -= set(own.values())
        report = ft.cache(ft.partial(check, expected=tuple(own), **options))
        for law in laws:
            marks = []
            if law in own:
                reason = expected[own[law]]
                marks = [pytest.mark.xfail(reason=reason, strict=True, raises=Violation)]
            # Without blanks and dashes that pytest's -k couldn't match.
            slug = law.replace(" ", "-").replace("–", "-")
            cases.append(pytest.param(_Law(report, law), id=f"{name}-{slug}", marks=marks))
    if unused:
        raise ValueError(f"No object has the laws {sorted(unused)} that are expected to fail.")
    return pytest.mark.parametrize("law", cases)


@dataclasses.dataclass(frozen=True)
class _Law:
    """One law of one object: called, it raises a [`Violation`][] or skips the test."""

    report: Callable[[], Report]
    law: str

    def __call__(self) -> None:
        import pytest

        found = [finding for finding in self.report().findings if finding.law == self.law]
        for finding in found:
            if finding.is_broken:
                raise Violation(self.law, f"{finding.part} {finding.counterexample}")
        if not found:
            pytest.skip("not tried: it doesn't apply, or presumes a law that is broken")


def _check_of(candidate: Any) -> tuple[str, Callable[..., Report]]:
    """The kind of an object, and its check."""
    arguments = candidate if isinstance(candidate, tuple) else (candidate,)
    kind = kind_of(arguments[0])
    if len(arguments) == 2:
        kind = "model" if isinstance(arguments[0], hl.AbstractEnergyModel) else "synapse"
    kind = kind or "Lagrangian"
    return kind, ft.partial(getattr(checks, f"check_{kind.lower()}"), *arguments)


def _name(candidate: Any) -> str:
    """A name for the tests of an object."""
    first = candidate[0] if isinstance(candidate, tuple) else candidate
    return getattr(first, "__name__", None) or " ".join(str(first).splitlines()[0].split())
