"""What the laws are, what one measures, and how a broken one is told."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


# In the order in which they are checked: each presumes those before.
LAWS = {
    "scalar": "L(x) and E(x) are scalars, and g(x) has the shape of x",
    "dtype": "L, g and E have the dtype of x",
    "jit": "L, g and E can be evaluated, and jit changes nothing",
    "vmap": "vmap changes nothing",
    "finite": "no NaN in L, g, E, Hx, u and ∂E/∂x, and L and E are finite where Σ|x·g| is",
    "gradient": "g(x) = ∂L/∂x",
    "Legendre": "E(x) = Σ x·g(x) − L(x)",
    "convex": "½L(x) + ½L(y) ≥ L(½x + ½y)",
    "Fenchel–Young": "L(y) + E(x) − Σ g(x)·y ≥ 0",
    "batch": "E, g and u of a sample in a batch are those of it alone",
    "bounded": "E(x) ≥ bound",
    "drive": "∂E/∂x = H u, with u = ∂E/∂g and H = ∂g/∂x",
    "time constants": "τ of twice the leaf tau = 2τ",
    "dissipation": "0 ≥ dE/dt = Σ ∂E/∂x · dx/dt",
    "descent": "E(xₙ) ≥ E(xₙ₊₁) at the accepted steps",
    "gradients": "Σ ∂f/∂θ·v = df(θ + hv)/dh for every parameter θ",
}


class Violation(AssertionError):
    """A law that doesn't hold. `law` is its name, and the text has the numbers."""

    law: str

    def __init__(self, law: str, text: str):
        super().__init__(f"{law}: {text}")
        self.law = law


class Measured(eqx.Module):
    """The two sides of a law at one state, per unit or as scalars.

    It holds where they agree within `tolerance` or, if it is an inequality, where left ≥ right −
    tolerance. A tolerance that is not finite, as where a term overflows, leaves it undecided, and
    NaN on both sides is for the law "finite"; on one side it is never right.
    """

    left: Array
    right: Array
    tolerance: Array
    terms: dict[str, Array]
    inequality: bool = eqx.field(static=True, default=False)
    of: str = eqx.field(static=True, default="")

    def violation(self, xp: Any = np) -> Any:
        """By how much the law is missed, in the units of its sides; 0 where it holds exactly."""
        left, right = xp.asarray(self.left, float), xp.asarray(self.right, float)
        with np.errstate(invalid="ignore"):
            missed = xp.maximum(right - left, 0) if self.inequality else xp.abs(right - left)
        same = (left == right) | (xp.isnan(left) & xp.isnan(right))  # ∞ = ∞
        return xp.where(same, 0, xp.where(xp.isnan(missed), xp.inf, missed))

    def excess(self, xp: Any = np) -> Any:
        """The violation in units of the tolerance, per unit: more than 1 breaks the law."""
        missed, tolerance = self.violation(xp), xp.asarray(self.tolerance, float)
        asked = xp.isfinite(tolerance) & (missed > 0)
        with np.errstate(divide="ignore", over="ignore"):
            return xp.where(asked, missed / xp.where(asked, tolerance, 1), 0)

    def at_worst(self) -> "Measured":
        """Of a stack of these, the one that misses the law by the most."""
        excess = self.excess(jnp)
        worst = jnp.argmax(jnp.max(excess.reshape(len(excess), -1), axis=1))
        return jax.tree.map(lambda leaf: leaf[worst], self)


Laws = dict[str, list[Measured]]


def excesses(laws: Laws) -> dict[str, float]:
    """The largest excess of each law."""
    return {
        law: max(float(np.max(part.excess(), initial=0)) for part in parts)
        for law, parts in laws.items()
        if parts
    }


def first_broken(excess: dict[str, float]) -> str | None:
    """The first law in their order that is broken, which may be why those after it are."""
    return next((law for law in LAWS if excess.get(law, 0) > 1), None)


def check(laws: Laws, where: dict[str, Any]) -> None:
    """Raises a [`Violation`][] for the first law that is broken."""
    law = first_broken(excesses(laws))
    if law is not None:
        worst = max(laws[law], key=lambda part: np.max(part.excess(), initial=0))
        raise Violation(law, _told(law, worst, where))


def _told(law: str, measured: Measured, where: dict[str, Any]) -> str:
    """Where a law is broken the most, and by how much."""
    excess = measured.excess()
    unit = np.unravel_index(np.argmax(excess), excess.shape)
    left, right, tolerance, missed = (
        np.broadcast_to(np.asarray(each, np.float64), excess.shape)[unit]
        for each in (measured.left, measured.right, measured.tolerance, measured.violation())
    )
    at = f" at unit {[int(i) for i in unit]}" if unit else ""
    of = f" for {measured.of}" if measured.of else ""
    sides = f"{left:.9g} {'≥' if measured.inequality else '='} {right:.9g}"
    terms = {
        name: np.asarray(term)[unit] if unit and np.shape(term) == excess.shape else term
        for name, term in measured.terms.items()
    }
    size = f"  {sides} is missed by {missed:.3g}; rounding explains {tolerance:.3g}."
    lines = [
        f"{LAWS[law]}, does not hold{of}{at}.",
        *([] if law == "finite" else [size]),
        *(f"  {name} = {_shown(value)}" for name, value in (terms | where).items()),
    ]
    return "\n".join(lines)


def _shown(value: PyTree) -> str:
    """`value`, with the numbers of its arrays in the shortest digits of their dtype."""
    if isinstance(value, eqx.Module):
        return repr(value)
    if not eqx.is_array_like(value):
        parts = jax.tree_util.tree_leaves_with_path(value)
        return ", ".join(f"{jax.tree_util.keystr(path)}: {_shown(leaf)}" for path, leaf in parts)
    array = np.asarray(value)
    digits = {"floatmode": "unique", "separator": ", ", "threshold": 1000}
    return np.array2string(array, max_line_width=10**6, **digits)  # pyright: ignore


def not_nan(results: dict[str, Array]) -> Measured:
    """The part of the law "finite" that none of these is NaN."""
    nans = jnp.asarray(sum(jnp.sum(jnp.isnan(each)).astype(float) for each in results.values()))
    return Measured(nans, jnp.zeros_like(nans), jnp.full_like(nans, 0.5), results)


def rounding(*terms: Any) -> Array:
    """What rounding may change in a sum of these terms, each of its own size.

    64 times ε of their sum: a closed form is a chain of fewer roundings than that, each of half an
    ε, and a sum over n units adds the square root of n at random. Terms are sizes: of what is
    added, and of what a change of its argument by ε does to it. What is below the dtype's smallest
    normal number may be 0.
    """
    size = jnp.asarray(sum(jnp.abs(t) for t in terms))
    size = jnp.where(jnp.isnan(size), jnp.inf, size)
    info = jnp.finfo(size.dtype)
    return 64 * (info.eps * size + info.tiny)
