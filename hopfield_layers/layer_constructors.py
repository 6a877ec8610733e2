"""Constructors of layers from those of Lagrangians, and one for each of the library's own."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypedDict, Unpack

from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from . import lagrangians
from ._conversion import ShapeLike
from .lagrangians.base import AbstractWideLagrangian
from .layers import Layer


_LAYER_ARGUMENTS = """**Arguments of the layer:**

- `shape`: the shape of the state, a tuple of sizes or one size.
- `tau`: the time constant τ > 0, in the units of t.
- `use_bias`: whether there is a bias b; then x − b stands for x above.
- `name`: a name for the layer, of no effect.
- `bias`: the bias b. By default zeros.
- `key`: a key of `jax.random`, to draw the bias from N(0, 0.02²).

**Returns:**

A [`hopfield_layers.Layer`][]."""


def make_layer(
    lagrangian_factory: Callable[..., Any], name: str | None = None
) -> Callable[..., Layer]:
    """Makes a constructor of layers from a Lagrangian's.

    Its signature and documentation show the parameters of the layer and of the Lagrangian.

    **Arguments:**

    - `lagrangian_factory`: a Lagrangian's class, or a function that returns a Lagrangian. Numbers
        that it keeps in array fields, or in fields that are not static, are trained, saved and
        loaded; what a function closes over is part of the program.
    - `name`: the name of the constructor. By default that of the factory, without a leading `L`,
        followed by `Layer`.

    **Returns:**

    A function `(shape, tau=1.0, use_bias=False, name=None, *, <the factory's parameters>,
    bias=None, key=None)` that returns a [`hopfield_layers.Layer`][].

    **Raises:** `ValueError` if a parameter of the factory has the name of one of the layer's, or
    can't be given by name; `TypeError` for a Lagrangian instead of its constructor. The function
    raises `ValueError` if the factory keeps a float in a static field, which would not be restored
    when a saved layer is loaded.

    ```python
    >>> import inspect
    >>> import hopfield_layers as hl
    >>> TanhLayer = hl.make_layer(hl.LTanh)
    >>> TanhLayer(3, beta=2.0)
    Layer(lagrangian=LTanh(beta=2.0), shape=(3,), tau=1.0, bias=None, name=None)
    >>> list(inspect.signature(TanhLayer).parameters)
    ['shape', 'tau', 'use_bias', 'name', 'beta', 'min_beta', 'bias', 'key']

    ```
    """

    def constructor(shape, tau=1.0, use_bias=False, name=None, *, bias=None, key=None, **kwargs):
        lagrangian = lagrangian_factory(**kwargs)
        _check_saved(lagrangian)
        return Layer(lagrangian, shape, tau, use_bias, name=name, bias=bias, key=key)

    if isinstance(lagrangian_factory, lagrangians.AbstractLagrangian):
        raise TypeError(f"Expected a Lagrangian's constructor, got {lagrangian_factory!r}.")
    lagrangian_name = getattr(lagrangian_factory, "__name__", repr(lagrangian_factory))
    constructor.__name__ = name or lagrangian_name.removeprefix("L") + "Layer"
    constructor.__qualname__ = constructor.__name__
    constructor.__module__ = getattr(lagrangian_factory, "__module__", __name__)
    signature = _signature(constructor, lagrangian_factory)
    constructor.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    summary, _, _ = (inspect.getdoc(lagrangian_factory) or "").partition("```python")
    constructor.__doc__ = (
        f"A layer of `{lagrangian_name}`: {summary.strip()}\n\n{_LAYER_ARGUMENTS}\n"
    )
    return constructor


MakeLayer = make_layer  # the original system's name


def _signature(constructor: Callable, lagrangian_factory: Callable) -> inspect.Signature:
    """The layer's parameters with the Lagrangian's among them."""
    layer_parameters = list(inspect.signature(constructor).parameters.values())[:-1]
    parameters = list(inspect.signature(lagrangian_factory).parameters.values())
    nameless = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    if nameless:
        raise ValueError(f"{lagrangian_factory} can't be given {nameless} by name.")
    parameters = [
        p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty if p.annotation is Any else p.annotation)
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    ]
    taken = {p.name for p in layer_parameters} & {p.name for p in parameters}
    if taken:
        raise ValueError(
            f"{lagrangian_factory} has parameters of the layer's names: {sorted(taken)}."
        )
    return inspect.Signature(
        [*layer_parameters[:4], *parameters, *layer_parameters[4:]], return_annotation=Layer
    )


def _check_saved(lagrangian: object) -> None:
    """Raises an error if a parameter would not be restored when a saved layer is loaded.

    The library's own static fields (`axis`, `eps`, `min_beta`) are documented as constants.
    """
    if isinstance(lagrangian, AbstractWideLagrangian) or not dataclasses.is_dataclass(lagrangian):
        return
    for field in dataclasses.fields(lagrangian):
        value = getattr(lagrangian, field.name)
        if field.metadata.get("static", False) and isinstance(value, float):
            raise ValueError(
                f"{type(lagrangian).__name__}.{field.name} is static, so that a saved layer would "
                "not restore it: make it an array, with eqx.field(converter=jnp.asarray)."
            )


# The signatures of the constructors below, for type checkers: at run time `make_layer` makes the
# same ones from the Lagrangians.


class _Plain(TypedDict, total=False):
    bias: ArrayLike | None
    key: PRNGKeyArray | None


class _Repu(_Plain, total=False):
    n: ArrayLike


class _Power(_Plain, total=False):
    p: ArrayLike


class _Beta(_Plain, total=False):
    beta: ArrayLike
    min_beta: float


class _Scaled(_Beta, total=False):
    scale: ArrayLike


class _Row(_Beta, total=False):
    axis: int


class _Entmax(_Row, total=False):
    alpha: ArrayLike


class _Norm(_Plain, total=False):
    gamma: ArrayLike
    delta: ArrayLike
    axis: int
    eps: float


class _PlainLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Plain]
    ) -> Layer: ...


class _RepuLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Repu]
    ) -> Layer: ...


class _PowerLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Power]
    ) -> Layer: ...


class _BetaLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Beta]
    ) -> Layer: ...


class _SigmoidLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Scaled]
    ) -> Layer: ...


class _RowLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Row]
    ) -> Layer: ...


class _EntmaxLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Entmax]
    ) -> Layer: ...


class _NormLayer(Protocol):
    def __call__(
        self, shape: ShapeLike, tau: ArrayLike = 1, use_bias=False, name=None, **kw: Unpack[_Norm]
    ) -> Layer: ...


def _documented(lagrangian: type[lagrangians.AbstractLagrangian]) -> Callable[..., Layer]:
    """The constructor of layers of one of the library's own Lagrangians."""
    constructor = make_layer(lagrangian)
    constructor.__module__ = __name__
    constructor.__doc__ = f"""{constructor.__doc__}
```python
>>> import hopfield_layers as hl
>>> print(hl.{constructor.__name__}((2, 3), tau=0.5).init_state(bs=4).shape)
(4, 2, 3)

```
"""
    return constructor


IdentityLayer: _PlainLayer = _documented(lagrangians.LIdentity)
RepuLayer: _RepuLayer = _documented(lagrangians.LRepu)
ReluLayer: _PlainLayer = _documented(lagrangians.LRelu)
PowerLayer: _PowerLayer = _documented(lagrangians.LPower)
ExpLayer: _BetaLayer = _documented(lagrangians.LExp)
RexpLayer: _BetaLayer = _documented(lagrangians.LRexp)
CoshLayer: _BetaLayer = _documented(lagrangians.LCosh)
TanhLayer: _BetaLayer = _documented(lagrangians.LTanh)
SigmoidLayer: _SigmoidLayer = _documented(lagrangians.LSigmoid)
SoftmaxLayer: _RowLayer = _documented(lagrangians.LSoftmax)
GhostmaxLayer: _RowLayer = _documented(lagrangians.LGhostmax)
SparsemaxLayer: _RowLayer = _documented(lagrangians.LSparsemax)
EntmaxLayer: _EntmaxLayer = _documented(lagrangians.LEntmax)
LayerNormLayer: _NormLayer = _documented(lagrangians.LLayerNorm)
SphericalNormLayer: _NormLayer = _documented(lagrangians.LSphericalNorm)
