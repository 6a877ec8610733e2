"""Layers: their constructors, shapes, biases and errors."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl


CONSTRUCTORS = {
    name: getattr(hl, name) for name in hl.__all__ if name.endswith("Layer") and name != "Layer"
}
CONSTRUCTORS.pop("MakeLayer")


def test_there_is_a_layer_for_every_lagrangian():
    lagrangians = {type(make(3).lagrangian).__name__ for make in CONSTRUCTORS.values()}
    exported = {name for name in hl.__all__ if name[0] == "L" and name[1].isupper()}
    assert lagrangians == exported
    assert len(exported) == 15


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_signature_and_help_show_the_lagrangians_parameters(name):
    make = CONSTRUCTORS[name]
    parameters = inspect.signature(make).parameters
    lagrangian = type(make(3).lagrangian)
    expected = inspect.signature(lagrangian).parameters
    assert list(parameters)[:4] == ["shape", "tau", "use_bias", "name"]
    assert list(parameters)[4:-2] == list(expected)
    for parameter in expected.values():
        assert parameters[parameter.name].default == parameter.default
        assert f"- `{parameter.name}`: " in make.__doc__
    assert make.__name__ == name
    assert f"hl.{name}(" in make.__doc__
    changed = {p: 3.0 for p in expected if p in ("beta", "n", "p", "gamma", "alpha")}
    layer = make((3, 4), 0.5, True, "a name", **changed)
    assert (layer.tau, layer.name, layer.shape, layer.use_bias) == (0.5, "a name", (3, 4), True)
    for parameter, value in changed.items():
        assert getattr(layer.lagrangian, parameter) == value


def test_make_layer_of_a_users_factory():
    def huber(width: float = 1.0):
        """The pseudo-Huber Lagrangian.

        - `width`: the |x| at which it changes from a parabola to a cone.
        """
        return hl.as_lagrangian(lambda x: jnp.sum(jnp.sqrt(width**2 + x**2)))

    HuberLayer = hl.MakeLayer(huber)
    assert HuberLayer.__name__ == "huberLayer"
    assert hl.make_layer(huber, "HuberLayer").__name__ == "HuberLayer"
    assert "at which it changes" in (HuberLayer.__doc__ or "")
    np.testing.assert_allclose(HuberLayer(4, width=2.0).energy_bound(), -8.0)


@pytest.mark.usefixtures("unchecked_types")
def test_make_layer_of_a_wrong_factory():
    with pytest.raises(ValueError, match=r"that the layer also has: \['tau'\]"):
        hl.make_layer(lambda tau: hl.LTanh())
    with pytest.raises(ValueError, match=r"can't be given \['beta'\] by name"):
        hl.make_layer(lambda *beta: hl.LTanh(*beta))  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="constructor, got LTanh"):
        hl.make_layer(hl.LTanh())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="gamma"):
        hl.ExpLayer(3, gamma=1.0)  # pyright: ignore[reportCallIssue]


def test_the_originals_order_of_arguments():
    layer = hl.Layer(hl.LExp, (3,), 2.0, True, True, "exp", beta=5.0)
    assert isinstance(layer.lagrangian, hl.LExp)
    assert (layer.lagrangian.beta, layer.tau, layer.name) == (5.0, 2.0, "exp")


@pytest.mark.usefixtures("unchecked_types")
def test_bad_lagrangians():
    with pytest.raises(TypeError, match=r"\['beta'\]"):
        hl.Layer(hl.LExp(), 3, beta=5.0)
    with pytest.raises(TypeError, match="the class LExp"):
        hl.Layer(hl.LExp, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="convex callable, got 3"):
        hl.Layer(3, 3)  # pyright: ignore[reportArgumentType]


def test_repr_shows_the_numbers():
    layer = hl.Layer(hl.LExp(beta=5.0), (32, 32, 3), tau=0.1)
    text = repr(layer)
    assert "LExp(beta=5.0)" in text
    assert "shape=(32, 32, 3)" in text
    assert "tau=0.1" in text
    with jax.enable_x64(False):
        assert "tau=0.1," in repr(hl.Layer(hl.LTanh(), 3, tau=0.1))
    assert "bias=f64[3]" in repr(hl.TanhLayer(3, use_bias=True))
    assert eqx.filter_jit(lambda layer: repr(layer))(hl.TanhLayer(3)).count("f64[]") == 2


def test_shapes():
    assert hl.TanhLayer(3).shape == hl.TanhLayer((3,)).shape == hl.TanhLayer([3]).shape == (3,)
    assert hl.TanhLayer(np.int32(3)).shape == (3,)
    assert hl.TanhLayer(()).energy(0.0).shape == ()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("shape", [-1, (3, -1), 2.0, (2, 2.5), "3", None, True])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="integers ≥ 0"):
        hl.TanhLayer(shape)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_nan_in_gives_nan_out(name):
    layer = CONSTRUCTORS[name](3)
    x = jnp.array([1.0, jnp.nan, -2.0])
    assert jnp.isnan(layer.energy(x))
    assert jnp.isnan(layer.activation(x)[1])


@pytest.mark.parametrize("make", [hl.LayerNormLayer, hl.SphericalNormLayer, hl.SoftmaxLayer])
def test_no_rows(make):
    assert make((0, 3)).energy(jnp.zeros((0, 3))) == 0


def test_init_state():
    layer = hl.TanhLayer((2, 3))
    assert jnp.array_equal(layer.init_state(), jnp.zeros((2, 3)))
    assert jnp.array_equal(layer.init_state(4), jnp.zeros((4, 2, 3)))
    drawn = layer.init_state(bs=1000, rng=jr.key(0))
    assert drawn.shape == (1000, 2, 3)
    assert abs(jnp.mean(drawn)) < 0.05
    assert abs(jnp.std(drawn) - 1) < 0.05
    with pytest.raises(ValueError, match="-1"):
        layer.init_state(-1)


def test_bias():
    assert hl.TanhLayer(3).bias is None
    zeros = hl.TanhLayer(3, use_bias=True).bias
    drawn = hl.TanhLayer(4000, use_bias=True, key=jr.key(0)).bias
    assert zeros is not None
    assert drawn is not None
    assert jnp.array_equal(zeros, jnp.zeros(3))
    assert abs(jnp.std(drawn) / 0.02 - 1) < 0.05
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4,\)"):
        hl.TanhLayer(3, bias=jnp.zeros(4))
    with pytest.raises(ValueError, match="bias must be finite"):
        hl.TanhLayer(3, bias=jnp.array([0.0, jnp.nan, 0.0]))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_bias_shifts_everything_alike(name):
    bias, x = jr.normal(jr.key(0), (2, 3, 4))
    plain, shifted = CONSTRUCTORS[name]((3, 4)), CONSTRUCTORS[name]((3, 4), bias=bias)
    z = x - bias

    @jax.jit
    def everything(layer, x):
        methods = ("energy", "__call__", "activation", "g", "activations", "dEdg")
        results = [getattr(layer, method)(x) for method in methods]
        return *results, *(hl.EnergyFlow(layer, flow)(0.0, x) for flow in ("state", "activation"))

    for actual, expected in zip(everything(shifted, x), everything(plain, z), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-14)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_batches(name):
    @jax.jit
    def everything(layer, x):
        flow = hl.EnergyFlow(layer)(0.0, x)
        return layer.energy(x), (layer.activation(x), layer.dEdg(x), flow)

    layer = CONSTRUCTORS[name]((3, 4), bias=jnp.ones((3, 4)))
    for batch in [(), (0,), (2, 3), (2, 0, 3)]:
        x = jax.ShapeDtypeStruct((*batch, 3, 4), float)
        energy, fields = jax.eval_shape(everything, layer, x)
        assert energy.shape == batch
        assert all(field.shape == x.shape for field in fields)
    x = jr.normal(jr.key(1), (2, 2, 3, 4))
    energy, fields = everything(layer, x)
    for i in np.ndindex(2, 2):
        alone, fields_alone = everything(layer, x[i])
        np.testing.assert_allclose(energy[i], alone, rtol=1e-14)
        for field, field_alone in zip(fields, fields_alone, strict=True):
            np.testing.assert_allclose(field[i], field_alone, rtol=1e-14)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_states():
    layer = hl.SoftmaxLayer((3, 4))
    for method in (layer.energy, layer.activation, layer.dEdg, layer.g, layer):
        for shape in [(4,), (), (3,), (4, 3), (3, 4, 1)]:
            with pytest.raises(ValueError, match=r"\(\*batch, 3, 4\), got \("):
                method(jnp.zeros(shape))
        with pytest.raises(TypeError, match="real numbers, got complex"):
            method(jnp.zeros((3, 4), complex))


def test_states_of_integers_and_booleans():
    np.testing.assert_allclose(hl.IdentityLayer(2).energy(jnp.array([1, 2])), 2.5)
    assert hl.IdentityLayer(2).activation(np.array([True, False])).dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_results_have_the_states_dtype(name, dtype):
    layer = CONSTRUCTORS[name](4, bias=jnp.ones(4))
    for method in (layer.energy, layer.activation, layer.dEdg, layer.lagrangian):
        assert jax.eval_shape(method, jnp.ones(4, dtype)).dtype == dtype


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hl.TanhLayer(3, tau=0.0), "tau must be finite and greater than 0, got 0"),
        (lambda: hl.TanhLayer(3, tau=-1), "tau .* got -1"),
        (lambda: hl.TanhLayer(3, tau=jnp.nan), "tau .* got nan"),
        (lambda: hl.TanhLayer(3, tau=jnp.inf), "tau .* got inf"),
        (lambda: hl.TanhLayer(1, tau=jnp.ones((3, 1))), r"tau has shape \(3, 1\), .* \(1,\)"),
        (lambda: hl.LEntmax(alpha=5.0), "alpha must be at most 4"),
        (lambda: hl.LRepu(n=1), "LRepu: n must be finite and greater than 1, got 1"),
        (lambda: hl.LPower(p=0.5), "LPower: p"),
        (lambda: hl.LEntmax(alpha=1.0), "LEntmax: alpha"),
        (lambda: hl.LSigmoid(scale=0.0), "LSigmoid: scale"),
        (lambda: hl.LLayerNorm(gamma=-1.0), "LLayerNorm: gamma"),
        (lambda: hl.LSphericalNorm(gamma=0.0), "LSphericalNorm: gamma"),
        (lambda: hl.LSphericalNorm(eps=-1e-5), "eps must not be negative"),
        (lambda: hl.LLayerNorm(delta=jnp.inf), "LLayerNorm: delta"),
        (lambda: hl.LExp(beta=jnp.nan), "LExp: beta"),
        (lambda: hl.LExp(min_beta=0.0), "LExp: min_beta"),
        (lambda: hl.SoftmaxLayer(3, axis=1), "LSoftmax acts along axis 1"),
        (lambda: hl.LayerNormLayer((), axis=0), "LLayerNorm acts along axis 0"),
        (lambda: hl.SoftmaxLayer((3, 0)), "at least one unit"),
        (lambda: hl.EntmaxLayer(0), "at least one unit"),
        (lambda: hl.LayerNormLayer(3, delta=jnp.ones(4)), r"delta has shape \(4,\)"),
        (lambda: hl.ExpLayer(3, beta=jnp.ones(3)), r"scalar, got shape \(3,\): use jax.vmap"),
        (lambda: hl.Layer(lambda x: x**2, 3), "returns a real scalar"),
        (lambda: hl.Layer(lambda x: jnp.sum(x) > 0, 3), "returns a real scalar"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked_types")
def test_complex_parameters():
    with pytest.raises(TypeError, match="real numbers"):
        hl.LExp(beta=1j)


def test_a_callable_as_lagrangian():
    class Quadratic(eqx.Module):
        weights: jax.Array

        def __call__(self, x):
            return jnp.sum(self.weights * x**2) / 2

    layer = hl.Layer(Quadratic(jnp.array([1.0, 2.0])), 2)
    x = jnp.array([3.0, -1.0])
    np.testing.assert_allclose(layer.activation(x), [3.0, -2.0])
    np.testing.assert_allclose(layer.energy(x), 5.5)
    gradient = jax.grad(lambda layer: layer.energy(x))(layer)  # a valid argument of JAX's own grad
    (by_weights,) = jax.tree.leaves(gradient.lagrangian)
    np.testing.assert_allclose(by_weights, [4.5, 0.5])
    assert hl.as_lagrangian(layer.lagrangian) is layer.lagrangian
    assert layer.lagrangian.coupled_axes(2) == (0, 1)
    plain = jax.jit(lambda layer, x: layer.energy(x))(hl.Layer(lambda x: jnp.sum(x**4), 2), x)
    np.testing.assert_allclose(plain, 3 * (81 + 1))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_coupled_axes_are_those_that_couple(name):
    if name in ("SoftmaxLayer", "LayerNormLayer"):
        lagrangian = CONSTRUCTORS[name]((2, 3), axis=0).lagrangian
    else:
        lagrangian = CONSTRUCTORS[name]((2, 3)).lagrangian
    x = jnp.array([[0.3, 0.1, 0.2], [0.5, 0.4, 0.6]])
    hessian = np.asarray(jax.jacfwd(lagrangian.activation)(x))
    coupled = tuple(
        axis
        for axis in (0, 1)
        if any(
            hessian[(*i, *j)] != 0
            for i in np.ndindex(2, 3)
            for j in np.ndindex(2, 3)
            if i[axis] != j[axis]
        )
    )
    assert lagrangian.coupled_axes(2) == coupled


def test_compiled_methods():
    layer, x = hl.TanhLayer(3), jnp.ones(3)
    np.testing.assert_allclose(eqx.filter_jit(layer.energy)(x), layer.energy(x))
    np.testing.assert_allclose(jax.jit(lambda layer, x: layer.energy(x))(layer, x), layer.energy(x))
