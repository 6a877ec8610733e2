"""The laws by name, how one is measured, and the message of a broken one."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._trees import entries


# In the order in which they are checked, as each presumes the ones before it.
LAWS = {
    "scalar": "L(x), E(x) and E_s(g) are scalars, and g(x) has the shape of x",
    "dtype": "results have the dtype of x",
    "jit": "results can be evaluated, and neither jit nor another evaluation changes them",
    "vmap": "vmap changes nothing",
    "finite": "no NaN in results and derivatives, and no ∞ where the terms are in range",
    "sign": "E_s(g) = −A(g)",
    "symmetric": "Σ vᵢ ∂²A/∂gᵢ∂gⱼ wⱼ is the same with v and w exchanged: A comes from an energy",
    "gradient": "g(x) = ∂L/∂x, and ∂A/∂g agrees with central differences",
    "coupling": "Σⱼ |∂gᵢ/∂xⱼ| = 0 over the units that coupled_axes does not couple with i",
    "Legendre": "E(x) = Σ x·g(x) − L(x)",
    "convex": "½L(x) + ½L(y) ≥ L(½x + ½y)",
    "Fenchel–Young": "L(y) + E(x) − Σ g(x)·y ≥ 0",
    "mask": "a key that the mask leaves out of every query changes nothing",
    "batch": "E, g and u of a sample in a batch are those of it alone",
    "bounded": "E(x) ≥ bound",
    "slope": "Σ ∂E/∂x·v = dE(x + hv)/dh",
    "continuous": "E and A don't jump on the way from one state to another",
    "drive": "∂E/∂x = H u, with u = ∂E/∂g and H = ∂g/∂x",
    "time constants": "τ doubles where every leaf named tau is doubled",
    "dissipation": "0 ≥ dE/dt = Σ ∂E/∂x · dx/dt",
    "descent": "E(xₙ) ≥ E(xₙ₊₁) at the accepted steps, and not all are rejected where dE/dt < 0",
    "gradients": "Σ ∂f/∂θ·v = df(θ + hv)/dh for every parameter θ, and for x and g",
    "rest": "a relaxation ends at |u| ≤ (1 + |x|)/max_steps and ∂E/∂x = H u, not above its start",
    "gradient of rest": "du(x* + h dx*/dθ·v, θ + hv)/dh = 0",
}
# Properties that are reported. An object may lack them and still be right.
PROPERTIES = {
    "block updates": "½A(g) + ½A(g′) ≥ A(½g + ½g′) along each layer: block updates lower E",
    "evaluations": "a drive evaluates each activation and each synapse once",
    "compilations": "other values of the same shapes compile nothing",
}


class Violation(AssertionError):
    """A law that doesn't hold; `law` is its name.

    The text has the law's formula with the numbers, the unit at which it is missed by the most, by
    how much, and how much rounding explains.
    """

    def __init__(self, law: str, text: str):
        super().__init__(f"{law}: {text}")
        self.law = law


class Measured(eqx.Module):
    """The two sides of a law at one state, per unit or as scalars.

    It holds where they agree within `tolerance` or, if it is an inequality, where left ≥ right −
    tolerance. Where the tolerance is not finite, because a term overflows, the law is undecided.
    NaN on both sides is left to the law "finite"; NaN on one side is a violation.
    """

    left: Array = eqx.field(converter=jnp.asarray)
    right: Array = eqx.field(converter=jnp.asarray)
    tolerance: Array = eqx.field(converter=jnp.asarray)
    terms: dict[str, Array]
    inequality: bool = eqx.field(static=True, default=False)
    subject: str = eqx.field(static=True, default="")
    has_sides: bool = eqx.field(static=True, default=True)  # or the terms alone tell what is wrong

    def excess(self, xp: ModuleType = np) -> np.ndarray | Array:
        """How far the law is missed in units of the tolerance, per unit: more than 1 breaks it."""
        sides = (self.left, self.right, self.tolerance)
        left, right, tolerance = (xp.asarray(side, float) for side in sides)
        with np.errstate(all="ignore"):
            missed = xp.maximum(right - left, 0) if self.inequality else xp.abs(right - left)
            missed = xp.where(xp.isnan(missed), xp.inf, missed)
            same = (left == right) | (xp.isnan(left) & xp.isnan(right))  # ∞ = ∞
            return xp.where(same | ~xp.isfinite(tolerance), 0, missed / tolerance)

    def worst(self) -> "Measured":
        """The entry of a stack of measurements that misses the law by the most."""
        excess = self.excess(jnp)
        index = jnp.argmax(jnp.max(excess.reshape(len(excess), -1), axis=1, initial=0))
        return entries(self, index)


Laws = dict[str, list[Measured]]


@contextlib.contextmanager
def broken_by_errors(law: str = "jit") -> Iterator[None]:
    """Turns an error inside the block into a [`Violation`][] of this law."""
    try:
        yield
    except Violation:
        raise
    except Exception as error:
        # The text is that of `CallableLagrangian` for a callable that returns no scalar.
        law = "scalar" if str(error).startswith("A Lagrangian returns a real scalar") else law
        text = f"{LAWS[law]}: evaluating this raises {type(error).__name__}: {error}"
        raise Violation(law, text) from error


def dtypes() -> tuple[jnp.dtype, ...]:
    """The dtypes in which the laws of dtypes are tried."""
    return tuple(
        jnp.dtype(name) for name in ("float16", "bfloat16", "float32", jnp.result_type(float))
    )


def excesses(laws: Laws) -> dict[str, float]:
    """The largest excess of each law up to the first broken one, as those after it presume it."""
    found = {}
    for law in filter(laws.get, LAWS):
        found[law] = max(map(_largest, laws[law]))
        if found[law] > 1:
            return found
    return found | {law: max(map(_largest, laws[law])) for law in filter(laws.get, PROPERTIES)}


def _largest(measured: Measured) -> float:
    return float(np.max(measured.excess(), initial=0))


def check(laws: Laws, example: dict[str, PyTree]) -> None:
    """Raises a [`Violation`][] for the first law that is broken at this example."""
    for law, excess in excesses(laws).items():
        if excess > 1 and law in LAWS:
            raise Violation(law, _message(law, max(laws[law], key=_largest), example))


def _message(law: str, measured: Measured, example: dict[str, PyTree]) -> str:
    """The unit at which a law is broken the most, the sides there, their terms and the example."""
    excess = measured.excess()
    unit = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
    left, right, tolerance = (
        np.broadcast_to(np.asarray(side, np.float64), excess.shape)[unit]
        for side in (measured.left, measured.right, measured.tolerance)
    )
    for_subject = f" for {measured.subject}" if measured.subject else ""
    lines = [f"{LAWS[law]}, does not hold{for_subject}{f' at unit {list(unit)}' if unit else ''}."]
    if measured.has_sides:
        sides = f"{left:.9g} {'≥' if measured.inequality else '='} {right:.9g}"
        missed = f"missed by {excess[unit] * tolerance:.3g}; rounding explains {tolerance:.3g}"
        lines.append(f"  {sides} is {missed}.")
    for name, value in (measured.terms | example).items():
        per_unit = name in measured.terms and unit and np.shape(value) == excess.shape
        lines.append(f"  {name} = {_formatted(np.asarray(value)[unit] if per_unit else value)}")
    return "\n".join(lines)


def _formatted(value: PyTree) -> str:
    """`value`, with the numbers of its arrays in the shortest digits of their dtype."""
    if isinstance(value, eqx.Module):
        return repr(value)
    if not eqx.is_array_like(value):
        leaves = jax.tree_util.tree_leaves_with_path(value)
        return ", ".join(f"{jax.tree_util.keystr(p)}: {_formatted(leaf)}" for p, leaf in leaves)
    with np.printoptions(floatmode="unique", threshold=1000):
        return np.array2string(np.asarray(value), max_line_width=10**6, separator=", ")


def finite(
    results: dict[str, Array], out_of_range: ArrayLike = 0, is_decided: ArrayLike = True
) -> Measured:
    """The law "finite": none of these is NaN, and nothing else out of range."""
    count = sum(jnp.sum(jnp.isnan(x)) for x in results.values())
    broken = jnp.where(is_decided, count + out_of_range, 0)
    return Measured(broken, 0.0, 0.5, results, has_sides=False)


def rounding(*sizes: ArrayLike) -> Array:
    """What rounding may change in a sum of terms of these sizes.

    64 ε of their sum: a closed form is a chain of fewer roundings of half an ε, and that of a sum
    over n units grows like √n. The sizes are those of the terms, and of what a relative change of ε
    in their arguments does to them. What is below the smallest normal number may be flushed to 0.
    """
    size = jnp.asarray(sum(jnp.abs(term) for term in sizes))
    size = jnp.where(jnp.isnan(size), jnp.inf, size)
    info = jnp.finfo(size.dtype)
    return 64 * (info.eps * size + info.tiny)


def abs_product(a: Array, b: Array) -> Array:
    """|a b|, and 0 where a is 0 although b may be ∞."""
    return jnp.where(a == 0, 0, jnp.abs(a * b))
