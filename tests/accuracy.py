"""The Lagrangians in mpmath, from their definitions, and the library's errors against them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from mpmath import mpf

import hopfield_layers as hl

from .compiling import optimized


mp: Any = mpmath.mp  # its functions have no types
FAR = 10**5

LAGRANGIANS = {
    "identity": hl.LIdentity(),
    "relu": hl.LRelu(),
    **{f"repu {n}": hl.LRepu(n=n) for n in (1.5, 2.0, 2.7, 3.0)},
    **{f"power {p}": hl.LPower(p=p) for p in (1.5, 2.0, 3.0)},
    **{f"exp {beta}": hl.LExp(beta=beta) for beta in (0.7, 5.0)},
    **{f"rexp {beta}": hl.LRexp(beta=beta) for beta in (0.7, 5.0)},
    **{f"cosh {beta}": hl.LCosh(beta=beta) for beta in (0.7, 5.0)},
    **{f"tanh {beta}": hl.LTanh(beta=beta) for beta in (0.7, 5.0)},
    **{f"sigmoid {beta}": hl.LSigmoid(beta=beta, scale=1.5) for beta in (0.7, 5.0)},
    **{f"softmax {beta}": hl.LSoftmax(beta=beta) for beta in (0.7, 5.0)},
    **{f"ghostmax {beta}": hl.LGhostmax(beta=beta) for beta in (0.7, 5.0)},
    **{f"sparsemax {beta}": hl.LSparsemax(beta=beta) for beta in (0.7, 5.0)},
    **{
        f"entmax {alpha}": hl.LEntmax(alpha=alpha, beta=beta)
        for alpha, beta in ((1.05, 0.7), (1.5, 5.0), (2.0, 0.7), (3.0, 5.0))
    },
    "layer norm": hl.LLayerNorm(),
    "layer norm, shifted": hl.LLayerNorm(gamma=1.2, delta=0.3, eps=0.1),
    "layer norm, eps 0": hl.LLayerNorm(gamma=1.2, delta=0.3, eps=0.0),
    "spherical norm": hl.LSphericalNorm(),
    "spherical norm, shifted": hl.LSphericalNorm(gamma=1.2, delta=0.3, eps=0.1),
    "spherical norm, eps 0": hl.LSphericalNorm(gamma=1.2, delta=0.3, eps=0.0),
}


class Exact(NamedTuple):
    """L, g and the Hessian at a state, in mpmath."""

    value: mpf
    gradient: list[mpf]
    hessian: list[list[mpf]]


def _power(z, n):
    return (z**n / n, z ** (n - 1), (n - 1) * z ** (n - 2)) if z > 0 else (mpf(0),) * 3


def _signed_power(z, p):
    value, g, h = _power(abs(z), p)
    return value, mp.sign(z) * g, h


def _exponential(t):
    """exp t, or if it is beyond every dtype's range a number there that is faster to compute."""
    return mp.exp(min(max(t, -FAR), FAR))


def _exp(z, beta):
    e = _exponential(beta * z)
    return e / beta, e, beta * e


def _rexp(z, beta):
    value, g, h = _exp(max(z, 0), beta)
    return value - max(z, 0), g - 1, h if z > 0 else mpf(0)


def _cosh(z, beta):
    up, down = _exponential(beta * z), _exponential(-beta * z)
    return (up + down) / (2 * beta), (up - down) / 2, beta * (up + down) / 2


def _tanh(z, beta):
    if abs(beta * z) > FAR:
        return abs(z) - mp.log(2) / beta, mp.sign(z), mpf(0)
    cosh = mp.cosh(beta * z)
    return mp.log(cosh) / beta, mp.sinh(beta * z) / cosh, beta / (cosh * cosh)


def _sigmoid(z, beta, scale):
    if beta * z > FAR:
        return scale * z, scale, mpf(0)
    e = _exponential(beta * z)
    p = e / (1 + e)
    return scale * mp.log(1 + e) / beta, scale * p, scale * beta * p / (1 + e)


# From a unit and the parameters to L, g and g'.
ELEMENTWISE = {
    hl.LIdentity: lambda z: (z**2 / 2, z, 1),
    hl.LRelu: lambda z: _power(z, 2),
    hl.LRepu: _power,
    hl.LPower: _signed_power,
    hl.LExp: _exp,
    hl.LRexp: _rexp,
    hl.LCosh: _cosh,
    hl.LTanh: _tanh,
    hl.LSigmoid: _sigmoid,
}


def _softmax(z, beta):
    e = [_exponential(beta * (x - max(z))) for x in z]
    total = mp.fsum(e)
    g = [x / total for x in e]
    hessian = [[beta * a * ((i == j) - b) for j, b in enumerate(g)] for i, a in enumerate(g)]
    return Exact(max(z) + mp.log(total) / beta, g, hessian)


def _ghostmax(z, beta):
    value, g, hessian = _softmax([*z, mpf(0)], beta)
    return Exact(value, g[:-1], [row[:-1] for row in hessian[:-1]])


def _entmax(z, beta, alpha):
    u = [(alpha - 1) * beta * (x - max(z)) for x in z]

    def p(threshold):
        return [(x - threshold) ** (1 / (alpha - 1)) if x > threshold else mpf(0) for x in u]

    threshold = low = mpf(-1)
    high = -(mpf(len(u)) ** (1 - alpha))
    with mp.workdps(20):
        for _ in range(45):
            threshold = (low + high) / 2
            low, high = (threshold, high) if mp.fsum(p(threshold)) > 1 else (low, threshold)
    for _ in range(8):  # Newton's method, now that the support is known
        g = p(threshold)
        s = [x ** (2 - alpha) if x > 0 else mpf(0) for x in g]
        threshold += (mp.fsum(g) - 1) * (alpha - 1) / mp.fsum(s)
    g = p(threshold)
    s = [x ** (2 - alpha) if x > 0 else mpf(0) for x in g]
    entropy = mp.fsum(x**alpha - x for x in g) / (beta * alpha * (alpha - 1))
    total = mp.fsum(s)
    hessian = [
        [beta * a * ((i == j) - b / total) for j, b in enumerate(s)] for i, a in enumerate(s)
    ]
    return Exact(mp.fdot(g, z) - entropy, g, hessian)


def _sparsemax(z, beta):
    return _entmax(z, beta, mpf(2))


def _spherical_norm(z, gamma, delta, eps):
    s = mp.sqrt(mp.fdot(z, z) + eps)
    g = [gamma * x / s + delta for x in z]
    hessian = [
        [gamma / s * ((i == j) - x * y / s**2) for j, y in enumerate(z)] for i, x in enumerate(z)
    ]
    return Exact(gamma * s + delta * mp.fsum(z), g, hessian)


def _layer_norm(z, gamma, delta, eps):
    size = len(z)
    mean = mp.fsum(z) / size
    v = [x - mean for x in z]
    s = mp.sqrt(mp.fdot(v, v) / size + eps)
    g = [gamma * x / s + delta for x in v]
    hessian = [
        [gamma / s * ((i == j) - (1 + x * y / s**2) / size) for j, y in enumerate(v)]
        for i, x in enumerate(v)
    ]
    return Exact(size * gamma * s + delta * mp.fsum(z), g, hessian)


# From a row and the parameters to L, g and the Hessian.
ROWWISE = {
    hl.LSoftmax: _softmax,
    hl.LGhostmax: _ghostmax,
    hl.LSparsemax: _sparsemax,
    hl.LEntmax: _entmax,
    hl.LLayerNorm: _layer_norm,
    hl.LSphericalNorm: _spherical_norm,
}


def exact(lagrangian: hl.AbstractLagrangian, z: list[mpf], dtype: Any) -> Exact:
    """The exact values at a row of units, for the parameters rounded to `dtype`."""

    def parameter(value):
        rounded = value.astype(dtype) if eqx.is_array(value) else value
        return mpf(float(rounded))

    names = ("n", "p", "beta", "scale", "alpha", "gamma", "delta", "eps")
    values = {n: parameter(getattr(lagrangian, n)) for n in names if hasattr(lagrangian, n)}
    if type(lagrangian) in ROWWISE:
        return ROWWISE[type(lagrangian)](z, **values)
    value, g, h = zip(*(ELEMENTWISE[type(lagrangian)](x, **values) for x in z), strict=True)
    hessian = [[slope * (i == j) for j in range(len(z))] for i, slope in enumerate(h)]
    return Exact(mp.fsum(value), list(g), hessian)


@optimized
def _results(lagrangian, states):
    return jax.vmap(lambda z: (lagrangian(z), lagrangian.activation(z), lagrangian.energy(z)))(
        states
    )


def _error(computed: Any, true: mpf, sensitivity: mpf, terms: int, info: Any) -> float:
    """The error in units of eps·|true|·max(1, condition number) = eps·max(|true|, sensitivity)."""
    most, tiny, eps, least = (
        mpf(float(x)) for x in (info.max, info.tiny, info.eps, info.smallest_subnormal)
    )
    unit = max(eps * max(abs(true), sensitivity), least)
    computed = float(computed)
    if np.isnan(computed):
        return np.inf
    if np.isinf(computed):  # right where the true value is out of range
        return float(max(most - np.sign(computed) * true, 0) / unit)
    # Each of the terms of a sum may have vanished below tiny; the last of them leaves a zero.
    vanished = tiny * (terms - 1 if computed else terms)
    return float(max(abs(computed - true) - vanished, 0) / unit)


class Errors(NamedTuple):
    """In ulps of the true value times its condition number, one per state."""

    value: list[float]
    activation: list[float]
    energy: list[float]


def errors(lagrangian: hl.AbstractLagrangian, states: Any) -> Errors:
    """The errors of the library, for states of shape (N, D)."""
    info = jnp.finfo(states.dtype)
    wide = jnp.promote_types(states.dtype, jnp.float32)
    all_errors = Errors([], [], [])
    arrays = jax.device_get((states, *_results(lagrangian, states)))
    for state, value, g, energy in zip(*arrays, strict=True):
        z = [mpf(float(x)) for x in state]
        # Results as small as tiny come from terms as large as z.
        with mp.workdps(30 - np.log10(float(info.tiny)) + max(mp.log10(max(1, *map(abs, z))), 0)):
            true = exact(lagrangian, z, wide)
            true_energy = mp.fdot(z, true.gradient) - true.value

            def sensitivity(slopes, z=z):
                return mp.fsum(abs(x * slope) for x, slope in zip(z, slopes, strict=True))

            def error(computed, true, slopes, terms):
                return _error(computed, true, sensitivity(slopes), terms, info)

            all_errors.value.append(error(value, true.value, true.gradient, len(z)))
            units = zip(g, true.gradient, true.hessian, strict=True)
            all_errors.activation.append(max(error(*unit, 1) for unit in units))
            slopes = [mp.fdot(z, row) for row in true.hessian]
            all_errors.energy.append(error(energy, true_energy, slopes, len(z)))
    return all_errors


def units(lagrangian: hl.AbstractLagrangian, dtype: Any, random: np.random.Generator) -> np.ndarray:
    """Single units, shape (N, 1): all magnitudes, and places where formulas or results change."""
    info = jnp.finfo(dtype)
    most, tiny = float(info.max), float(info.tiny)
    scale = 1 / float(getattr(lagrangian, "beta", 1.0))
    power = float(getattr(lagrangian, "n", getattr(lagrangian, "p", 2.0)))
    signs = np.array([[1.0], [-1.0]])
    anywhere = 10 ** random.uniform(-30, np.log10(most), 12)
    moderate = scale * 10 ** random.uniform(-3, np.log10(-1.1 * np.log(tiny)), 40)
    crossings = np.array([0.4, 0.5, 1.0, 1.1997, 1.8, 2.0])
    near = np.concatenate([crossings * (1 + d) for d in (-1e-3, 0, 1e-6)]) * scale
    ends = np.add.outer([np.log(most), -np.log(tiny)], [-7, -4, -1, -1e-4, 0, 0.5, 1, 3, 9]).ravel()
    roots = [x**e for x in (tiny, most) for e in (1 / 2, 1 / power, 1 / max(power - 1, 1))]
    roots = np.outer(roots, [0.5, 0.999, 1.001, 1.5, 2.5]).ravel()
    extremes = np.array([0.0, tiny, most, most / 2])
    magnitudes = np.concatenate([anywhere, moderate, near, scale * ends, roots, extremes])
    units = np.unique(np.clip(signs * magnitudes, -most, most))
    return units[(units == 0) | (np.abs(units) >= tiny)][:, None]


def rows(
    lagrangian: hl.AbstractLagrangian, dtype: Any, size: int, random: np.random.Generator
) -> np.ndarray:
    """Rows, shape (N, size): all magnitudes, with offsets, ties, one huge entry, edges."""
    info = jnp.finfo(dtype)
    most, tiny = float(info.max), float(info.tiny)
    scale = 1 / float(getattr(lagrangian, "beta", 1.0))
    edge = scale / (float(getattr(lagrangian, "alpha", 2.0)) - 1)
    index = np.arange(size)

    def all_rows() -> Iterator[np.ndarray]:
        for magnitude in (1e-30, 1e-15, 1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0, 1e3, 1e10, 1e30, most / 9):
            yield magnitude * scale * random.normal(size=size)
        for offset in (1e6, -1e6, 1e3, -30.0, 30.0):
            for width in (0.1, 3.0):
                yield offset + width * scale * random.normal(size=size)
        for _ in range(4):  # ties
            yield scale * np.round(random.normal(size=size))
            yield scale * random.choice([0.0, -1.0], size)
        for level in (0.0, 1.0, -3.0, 1e6, 1e6 / 3, tiny, most, -most, most / 3):
            yield np.full(size, level)
        for huge in (1e6, -1e6, 1e30, -1e30, most, -most):
            yield np.where(index == 1, huge, scale * random.normal(size=size))
            yield np.where(index == 1, huge, 0)
        for distance in (0.9, 0.99, 0.9999, 0.99999, 1.00001, 1.0001, 1.01, 1.1):
            yield np.where(index == 1, 0, -edge * distance)
            yield np.where(index == 0, 0, np.where(index == 1, -edge * distance, -edge / 2))
        for beyond in (-9, -5, -2, 0.0, 1, 2, 4, 9):
            yield scale * np.where(index == 0, 0, np.log(tiny) + beyond)
            yield scale * np.full(size, np.log(tiny) + beyond)

    z = np.clip(np.stack(list(all_rows())), -most, most)
    return z if getattr(lagrangian, "eps", 1.0) > 0 else z[np.ptp(z / 2, axis=1) > 0]


def states(lagrangian: hl.AbstractLagrangian, dtype: Any) -> Iterator[Any]:
    """States of shape (N, D), for a few sizes D."""
    random = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        if type(lagrangian) in ROWWISE:
            for size in (2, 5):
                yield jnp.asarray(rows(lagrangian, dtype, size, random), dtype)
        else:
            yield jnp.asarray(units(lagrangian, dtype, random), dtype)
