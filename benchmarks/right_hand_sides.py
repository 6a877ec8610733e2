"""The time of one evaluation: `python -m benchmarks.right_hand_sides`.

The activation g and the state-flow field −H (x − b)/τ of every Lagrangian, for 4096 samples of 1024
units in float32, as ratios of times: over the closed form written out in plain JAX; of HAMUX's
reverse-mode differentiation of x·g − L over the field; and over the elementary function that every
implementation must evaluate, the floor.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

import hopfield_layers as hl

from .side_by_side import interleaved, machine, Ratio, ratio


class ByHand(NamedTuple):
    """The closed forms of L of one row, and of g and H x of a batch of rows, with one parameter."""

    lagrangian: hl.AbstractLagrangian
    value: Callable[[Array, Array], Array]
    activation: Callable[[Array, Array], Array]
    product: Callable[[Array, Array], Array]
    floor: Callable[[Array], Array] | None = None

    @property
    def parameter(self) -> Array:
        """β, n, p or γ, an argument of the compiled programs."""
        fields = vars(self.lagrangian)
        return next((fields[k] for k in ("beta", "n", "p", "gamma") if k in fields), jnp.ones(()))


def along_rows(fn: Any) -> Any:
    """`fn` along the last axis, which it keeps."""
    return lambda x: fn(x, axis=-1, keepdims=True)


row_sum, mean, largest = along_rows(jnp.sum), along_rows(jnp.mean), along_rows(jnp.max)


def softmax_product(g: Array, x: Array) -> Array:
    """(diag g − g gᵀ) x."""
    return g * (x - row_sum(g * x))


def ghostmax(x: Array) -> Array:
    """eˣ/(1 + Σ eˣ)."""
    m = jnp.maximum(largest(x), 0)
    e = jnp.exp(x - m)
    return e / (jnp.exp(-m) + row_sum(e))


def sparsemax(x: Array) -> Array:
    """The algorithm of Martins & Astudillo, which sorts."""
    z = -jnp.sort(-x, axis=-1)
    sums = jnp.cumsum(z, axis=-1)
    k = jnp.arange(1, x.shape[-1] + 1)
    size = jnp.sum(1 + k * z > sums, axis=-1, keepdims=True)
    return jnp.maximum(x - (jnp.take_along_axis(sums, size - 1, -1) - 1) / size, 0)


def entmax15(x: Array) -> Array:
    """The algorithm of Peters, Niculae & Martins for α = 1.5, which sorts."""
    x = (x - largest(x)) / 2
    z, k = -jnp.sort(-x, axis=-1), jnp.arange(1, x.shape[-1] + 1)
    means, squares = jnp.cumsum(z, -1) / k, jnp.cumsum(z**2, -1) / k
    taus = means - jnp.sqrt(jnp.maximum((1 - k * (squares - means**2)) / k, 0))
    size = jnp.sum(taus <= z, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(taus, size - 1, -1), 0) ** 2


def sparsemax_value(x: Array, b: Array) -> Array:
    """Σ p·x − (‖p‖² − 1)/2β."""
    p = sparsemax(b * x)
    return jnp.sum(p * x) - (jnp.sum(p**2) - 1) / (2 * b)


def entmax_value(x: Array, b: Array) -> Array:
    """Σ p·x − Σ (p^1.5 − p)/0.75β."""
    p = entmax15(b * x)
    return jnp.sum(p * x) - jnp.sum(p**1.5 - p) / (0.75 * b)


def supported(s: Array, x: Array) -> Array:
    """(diag s − s sᵀ/Σ s) x."""
    return s * (x - row_sum(s * x) / row_sum(s))


def layer_norm_product(x: Array, gamma: Array) -> Array:
    """γ (I − 1/D − v vᵀ/D)/√(var x + ε) x."""
    v = x - mean(x)
    squares = mean(v**2)
    return gamma * v * (1 - squares / (squares + EPS)) / jnp.sqrt(squares + EPS)


def spherical_product(x: Array, gamma: Array) -> Array:
    """γ (I − x xᵀ/(‖x‖² + ε))/√(‖x‖² + ε) x."""
    squares = row_sum(x**2)
    return gamma * x * (1 - squares / (squares + EPS)) / jnp.sqrt(squares + EPS)


EPS = 1e-5
LN2 = math.log(2)
relu, identity_cost = (lambda x: jnp.maximum(x, 0)), (lambda x: x + 1)
exp, sinh, cosh, tanh, power = jnp.exp, jnp.sinh, jnp.cosh, jnp.tanh, jnp.power
softmax, sigmoid = jax.nn.softmax, jax.nn.sigmoid
CLOSED_FORMS = {
    "identity": ByHand(
        hl.LIdentity(),
        lambda x, _: jnp.sum(x**2) / 2,
        lambda x, _: x,
        lambda x, _: x,
        identity_cost,
    ),
    "relu": ByHand(
        hl.LRelu(),
        lambda x, _: jnp.sum(relu(x) ** 2) / 2,
        lambda x, _: relu(x),
        lambda x, _: relu(x),
        identity_cost,
    ),
    "repu": ByHand(
        hl.LRepu(n=3.0),
        lambda x, n: jnp.sum(power(relu(x), n)) / n,
        lambda x, n: power(relu(x), n - 1),
        lambda x, n: (n - 1) * power(relu(x), n - 2) * x,
    ),
    "power": ByHand(
        hl.LPower(p=2.5),
        lambda x, p: jnp.sum(power(jnp.abs(x), p)) / p,
        lambda x, p: jnp.sign(x) * power(jnp.abs(x), p - 1),
        lambda x, p: (p - 1) * power(jnp.abs(x), p - 2) * x,
    ),
    "exp": ByHand(
        hl.LExp(),
        lambda x, b: jnp.sum(exp(b * x)) / b,
        lambda x, b: exp(b * x),
        lambda x, b: b * exp(b * x) * x,
        exp,
    ),
    "rexp": ByHand(
        hl.LRexp(),
        lambda x, b: jnp.sum(exp(b * relu(x)) / b - relu(x)),
        lambda x, b: jnp.expm1(b * relu(x)),
        lambda x, b: jnp.where(x > 0, b * exp(b * x) * x, 0),
        jnp.expm1,
    ),
    "cosh": ByHand(
        hl.LCosh(),
        lambda x, b: jnp.sum(cosh(b * x)) / b,
        lambda x, b: sinh(b * x),
        lambda x, b: b * cosh(b * x) * x,
        sinh,
    ),
    "tanh": ByHand(
        hl.LTanh(),
        lambda x, b: jnp.sum(jnp.logaddexp(b * x, -b * x) - LN2) / b,
        lambda x, b: tanh(b * x),
        lambda x, b: b * (1 - tanh(b * x) ** 2) * x,
        tanh,
    ),
    "sigmoid": ByHand(
        hl.LSigmoid(),
        lambda x, b: jnp.sum(jnp.logaddexp(b * x, 0)) / b,
        lambda x, b: sigmoid(b * x),
        lambda x, b: b * sigmoid(b * x) * (1 - sigmoid(b * x)) * x,
        exp,
    ),
    "softmax": ByHand(
        hl.LSoftmax(),
        lambda x, b: jax.nn.logsumexp(b * x) / b,
        lambda x, b: softmax(b * x),
        lambda x, b: b * softmax_product(softmax(b * x), x),
        softmax,
    ),
    "ghostmax": ByHand(
        hl.LGhostmax(),
        lambda x, b: jnp.logaddexp(jax.nn.logsumexp(b * x), 0) / b,
        lambda x, b: ghostmax(b * x),
        lambda x, b: b * softmax_product(ghostmax(b * x), x),
        softmax,
    ),
    "sparsemax": ByHand(
        hl.LSparsemax(),
        sparsemax_value,
        lambda x, b: sparsemax(b * x),
        lambda x, b: b * supported((sparsemax(b * x) > 0).astype(x.dtype), x),
    ),
    "entmax": ByHand(
        hl.LEntmax(),
        entmax_value,
        lambda x, b: entmax15(b * x),
        lambda x, b: b * supported(jnp.sqrt(entmax15(b * x)), x),
    ),
    "layer norm": ByHand(
        hl.LLayerNorm(),
        lambda x, gamma: x.size * gamma * jnp.sqrt(jnp.var(x) + EPS),
        lambda x, gamma: gamma * (x - mean(x)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + EPS),
        layer_norm_product,
    ),
    "spherical norm": ByHand(
        hl.LSphericalNorm(),
        lambda x, gamma: gamma * jnp.sqrt(jnp.sum(x**2) + EPS),
        lambda x, gamma: gamma * x / jnp.sqrt(row_sum(x**2) + EPS),
        spherical_product,
    ),
}


class Row(NamedTuple):
    """The ratios of one Lagrangian."""

    activation: Ratio
    field: Ratio
    hamux: Ratio
    activation_floor: Ratio | None
    field_floor: Ratio | None


def measured(case: ByHand, x: Array, bias: Array, tau: Array) -> Row:
    """The ratios of one Lagrangian, with parameters that the compiler doesn't know."""
    layer = hl.Layer(case.lagrangian, x.shape[-1], tau=tau, bias=bias)

    def as_hamux(k, bias, tau, x):
        def energy(z):
            value, g = jax.value_and_grad(case.value)(z, k)
            return jnp.sum(z * g) - value

        return -jax.vmap(jax.grad(energy))(x - bias) / tau

    k = case.parameter
    programs = (
        (lambda layer, x: layer.activation(x), (layer, x)),
        (lambda k, bias, x: case.activation(x - bias, k), (k, bias, x)),
        (lambda layer, x: hl.EnergyFlow(layer)(0.0, x), (layer, x)),
        (lambda k, bias, tau, x: -case.product(x - bias, k) / tau, (k, bias, tau, x)),
        (as_hamux, (k, bias, tau, x)),
        (case.floor or identity_cost, (x,)),
    )
    compiled = [(jax.jit(fn).lower(*args).compile(), args) for fn, args in programs]
    runs = [lambda run=run, args=args: run(*args) for run, args in compiled]
    g, by_hand, field, field_by_hand, hamux, floor = interleaved(*runs)
    floors = [ratio(each, floor) if case.floor else None for each in (g, field)]
    return Row(ratio(g, by_hand), ratio(field, field_by_hand), ratio(hamux, field), *floors)


def main(samples: int = 4096, units: int = 1024) -> dict[str, Row]:
    """Prints the table."""
    x = jr.normal(jr.key(0), (samples, units), jnp.float32)
    bias, tau = 0.1 * jr.normal(jr.key(1), (units,), jnp.float32), jnp.array(2.0, jnp.float32)
    print(f"{samples} samples of {units} units in float32, {machine()}\n")
    print("| | g / by hand | field / by hand | HAMUX / field | g / floor | field / floor |")
    print("|" + "---|" * 6)
    table = {}
    for name, case in CLOSED_FORMS.items():
        row = table[name] = measured(case, x, bias, tau)
        print(f"| {name} | " + " | ".join(str(each or "–") for each in row) + " |", flush=True)
    hand = [r.median for row in table.values() for r in (row.activation, row.field)]
    hamux = statistics.geometric_mean(row.hamux.median for row in table.values())
    print(f"\nby hand: median {statistics.median(hand):.2f}, largest {max(hand):.2f}")
    print(f"HAMUX's way: geometric mean {hamux:.1f} times as long")
    return table


if __name__ == "__main__":
    main()
