"""An initial value problem: a flow and the states it starts from, sample by sample."""

import dataclasses
import functools as ft
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, PyTree

from .._conversion import as_float
from .._meshes import check_axes, check_axes_of_closures, is_on_mesh, on_each_device
from .._trees import entries
from ..model import AbstractEnergyModel, AnyArray, Flow, StateLike
from .flow import EnergyFlow
from .inputs import depends_on_time, Inputs, split_samples, values_on_grid, with_times_in
from .state_trees import Clamp, like_state, SPLITS


_T = TypeVar("_T")


def flat_jit(fn: Callable[..., _T]) -> Callable[..., _T]:
    """`equinox.filter_jit` of a function that is called with all its arguments by name.

    A call takes some 45 µs less. It waits for the result only if the argument `throw` is True.
    """
    names = tuple(inspect.signature(fn).parameters)

    @ft.partial(jax.jit, static_argnames="others")
    def compiled(arrays, others):
        check_axes(arrays, "the arguments")  # at trace time, as axes are part of the types
        leaves, structure = jax.tree.flatten(fn(*_joined(arrays, others)))
        return leaves, _Static(structure)

    def on_one_device(arrays, others, throw):
        try:
            leaves, structure = compiled(arrays, others)
            if throw:
                jax.block_until_ready(leaves)
        except jax.errors.JaxRuntimeError:
            # An error of Equinox in the model, which this raises with its own message.
            return eqx.filter_jit(fn)(*_joined(arrays, others))
        return structure.value.unflatten(leaves)

    @ft.wraps(fn)
    def call(**arguments):
        arrays, others = _separated([arguments[name] for name in names])
        check_axes((), "the arguments")  # under `shard_map` the function is traced without a mesh
        try:
            return on_each_device(on_one_device, arrays, others, arguments["throw"])
        except Exception as error:
            # The arguments were checked, but not the arrays that functions among them close over.
            # On explicit axes these cause errors that don't say so.
            try:
                check_axes_of_closures(arguments)
            except ValueError as explanation:
                error.add_note(str(explanation))
            raise

    return call


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A result of a compiled function that is no array."""

    value: Any


def _separated(tree: PyTree) -> tuple[list[AnyArray], tuple]:
    """The arrays of a tree, and all else of it, which is hashable."""
    leaves, structure = jax.tree.flatten(tree)
    others = tuple(None if eqx.is_array(x) else x for x in leaves)
    arrays = [x for x, other in zip(leaves, others, strict=True) if other is None]
    return arrays, (structure, others)


def _joined(arrays: Sequence[Array], others: tuple) -> PyTree:
    """The tree that `_separated` took apart. None is no leaf, and marks an array."""
    (structure, leaves), rest = others, iter(arrays)
    return structure.unflatten([next(rest) if x is None else x for x in leaves])


class ProblemArguments(NamedTuple):
    """The arguments of `solve` and `relax` that define x(t)."""

    model: AbstractEnergyModel
    x0: StateLike
    flow: Flow
    clamp: StateLike | Clamp | None
    inputs: Inputs

    def converted(self) -> "ProblemArguments":
        """The arguments with their numbers as arrays, so that others don't compile anew, and the
        clamp checked while its values are known.
        """
        x0, clamp = _as_arrays(self.x0), self.clamp
        inputs: Any = self.inputs
        if clamp is None and inputs is None:
            return self._replace(x0=x0)
        # `flat_jit` checks the axes of all arguments, but these are used here already.
        check_axes((clamp, inputs), "the arguments")
        if depends_on_time(inputs):
            dtype = solve_dtype(x0)
            inputs = with_times_in(with_array_floats(inputs, dtype), dtype)
        else:
            inputs = _as_arrays(inputs)
        if clamp is not None:
            with jax.ensure_compile_time_eval():
                masks = like_state(x0, clamp, "clamp")
            EnergyFlow(self.model, self.flow)  # raises the errors of these
            clamp = Clamp(self.model, self.flow, masks, raises=False)
        return self._replace(x0=x0, clamp=clamp, inputs=inputs)


class InitialValueProblem(eqx.Module):
    """A flow and an x0 that fit each other, which is checked when a program is traced.

    The arrays of x0 have one dtype, float32 or float64. The clamp, and the inputs unless they
    change in time, have the shapes of x0. The batch axes are those of the model's energy.
    """

    field: EnergyFlow
    x0: PyTree[Array]
    batch: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, arguments: ProblemArguments):
        model, x0, flow, clamp, _ = arguments
        inputs: Any = arguments.inputs
        self.dtype = solve_dtype(x0)
        self.x0 = jax.tree.map(lambda x: as_float(x).astype(self.dtype), x0)
        if (ys := values_on_grid(inputs)) is not None:
            jax.eval_shape(lambda: like_state(self.x0, entries(ys, 0), "inputs"))
        elif inputs is not None and not depends_on_time(inputs):
            inputs = like_state(self.x0, inputs, "inputs")
        self.field = EnergyFlow(model, flow, clamp, inputs)
        structure = jax.tree.structure(x0)
        try:
            g = jax.tree.structure(jax.eval_shape(model.activations, self.x0))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Expected a state of the model, got {structure}: {error}") from error
        if g != structure:
            raise ValueError(f"Expected a state of the structure {g}, got {structure}.")
        self.batch = jax.eval_shape(model.energy, self.x0).shape

    def map(
        self, solve: Callable[..., _T], *others: PyTree[Array], batch_size: int | None = None
    ) -> _T:
        """`solve(field, x0, *others)` of every sample; the batch axes come first in every array.

        `batch_size` samples are solved at a time, by default all.
        """
        field = self.field
        inputs, shared = split_samples(field.inputs, self.x0, self.batch)
        arguments = (field.clamp, inputs, self.x0, *others)

        def sample(clamp, inputs, x0, *others):
            inputs = shared if inputs is None else inputs
            if shared is not None and inputs is not shared:
                inputs = eqx.combine(inputs, shared)
            return solve(EnergyFlow(field.model, field.flow, clamp, inputs), x0, *others)

        def with_arrays(*arguments):
            # As `jax.vmap` does, so that every number of a result has the batch axes.
            return jax.tree.map(
                lambda x: jnp.asarray(x) if isinstance(x, int | float) else x, sample(*arguments)
            )

        def zeros(x):
            return jnp.zeros(self.batch + x.shape, x.dtype) if hasattr(x, "shape") else x

        num_axes = len(self.batch)
        if 0 in self.batch:
            one = jax.tree.map(lambda x: jnp.zeros(x.shape[num_axes:], x.dtype), arguments)
            return jax.tree.map(zeros, eqx.filter_eval_shape(with_arrays, *one))
        if num_axes == 0:
            return sample(*arguments)
        if batch_size is None and (num_axes == 1 or is_on_mesh(arguments)):
            mapped = with_arrays
            for _ in self.batch:
                mapped = eqx.filter_vmap(mapped)
            return mapped(*arguments)
        size = math.prod(self.batch)
        arguments = jax.tree.map(lambda x: x.reshape(size, *x.shape[num_axes:]), arguments)
        # `jax.lax.map` can't divide arrays without entries.
        if batch_size is None or any(x.size == 0 for x in jax.tree.leaves(arguments)):
            results = eqx.filter_vmap(with_arrays)(*arguments)
        else:
            results = _map_sequentially(with_arrays, arguments, batch_size)
        return jax.tree.map(
            lambda x: x.reshape(*self.batch, *x.shape[1:]) if eqx.is_array(x) else x, results
        )


def _map_sequentially(fn: Callable[..., _T], arguments: tuple, batch_size: int) -> _T:
    """`jax.lax.map` for results that are not only arrays."""
    static = []

    def arrays_of(arguments):
        arrays, others = eqx.partition(fn(*arguments), eqx.is_array)
        static.append(others)
        return arrays

    arrays = jax.lax.map(arrays_of, arguments, batch_size=batch_size)
    return eqx.combine(arrays, static[0])


def _as_arrays(tree: StateLike | None) -> PyTree[AnyArray]:
    leaves, structure = jax.tree.flatten(tree)  # `jax.tree.map` takes several times as long
    return structure.unflatten([x if isinstance(x, AnyArray) else as_float(x) for x in leaves])


def solve_dtype(x0: PyTree[AnyArray]) -> np.dtype:
    """float64 if x64 is enabled and an array has it or is of integers, and float32 otherwise."""
    dtypes = frozenset(x.dtype for x in jax.tree.leaves(x0))
    if not dtypes:
        raise ValueError(f"Expected a state of one array at least, got {x0}.")
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return _dtype_with_x64(dtypes) if x64 else np.dtype(np.float32)


@ft.cache
def _dtype_with_x64(dtypes: frozenset[np.dtype]) -> np.dtype:
    """`solve_dtype` if x64 is enabled, cached because `issubdtype` takes long."""
    narrow = (jnp.issubdtype(dtype, jnp.inexact) and dtype != np.float64 for dtype in dtypes)
    return np.dtype(np.float32 if all(narrow) else np.float64)


def start_errors(problem: InitialValueProblem) -> dict[str, Bool[Array, ""]]:
    """The errors of x0 and the clamp, and whether they are there."""
    not_finite = jnp.array([jnp.any(~jnp.isfinite(x)) for x in jax.tree.leaves(problem.x0)])
    errors = {"Expected a finite x0, got NaN or infinite entries.": jnp.any(not_finite)}
    field = problem.field
    if field.clamp is not None:
        errors[SPLITS] = field.clamp.splits(field.model, field.flow)
    return errors


def raise_if_not_finite(x0: StateLike) -> None:
    """Raises an error with the numbers if x0 is known not to be finite."""
    for x in jax.tree.leaves(x0):
        if not isinstance(x, Tracer) and (count := int(jnp.sum(~jnp.isfinite(x)))) > 0:
            raise ValueError(
                f"Expected a finite x0, got {count} NaN or infinite of {jnp.size(x)} entries."
            ) from None


def as_scalar(number: ArrayLike, dtype: DTypeLike, name: str) -> Any:
    """A number as an array of NumPy; an array of JAX unchanged."""
    scalar: Any = number
    if isinstance(number, Array):
        check_axes(number, name)
    else:
        # NumPy takes None for NaN, and strings for the numbers that they spell.
        if number is None or isinstance(number, str):
            raise TypeError(f"Expected {name} to be a number, got {number!r}.")
        scalar = np.asarray(number, dtype)
    if scalar.shape != ():
        raise ValueError(f"Expected {name} to be a number, got shape {scalar.shape}.")
    return scalar


def in_dtype(tree: _T, dtype: DTypeLike) -> _T:
    """The tree with its floating arrays in this dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def with_array_floats(options: PyTree[Any], dtype: DTypeLike) -> PyTree[Any]:
    """Options with their floats as arrays, so that other tolerances don't compile anew."""
    leaves, structure = jax.tree.flatten(options)
    floats = (float, np.floating)
    return structure.unflatten(
        [np.asarray(x, dtype) if isinstance(x, floats) else x for x in leaves]
    )
