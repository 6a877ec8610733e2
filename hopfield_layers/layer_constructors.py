"""`make_layer`, and the constructors that it makes of the library's own Lagrangians."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, cast, ParamSpec, Protocol, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from . import lagrangians
from ._conversion import ShapeLike
from .lagrangians.base import AbstractWideLagrangian
from .layers import Layer


_P = ParamSpec("_P")


@runtime_checkable
class LayerConstructor(Protocol[_P]):
    """What `make_layer` returns, for type checkers: the Lagrangian's parameters are keywords."""

    __name__: str

    def __call__(
        self,
        shape: ShapeLike,
        tau: ArrayLike = 1.0,
        use_bias: bool = False,
        name: str | None = None,
        bias: ArrayLike | None = None,
        key: PRNGKeyArray | None = None,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Layer: ...


def make_layer(
    lagrangian_factory: Callable[_P, Callable[..., ArrayLike]], name: str | None = None
) -> LayerConstructor[_P]:
    """Makes a constructor of layers from a Lagrangian's constructor, with the parameters of both.

    **Arguments:**

    - `lagrangian_factory`: a Lagrangian's class, or a function that returns a Lagrangian. Numbers
        in fields that are not static are trained, saved and loaded; values that a function closes
        over are constants of the program.
    - `name`: the constructor's name, by default that of the factory without a leading `L`, followed
        by `Layer`.

    **Returns:** a function `(shape, tau=1.0, use_bias=False, name=None, *, <the factory's
    parameters>, bias=None, key=None)` that returns a [`hopfield_layers.Layer`][].

    **Raises:** `ValueError` if a parameter of the factory has the name of a parameter of the layer,
    or can't be given by name; `TypeError` for a Lagrangian instead of its constructor. The returned
    function raises `ValueError` for a float in a static field, because loading a saved layer would
    not restore it.

    Examples:
        >>> TanhLayer = hl.make_layer(hl.LTanh)
        >>> TanhLayer(3, beta=2.0)
        Layer(lagrangian=LTanh(beta=2.0), shape=(3,), tau=1.0, bias=None, name=None)
    """

    def constructor(shape, tau=1.0, use_bias=False, name=None, *, bias=None, key=None, **kwargs):
        lagrangian = cast(Callable[..., Any], lagrangian_factory)(**kwargs)
        _check_saved(lagrangian)
        return Layer(lagrangian, shape, tau, use_bias, name=name, bias=bias, key=key)

    if isinstance(lagrangian_factory, lagrangians.AbstractLagrangian):
        raise TypeError(f"Expected a Lagrangian's constructor, got {lagrangian_factory!r}.")
    lagrangian_name = getattr(lagrangian_factory, "__name__", repr(lagrangian_factory))
    layer_name = name or lagrangian_name.removeprefix("L") + "Layer"
    constructor.__qualname__ = constructor.__name__ = layer_name
    constructor.__module__ = getattr(lagrangian_factory, "__module__", __name__)
    signature = _signature(constructor, lagrangian_factory)
    constructor.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    summary, _, _ = (inspect.getdoc(lagrangian_factory) or "").partition("Examples:")
    _, start, end = (inspect.getdoc(Layer) or "").partition("- `shape`:")
    arguments = "**Arguments of the layer:**\n\n" + start + end.partition("**Raises:**")[0]
    constructor.__doc__ = (
        f"A layer of `{lagrangian_name}`, with x − b for x: {summary.strip()}\n\n{arguments}"
        "**Returns:** a [`hopfield_layers.Layer`][].\n"
    )
    return cast(LayerConstructor[_P], constructor)


MakeLayer = make_layer  # its name in HAMUX 0.1


def _signature(constructor: Callable, lagrangian_factory: Callable) -> inspect.Signature:
    """The layer's parameters with the Lagrangian's among them."""
    *layer, _ = inspect.signature(constructor).parameters.values()
    parameters = inspect.signature(lagrangian_factory).parameters.values()
    nameless = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    if nameless:
        raise ValueError(f"{lagrangian_factory} can't be given {nameless} by name.")
    keywords = [
        p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty if p.annotation is Any else p.annotation)
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    ]
    taken = sorted({p.name for p in layer} & {p.name for p in keywords})
    if taken:
        raise ValueError(f"{lagrangian_factory} has parameters that the layer also has: {taken}.")
    return inspect.Signature([*layer[:4], *keywords, *layer[4:]], return_annotation=Layer)


def _check_saved(lagrangian: object) -> None:
    """Raises an error if a parameter would not be restored when a saved layer is loaded."""
    if isinstance(lagrangian, AbstractWideLagrangian) or not dataclasses.is_dataclass(lagrangian):
        return  # the library's own static fields are documented as constants
    for field in dataclasses.fields(lagrangian):
        value = getattr(lagrangian, field.name)
        if field.metadata.get("static", False) and isinstance(value, float):
            raise ValueError(
                f"{type(lagrangian).__name__}.{field.name} is static, so that a saved layer would "
                "not restore it: make it an array, with eqx.field(converter=jnp.asarray)."
            )


def _documented(lagrangian: Callable[_P, lagrangians.AbstractLagrangian]) -> LayerConstructor[_P]:
    """The constructor of layers of one of the library's own Lagrangians."""
    constructor = make_layer(lagrangian)
    constructor.__module__ = __name__
    constructor.__doc__ = f"""{constructor.__doc__}
Examples:
    >>> print(hl.{constructor.__name__}((2, 3), tau=0.5).init_state(bs=4).shape)
    (4, 2, 3)
"""
    return constructor


IdentityLayer = _documented(lagrangians.LIdentity)
RepuLayer = _documented(lagrangians.LRepu)
ReluLayer = _documented(lagrangians.LRelu)
PowerLayer = _documented(lagrangians.LPower)
ExpLayer = _documented(lagrangians.LExp)
RexpLayer = _documented(lagrangians.LRexp)
CoshLayer = _documented(lagrangians.LCosh)
TanhLayer = _documented(lagrangians.LTanh)
SigmoidLayer = _documented(lagrangians.LSigmoid)
SoftmaxLayer = _documented(lagrangians.LSoftmax)
GhostmaxLayer = _documented(lagrangians.LGhostmax)
SparsemaxLayer = _documented(lagrangians.LSparsemax)
EntmaxLayer = _documented(lagrangians.LEntmax)
LayerNormLayer = _documented(lagrangians.LLayerNorm)
SphericalNormLayer = _documented(lagrangians.LSphericalNorm)
