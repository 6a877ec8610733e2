# %% [markdown]
"""# Retrieval from a memory that is divided among devices and processes

E = |x|²/2 − ln Σ exp(β ξ·x)/β over K binary patterns ξ. Each process keeps its own rows of the
patterns, as 8-bit integers, on each of its devices, which take a share of the queries each. The
sums over the rows of all processes are merged in one reduction of the state's size and a few
numbers per query. Queries are patterns with 20 % of the entries flipped. With `--divide all` each
device keeps rows of its own, and takes part in every query.

One process, on all of its devices:

    python examples/distributed_retrieval.py

Several processes on one machine, here two with two virtual CPU devices each. Every process runs the
same program, and process 0 also coordinates:

    export XLA_FLAGS=--xla_force_host_platform_device_count=2
    together="--coordinator localhost:9876 --processes 2"
    python examples/distributed_retrieval.py $together --process 0 &
    python examples/distributed_retrieval.py $together --process 1

Several hosts: the same with the address of the first host as the coordinator, one process on each.
SLURM gives the processes their numbers, here one for each of four GPUs per host:

    srun --ntasks-per-node=4 --gpus-per-node=4 python examples/distributed_retrieval.py --cluster

If a process dies, the others fail within `--heartbeat` seconds.
"""

# %%
import argparse
import time

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import hopfield_layers as hl


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Retrieval over devices and processes.")
    parser.add_argument("--patterns", type=int, default=200_000)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--queries", type=int, default=64, help="the number of queries per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small memory, for tests")
    parser.add_argument("--coordinator", help="address:port of process 0")
    parser.add_argument("--processes", type=int, help="the number of processes")
    parser.add_argument("--process", type=int, help="the number of this process, from 0 on")
    parser.add_argument("--cluster", action="store_true", help="get these from SLURM or similar")
    parser.add_argument(
        "--heartbeat", type=int, default=30, help="seconds until a silent process counts as dead"
    )
    parser.add_argument(
        "--divide",
        choices=["processes", "all"],
        default="processes",
        help="which divide the patterns",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.patterns = 8192
    return arguments


# %% [markdown]
# Every entry of the memory is computed from the number of its row, so that each process makes the
# rows of its own devices, and no process ever holds all rows.


# %%
def rows(numbers: jax.Array, units: int) -> jax.Array:
    """The patterns with these numbers: ±1, as 8-bit integers."""
    return jax.vmap(lambda i: jr.rademacher(jr.key(i), (units,), jnp.int8))(numbers)


def spread_patterns(mesh: Mesh, count: int, units: int) -> jax.Array:
    def part(index) -> jax.Array:
        return rows(jnp.arange(count)[index[0]], units)

    sharding = NamedSharding(mesh, P("patterns"))
    return jax.make_array_from_callback((count, units), sharding, part)


def spread_queries(mesh: Mesh, numbers: jax.Array, units: int) -> tuple[jax.Array, jax.Array]:
    """Patterns, and the same patterns with 20 % of the entries flipped."""
    sharding = NamedSharding(mesh, P("samples"))

    def kept(index) -> jax.Array:
        return rows(numbers[index[0]], units).astype(jnp.float32)

    def flipped(index) -> jax.Array:
        keys = jax.vmap(jr.key)(numbers[index[0]] + 2**30)
        signs = jax.vmap(lambda key: jr.bernoulli(key, 0.2, (units,)))(keys)
        return jnp.where(signs, -kept(index), kept(index))

    shape = (len(numbers), units)
    return (
        jax.make_array_from_callback(shape, sharding, kept),
        jax.make_array_from_callback(shape, sharding, flipped),
    )


# %%
def main() -> None:
    arguments = parsed_arguments()
    if arguments.cluster or arguments.coordinator:
        jax.distributed.initialize(
            arguments.coordinator,
            arguments.processes,
            arguments.process,
            heartbeat_timeout_seconds=arguments.heartbeat,
        )
    processes, devices = jax.process_count(), jax.local_device_count()
    sizes = (processes, devices) if arguments.divide == "processes" else (processes * devices, 1)
    if arguments.queries % sizes[1] or arguments.patterns % sizes[0]:
        raise SystemExit(f"Expected patterns and queries that divide by {sizes}.")
    auto = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh(sizes, ("patterns", "samples"), axis_types=auto)
    patterns = spread_patterns(mesh, arguments.patterns, arguments.units)
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=1.0))
    layers = {"x": hl.IdentityLayer(arguments.units)}
    ham = hl.HAM(layers, {"memory": memory}, [(("x",), "memory")])

    @jax.jit
    def share_retrieved(rest: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.mean(jnp.all(jnp.sign(rest) == kept, axis=1))

    if jax.process_index() == 0:
        print(f"{len(patterns):,} patterns of {arguments.units} units in {patterns.dtype}")
        print(f"{processes} processes, {mesh.size} devices")
        print("round  sweeps  retrieved  seconds")
    for i in range(arguments.rounds):
        numbers = (i * arguments.queries + jnp.arange(arguments.queries)) % arguments.patterns
        kept, query = spread_queries(mesh, numbers, arguments.units)
        start = time.perf_counter()
        rest = hl.relax(ham, {"x": query})
        share = float(share_retrieved(rest.x["x"], kept))
        sweeps = int(jnp.max(rest.num_steps))
        seconds = time.perf_counter() - start
        if jax.process_index() == 0:
            print(f"{i + 1:5}  {sweeps:6}  {share:9.3f}  {seconds:7.3f}", flush=True)
        # A query's product with its pattern is about 0.6 · 128 = 77 ± 9, and its largest product
        # with another pattern about (2 · 128 ln K)^½ = 56, so that nearly all are retrieved.
        assert share > 0.9, share


if __name__ == "__main__":
    main()
