"""Functions that several devices evaluate on their parts of the arguments.

XLA divides a program among devices by the sharding rules of each operation. It can't infer that a
loop over the rows of an array may run on each device's rows separately, and would gather all rows.
This module declares which axes of the arguments may be split, and how the results are joined.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


MeshAxes = tuple[str, ...]


def partitioned(
    fn: Callable[..., list[Array]],
    join: Callable[[list[Array], list[MeshAxes]], list[Array]],
    axes: Iterable[tuple[str, ...]],
    result_axes: Iterable[tuple[str, ...]],
) -> Callable[..., list[Array]]:
    """`fn`, evaluated by each device on its own parts of the arguments.

    `axes` names the leading axes of each argument, and `result_axes` those of each result. Axes of
    the same name are split in the same way; axes without a name are not split. A result that lacks
    one of the split axes is only partial on each device: `join(parts, mesh_axes)` completes it by a
    reduction along these axes of the mesh.
    """
    axes, result_axes = list(axes), list(result_axes)

    def rule(mesh: Mesh, arguments: Sequence[Any], results: Sequence[Any]) -> tuple[str, dict]:
        whole = (f"whole{i}" for i in itertools.count())
        names = [
            [*known, *itertools.islice(whole, array.rank - len(known))]
            for array, known in zip([*arguments, *results], axes + result_axes, strict=True)
        ]
        others = {name for array in names for name in array if name.startswith("whole")}
        sides = names[: len(axes)], names[len(axes) :]
        text = " -> ".join(", ".join(map(" ".join, side)) for side in sides)
        return text, {"need_replication_factors": tuple(sorted(others))}

    def partition(mesh: Mesh, arguments: Sequence[Any], results: Sequence[Any]):
        if mesh.empty:
            raise ValueError(
                "A memory under jax.shard_map needs all axes of the mesh to be manual: leave out "
                "axis_names, or use jax.device_put alone to divide the memory and the batch."
            )
        splits = _splits(mesh, arguments, axes)

        def missing(names: tuple[str, ...]) -> MeshAxes:
            return tuple(a for name, used in splits.items() if name not in names for a in used)

        def sharding(names: tuple[str, ...]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*map(splits.get, names)))

        def on_each(*parts: Array) -> list[Array]:
            return join(fn(*parts), list(map(missing, result_axes)))

        return mesh, on_each, list(map(sharding, result_axes)), tuple(map(sharding, axes))

    # On one device this is `fn` itself.
    divided = custom_partitioning(fn)
    divided.def_partition(partition, sharding_rule=rule)
    return divided


def _splits(
    mesh: Mesh, arguments: Sequence[Any], axes: Sequence[tuple[str, ...]]
) -> dict[str, MeshAxes]:
    """The axes of the mesh along which each named axis is split, by the first argument with it."""
    splits: dict[str, MeshAxes] = {}
    for argument, names in zip(arguments, axes, strict=True):
        sizes, specs = argument.shape, argument.sharding.spec
        for name, size, spec in zip(names, sizes, specs, strict=False):
            found = (spec,) if isinstance(spec, str) else tuple(spec or ())
            is_free = not set(found) & set(itertools.chain(*splits.values()))
            is_even = size % math.prod(mesh.shape[a] for a in found) == 0
            if found and name not in splits and is_free and is_even:
                splits[name] = found
    return splits
