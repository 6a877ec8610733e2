"""Functions on meshes of devices.

Under `jax.shard_map` the type of an array tells over which axes of the mesh its values vary. The
loops of diffrax, equinox and lineax begin with constants, which vary over none of them. The types
of these then change in the loop, which is an error. `on_each_device` therefore evaluates a function
on arrays whose types contain no mesh. Its derivatives are right because the arguments are first
cast to varying ones: the transpose of this cast sums the cotangents of values that devices share.
"""

import functools as ft
import inspect
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


_T = TypeVar("_T")
_NO_MESH = AbstractMesh((), ())


def is_under_shard_map() -> bool:
    """Whether the function that is being traced runs on each device by itself."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def is_on_mesh(tree: PyTree[Array]) -> bool:
    """Whether an array may be divided among several devices."""
    return any(_mesh_of(x).size > 1 for x in jax.tree.leaves(tree))


def check_axes(tree: PyTree, name: str) -> None:
    """Raises a `ValueError` for arrays on a mesh whose axes are part of their types."""
    meshes = {_mesh_of(x) for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)}
    for mesh in (jax.sharding.get_abstract_mesh(), *meshes):
        if AxisType.Explicit in mesh.axis_types:
            raise ValueError(
                f"Expected {name} on a mesh with automatic axes, got explicit ones. Make the mesh "
                "by jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n), or call this "
                "in a function that is wrapped by jax.sharding.auto_axes."
            )


def check_axes_of_closures(tree: PyTree) -> None:
    """`check_axes` of the arrays that functions in the tree close over or find in their module."""
    for fn in filter(inspect.isfunction, jax.tree.leaves(tree)):
        try:
            variables = inspect.getclosurevars(fn)
            arrays = jax.tree.leaves((variables.nonlocals, variables.globals))
        except ValueError:  # a variable without a value, or a dict whose keys can't be sorted
            continue
        check_axes(arrays, f"the arrays in {fn.__qualname__}")


def _mesh_of(x: Array) -> Mesh | AbstractMesh:
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    return getattr(sharding, "mesh", _NO_MESH)


def on_each_device(fn: Callable[..., _T], *arguments: object) -> _T:
    """`fn(*arguments)`, which under `shard_map` runs as on one device, without communication."""
    return _without_mesh(fn, *arguments) if is_under_shard_map() else fn(*arguments)


# Outside of jit each operation would give its result the mesh back.
@eqx.filter_jit
def _without_mesh(fn: Callable[..., _T], *arguments: object) -> _T:
    arrays, static = eqx.partition(arguments, eqx.is_array)
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(arrays)))

    def hide(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying_axes(x)))
        x = jax.lax.pcast(x, missing, to="varying") if missing else x
        return _set_axes_p.bind(x, before=axes, after=None)

    hidden = jax.tree.map(hide, arrays)
    # lineax compares shapes together with their meshes, and only some of the shapes have one.
    with jax.sharding.use_abstract_mesh(_NO_MESH):
        results = fn(*eqx.combine(hidden, static))
    arrays, static = eqx.partition(results, eqx.is_array)
    shown = jax.tree.map(ft.partial(_set_axes_p.bind, before=None, after=axes), arrays)
    return eqx.combine(shown, static)


def _varying_axes(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _with_axes(x: ShapedArray, *, before: frozenset | None, after: frozenset | None) -> ShapedArray:
    """The type of x if it varies over the axes `after` of the mesh; without a mesh for None."""
    if after is None:
        with jax.sharding.use_abstract_mesh(_NO_MESH):
            return ShapedArray(x.shape, x.dtype, x.weak_type)
    mesh = jax.sharding.get_abstract_mesh()
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * x.ndim))
    shown = ShapedArray(x.shape, x.dtype, x.weak_type, sharding=sharding)
    return shown.update(manual_axis_type=shown.manual_axis_type.update(varying=after))


def _transpose(cotangent, x, *, before, after):
    return [_set_axes_p.bind(cotangent, before=after, after=before)]


_set_axes_p = Primitive("set_axes")
_set_axes_p.def_impl(lambda x, **_: x)
_set_axes_p.def_abstract_eval(_with_axes)
mlir.register_lowering(_set_axes_p, lambda ctx, x, **_: [x])
ad.deflinear2(_set_axes_p, _transpose)
batching.defvectorized(_set_axes_p)
