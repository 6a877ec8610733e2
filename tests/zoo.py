"""Models that are wrong, each in its own way, and the law that each breaks."""

import math
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

import hopfield_layers as hl


class Wrong(hl.AbstractLagrangian):
    """A Lagrangian made of functions of (x, β): without g or e, these follow from L."""

    value: Callable
    g: Callable | None
    e: Callable | None
    beta: jax.Array
    axes: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, value, g=None, e=None, beta=2.0, axes=None):
        # A Partial is a pytree, so that this is an argument of jax.jit.
        self.value = jax.tree_util.Partial(value)
        self.g = jax.tree_util.Partial(g) if g else None
        self.e = jax.tree_util.Partial(e) if e else None
        self.beta = jnp.asarray(beta)
        self.axes = axes

    def _beta(self, x):
        return self.beta.astype(jnp.result_type(x))

    def __call__(self, x):
        return self.value(x, self._beta(x))

    def activation(self, x):
        return self.g(x, self._beta(x)) if self.g else jax.grad(self)(x)

    def energy(self, x):
        if self.e:
            return self.e(x, self._beta(x))
        return jnp.sum(x * self.activation(x)) - self(x)

    def coupled_axes(self, ndim):
        return tuple(range(ndim)) if self.axes is None else self.axes


def log_cosh(x, beta):
    """The right one, Σ ln cosh(βx)/β."""
    t = jnp.abs(beta * x)
    return jnp.sum(t + jnp.log1p(jnp.exp(-2 * t)) - math.log(2)) / beta


def half_square(x, beta):
    return jnp.sum(x**2) / 2


@jax.custom_batching.custom_vmap
def _sum_over_batch(x):
    return jnp.sum(x**2)


@_sum_over_batch.def_vmap
def _(axis_size, in_batched, x):
    return jnp.full(axis_size, jnp.sum(x**2)), True


_sum_of_squares = jax.custom_jvp(_sum_over_batch)
_sum_of_squares.defjvp(lambda x, dx: (_sum_of_squares(*x), 2 * jnp.sum(x[0] * dx[0])))


# The Lagrangian and the law.
LAGRANGIANS = {
    "log-sum-ReLU, concave": (Wrong(lambda x, b: jnp.log1p(jnp.sum(jnp.maximum(x, 0)))), "convex"),
    "layer norm with γ < 0": (Wrong(lambda x, b: -jnp.sqrt(jnp.var(x) + 1e-5)), "convex"),
    "a double well": (Wrong(lambda x, b: jnp.sum((x**2 - 1) ** 2)), "convex"),
    "a dent that midpoints step over": (
        Wrong(lambda x, b: jnp.sum(x**2 / 2 + jnp.exp(-1e3 * x**2))),
        "Fenchel–Young",
    ),
    "energy of the wrong sign": (
        Wrong(log_cosh, e=lambda x, b: log_cosh(x, b) - jnp.sum(x * jnp.tanh(b * x))),
        "Legendre",
    ),
    "energy without Σ x·g": (Wrong(log_cosh, e=lambda x, b: -log_cosh(x, b)), "Legendre"),
    "activation off by a factor β": (Wrong(log_cosh, lambda x, b: b * jnp.tanh(b * x)), "gradient"),
    "activation stale in one branch": (
        Wrong(lambda x, b: jnp.sum(jnp.maximum(x, 0) ** 2) / 2, lambda x, b: jnp.clip(x, 0, 6)),
        "gradient",
    ),
    "activation wrong at ties": (
        Wrong(lambda x, b: jnp.max(x), lambda x, b: (x == jnp.max(x)).astype(x.dtype)),
        "gradient",
    ),
    "layer norm of the rows, Lagrangian of the whole": (
        Wrong(
            lambda x, b: x.size * jnp.sqrt(jnp.var(x) + 1e-5),
            lambda x, b: hl.LLayerNorm().activation(x),
        ),
        "gradient",
    ),
    "softmax that declares its units uncoupled": (
        Wrong(lambda x, b: jax.nn.logsumexp(b * x) / b, axes=()),
        "coupling",
    ),
    "softmax of the whole that declares rows": (
        Wrong(lambda x, b: jax.nn.logsumexp(b * x) / b, axes=(-1,)),
        "coupling",
    ),
    "a threshold on two units that declares them uncoupled": (
        Wrong(
            lambda x, b: half_square(x, b) + jnp.maximum(-x[0] - x[1] - 1, 0) ** 2 / 2,
            axes=(),
        ),
        "coupling",
    ),
    "ln cosh that overflows": (
        Wrong(lambda x, b: jnp.sum(jnp.log(jnp.cosh(b * x))) / b),
        "finite",
    ),
    "softplus that overflows": (
        Wrong(lambda x, b: jnp.sum(jnp.log(1 + jnp.exp(b * x))) / b),
        "finite",
    ),
    "energy of exp as ∞ − ∞": (Wrong(lambda x, b: jnp.sum(jnp.exp(b * x)) / b), "finite"),
    "norm, NaN at 0": (Wrong(lambda x, b: jnp.sqrt(jnp.sum(x**2))), "finite"),
    "power, NaN below 0": (Wrong(lambda x, b: jnp.sum(jnp.where(x > 0, x**1.5, 0))), "finite"),
    "a term per unit": (
        Wrong(lambda x, b: x**2 / 2, lambda x, b: x, lambda x, b: jnp.sum(x**2) / 2),
        "scalar",
    ),
    "activation summed up": (Wrong(half_square, lambda x, b: jnp.sum(x), half_square), "scalar"),
    "wider than its state": (
        Wrong(lambda x, b: jnp.sum(x.astype(jnp.float64) ** 2) / 2, lambda x, b: x, half_square),
        "dtype",
    ),
    "a branch in Python": (
        Wrong(lambda x, b: jnp.sum(x**2) / 2 if x.sum() > 0 else jnp.sum(x**2)),
        "jit",
    ),
    "another branch under jit": (
        Wrong(lambda x, b: half_square(x, b) * (2 if isinstance(x, Tracer) else 1), lambda x, b: x),
        "jit",
    ),
    "another energy under jit": (
        Wrong(
            half_square,
            lambda x, b: x,
            lambda x, b: half_square(x, b) * (1 if isinstance(x, Tracer) else 2),
        ),
        "jit",
    ),
    "L of no finite value": (
        Wrong(lambda x, b: jnp.sum(x) * 0 + jnp.inf, lambda x, b: x, half_square),
        "finite",
    ),
    "a batch that leaks": (
        Wrong(lambda x, b: _sum_of_squares(x) / 2, lambda x, b: x, half_square),
        "vmap",
    ),
    "a parameter without gradient": (
        Wrong(lambda x, b: log_cosh(x, jax.lax.stop_gradient(b))),
        "gradients",
    ),
    "a parameter whose gradient is NaN": (
        Wrong(lambda x, b: log_cosh(x, b) + jnp.sqrt(b - b) * jnp.sum(x)),
        "gradients",
    ),
}


BIAS = jnp.array([0.5, -1.0, 0.0, 2.0, 0.3])
LAYER = hl.TanhLayer(5, beta=2.0, tau=0.5, bias=BIAS)


class WrongModel(hl.AbstractEnergyModel):
    """A layer whose methods are replaced by functions of the layer and x."""

    layer: hl.Layer
    replaced: dict
    tau: jax.Array

    def __init__(self, layer=LAYER, tau=0.5, **replaced):
        self.layer, self.tau = layer, jnp.asarray(tau)
        self.replaced = {name: jax.tree_util.Partial(fn) for name, fn in replaced.items()}

    def _get(self, name, x):
        if name in self.replaced:
            return self.replaced[name](self.layer, x)
        return getattr(self.layer, name)(x)

    def energy(self, x):
        return self._get("energy", x)

    def activations(self, x):
        return self._get("activations", x)

    def dEdg(self, x):
        return self._get("dEdg", x)


class Slow(hl.AbstractEnergyModel):
    """Identity units that ignore their time constants."""

    layers: dict

    def __init__(self, layers):
        self.layers = layers

    @property
    def tau(self):
        return jnp.ones(())

    def energy(self, x):
        return self.layers["a"].energy(x)

    def activations(self, x):
        return x

    def dEdg(self, x):
        return x


@jax.custom_jvp
def _legendre(g, x, value):
    return jnp.sum(g * x, axis=-1) - value


@_legendre.defjvp
def _(primals, tangents):
    # Without the tangent of the value, the slope is H x + g instead of H u.
    (g, x, value), (dg, dx, _) = primals, tangents
    return _legendre(g, x, value), jnp.sum(g * dx + x * dg, axis=-1)


W = jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.5], [0.0, 0.5, 0.0]])
CONCAVE = hl.Layer(Wrong(lambda x, b: -log_cosh(x, b)), 5)

# The model, the law, and what the assertion needs besides a state.
MODELS = {
    "x where x − b belongs, in u": (WrongModel(dEdg=lambda layer, x: x), "drive", {}),
    "x where x − b belongs, in E": (
        WrongModel(
            energy=lambda layer, x: layer.energy(x) + jnp.sum(layer.g(x) * BIAS, -1),
            dEdg=lambda layer, x: x,
        ),
        "bounded",
        {"bound": LAYER.energy_bound()},
    ),
    "a batch's energy summed up": (
        WrongModel(energy=lambda layer, x: jnp.sum(layer.energy(x))),
        "batch",
        {"bound": 0.0},
    ),
    "a batch that shares its mean": (
        WrongModel(energy=lambda layer, x: layer.energy(x) + jnp.mean(x) ** 2),
        "batch",
        {"bound": 0.0},
    ),
    "a batch that has its first sample's energy": (
        WrongModel(
            energy=lambda layer, x: layer.energy(x[(0,) * (x.ndim - 1)]) + jnp.zeros(x.shape[:-1])
        ),
        "batch",
        {"bound": 0.0},
    ),
    "u of one axis less": (
        WrongModel(dEdg=lambda layer, x: jnp.sum(x - BIAS, axis=-1)),
        "batch",
        {"bound": 0.0},
    ),
    "τ ignored": (Slow({"a": hl.IdentityLayer(5, tau=2.0)}), "time constants", {}),
    "τ in the drive": (WrongModel(dEdg=lambda layer, x: (x - BIAS) / layer.tau), "drive", {}),
    "weights that are not symmetric": (
        WrongModel(
            hl.IdentityLayer(3),
            energy=lambda layer, x: layer.energy(x) + jnp.einsum("...i,ij,...j->...", x, W, x) / 2,
            dEdg=lambda layer, x: x + x @ W,
        ),
        "drive",
        {},
    ),
    "a synapse counted twice": (
        WrongModel(
            hl.IdentityLayer(3),
            energy=lambda layer, x: layer.energy(x) + jnp.sum(x[..., :-1] * x[..., 1:], -1) / 2,
            dEdg=lambda layer, x: x + jnp.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)]),
        ),
        "drive",
        {},
    ),
    "a Legendre transform with g for a gradient": (
        WrongModel(
            energy=lambda layer, x: _legendre(
                layer.g(x), x - BIAS, jnp.sum(jnp.log(jnp.cosh(2 * (x - BIAS))) / 2, axis=-1)
            )
        ),
        "slope",
        {},
    ),
    "a network without a bound": (
        WrongModel(
            hl.IdentityLayer(3),
            energy=lambda layer, x: layer.energy(x) - 2 * x[..., 0] * x[..., 1],
            dEdg=lambda layer, x: x - 2 * x[..., [1, 0, 2]] * jnp.array([1.0, 1.0, 0.0]),
        ),
        "bounded",
        {"bound": 0.0},
    ),
    "a bound that is too high": (hl.SoftmaxLayer(5), "bounded", {"bound": 0.0}),
    "NaN at its bias": (
        WrongModel(energy=lambda layer, x: layer.energy(x) * (x[..., 0] / x[..., 0])),
        "finite",
        {"bound": 0.0},
    ),
    "units uphill": (CONCAVE, "dissipation", {"flow": "activation"}),
    "steps that are too long": (
        LAYER,
        "descent",
        {
            "flow": "activation",
            "t1": 30.0,
            "dt0": 1.5,
            "solver": diffrax.Euler(),
            "stepsize_controller": diffrax.ConstantStepSize(),
        },
    ),
    "a bias without gradient": (
        WrongModel(dEdg=lambda layer, x: x - jax.lax.stop_gradient(layer.bias)),
        "gradients",
        {},
    ),
}
