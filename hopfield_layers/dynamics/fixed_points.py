"""The distinct fixed points of a model, from many starts."""

import functools as ft
import operator
from typing import SupportsIndex

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Real

from .._trees import entries
from ..model import AbstractEnergyModel, AnyArray, StateLike
from . import problems
from .block_updates import BlockUpdates
from .flow import EnergyFlow
from .inputs import depends_on_time
from .problems import InitialValueProblem, ProblemArguments
from .relax import relax
from .rest import Tolerance
from .spectrum import smallest_eigenvalues
from .state_trees import Clamp, largest, like_state


class FixedPoints(eqx.Module):
    """The result of [`hopfield_layers.fixed_points`][]: distinct fixed points by ascending energy.

    Rounding decides the order of points whose energies are the same.

    **Attributes:**

    - `x`: the states, with an axis of the fixed points in front.
    - `energy`: E − Σ I·g of each.
    - `residual`: the largest |∂E/∂g − I| of all free units, in the units of x.
    - `eigenvalues`: the smallest eigenvalues λ of I + S H on the range of H,
        `(points, num_eigenvalues)`, in ascending order, and ∞ where the rank of H is smaller. If
        all τ are the same, a perturbation along the direction of λ changes as exp(−λt/τ) in the
        linearised activation flow.
    - `stable`: whether the smallest eigenvalue is above √ε, ε being the dtype's. If not, the point
        is a saddle, a maximum, or at a bifurcation.
    - `counts`: the number of starts that reach each fixed point.
    - `shares`: `counts` divided by the number of all starts.
    - `index`: the index of the fixed point that each start reaches, or −1 for none, of the shape of
        the batch axes of the starts.
    - `num_unconverged`: the number of starts that reach none.

    Examples:
        >>> points = hl.fixed_points(hl.TanhLayer(3), jnp.ones((5, 3)))
        >>> print(points.x.shape, points.counts, points.num_unconverged)
        (1, 3) [5] 0
    """

    x: PyTree[Array]
    energy: Float[Array, " points"]
    residual: Float[Array, " points"]
    eigenvalues: Float[Array, "points _"]
    stable: Bool[Array, " points"]
    counts: Int[Array, " points"]
    shares: Float[Array, " points"]
    index: Int[Array, "*batch"]
    num_unconverged: int


def fixed_points(
    model: AbstractEnergyModel,
    starts: StateLike,
    *,
    clamp: StateLike | None = None,
    inputs: StateLike | None = None,
    tol: Real[ArrayLike, ""] | None = None,
    separation: float | None = None,
    num_eigenvalues: SupportsIndex = 1,
    root_finder: optx.AbstractRootFinder | None = None,
    solver: BlockUpdates | diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real[ArrayLike, ""] | None = None,
    max_steps: int = 4096,
    batch_size: int | None = None,
) -> FixedPoints:
    """Finds the distinct states with ∂E/∂g = I that many starts lead to, and their stability.

    By default each start is relaxed to a fixed point downhill of it. As a rule this is a minimum,
    but it is a saddle if the start lies on one or the steps happen to meet one. With a
    `root_finder` the equation ∂E/∂g = I is solved from each start, which finds saddles and maxima
    as well.

    Two fixed points are the same if their activations are: at a fixed point x = b + I − ∂E_s/∂g, so
    that g determines x, including units that H can't move. States in which the state flow rests
    although ∂E/∂g ≠ I, because of dead units for instance, don't count as fixed points.

    The shares depend on the method. By default a start may reach another attractor than the flow
    does; where basins of attraction matter, follow the flow as described in
    [`hopfield_layers.relax`][]. The number of points depends on the values, so that this function
    can't be called under `jax.jit`.

    **Arguments:**

    - `model`, `clamp`, `inputs`: as for [`hopfield_layers.relax`][], with a clamp and inputs that
        are the same for all starts. Clamped units keep the values of each start.
    - `starts`: a state with any batch axes.
    - `tol`: the bound on |∂E/∂g − I| in every unit, in the units of x, as for `relax`.
    - `separation`: points whose activations differ by at most separation·(1 + |g|) in every unit
        count as one. By default ε^(1/3), 6e-6 in float64 and 5e-3 in float32.
    - `num_eigenvalues`: how many of the smallest eigenvalues to compute for each point, from the
        matrix for up to 256 units, and matrix-free by Lanczos' method for more.
    - `root_finder`: one of optimistix, `optimistix.Newton(rtol=1e-10, atol=1e-10)` for instance.
    - `solver`, `stepsize_controller`, `dt0`: as for `relax`, and only without a root finder.
    - `max_steps`, `batch_size`: as for `relax`.

    **Returns:** a [`hopfield_layers.FixedPoints`][].

    **Raises:** `ValueError` as in `relax`, for a separation or num_eigenvalues ≤ 0, for both a root
    finder and a solver, for a clamp or inputs with batch axes, and under `jax.jit`. Starts that
    reach no fixed point are counted, and are not an error.

    Source: Krotov & Hopfield, arXiv:2008.06996; Saad, "Numerical methods for large eigenvalue
    problems" (2011), chapter 6, for Lanczos' method in another inner product.

    Examples:
        >>> pair = hl.HAM(
        ...     {"x": hl.TanhLayer(2)},
        ...     {"W": lambda g: -2 * g[0] * g[1]},
        ...     [(("x",), "W")],
        ... )
        >>> starts = {"x": jax.random.normal(jax.random.key(0), (20, 2))}
        >>> points = hl.fixed_points(pair, starts)
        >>> print(points.x["x"][points.stable, 0].sort().round(1))  # x = ±2 tanh x
        [-1.9  1.9]
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((model, starts, clamp, inputs))):
        raise ValueError("fixed_points can't be traced: their number depends on the values.")
    if root_finder is not None and not isinstance(root_finder, optx.AbstractRootFinder):
        raise TypeError(f"Expected a root finder of optimistix, got {root_finder!r}.")
    followed = (solver, stepsize_controller, dt0)
    if root_finder is not None and any(tool is not None for tool in followed):
        raise ValueError("Expected either a root_finder or a solver and its steps, got both.")
    count = _as_count(num_eigenvalues)
    arguments = ProblemArguments(model, starts, "activation", clamp, inputs).converted()
    one = _sample(arguments)
    dtype = problems.solve_dtype(arguments.x0)
    eps = float(jnp.finfo(dtype).eps)
    apart = eps ** (1 / 3) if separation is None else float(separation)
    if not apart > 0:
        raise ValueError(f"Expected separation > 0, got {apart}.")
    options = {"tol": tol, "max_steps": max_steps, "batch_size": batch_size}
    if root_finder is None:
        tools = {"solver": solver, "stepsize_controller": stepsize_controller, "dt0": dt0}
        rest = relax(model, starts, clamp=clamp, inputs=inputs, throw=False, **tools, **options)
        found = rest.x, rest.energy, rest.residual, rest.converged
    else:
        found = _roots(arguments, root_finder, **options)
    x, energy, residual, converged = jax.tree.map(jax.lax.stop_gradient, found)
    batch = converged.shape
    x = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), x)
    g = _activations(model, x) if converged.size else x
    energy, residual, converged = (a.reshape(-1) for a in (energy, residual, converged))
    first, index = _distinct(g, np.asarray(energy), np.asarray(converged), apart)
    points = entries(x, first)
    eigenvalues = _eigenvalues(one, points, len(first), count, dtype)
    counts = np.bincount(index[index >= 0], minlength=len(first))
    return FixedPoints(
        points,
        energy[first],
        residual[first],
        eigenvalues,
        eigenvalues[:, 0] > eps**0.5,
        jnp.asarray(counts),
        jnp.asarray(counts / max(converged.size, 1), dtype),
        jnp.asarray(index.reshape(batch)),
        int(np.sum(index < 0)),
    )


def _as_count(number: SupportsIndex) -> int:
    try:
        count = operator.index(number)
    except TypeError as error:
        raise TypeError(f"Expected num_eigenvalues to be a number, got {number!r}.") from error
    if count < 1:
        raise ValueError(f"Expected num_eigenvalues of at least 1, got {count}.")
    return count


def _sample(arguments: ProblemArguments) -> EnergyFlow:
    """The flow of one sample, or an error for a clamp or inputs that differ between samples."""
    if depends_on_time(arguments.inputs):
        raise ValueError("Inputs that depend on t have no fixed point: expected arrays.")
    problem = jax.eval_shape(lambda: InitialValueProblem(arguments))
    num_axes = len(problem.batch)
    x = jax.tree.map(lambda x: np.zeros(x.shape[num_axes:], x.dtype), problem.x0)
    held = arguments.clamp.held if isinstance(arguments.clamp, Clamp) else None
    try:
        held = None if held is None else like_state(x, _squeezed(held, x), "clamp")
        inputs = arguments.inputs
        inputs = None if inputs is None else like_state(x, _squeezed(inputs, x), "inputs")
    except ValueError as error:
        message = f"fixed_points takes a clamp and inputs that all starts share: {error}"
        raise ValueError(message) from error
    return EnergyFlow(arguments.model, "activation", held, inputs)


def _squeezed(tree: PyTree[AnyArray], x: PyTree[AnyArray]) -> PyTree[AnyArray]:
    """The arrays without those leading batch axes along which all samples are equal."""
    sizes = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(x)}

    def squeeze(path, leaf):
        leaf, like = np.asarray(leaf), sizes[jax.tree_util.keystr(path)]
        while leaf.ndim > like.ndim and len(leaf) > 0 and np.all(leaf == leaf[:1]):
            leaf = leaf[0]
        return leaf

    return jax.tree_util.tree_map_with_path(squeeze, tree)


@eqx.filter_jit
def _activations(model: AbstractEnergyModel, x: PyTree[Array]) -> PyTree[Array]:
    return jax.vmap(model.activations)(x)


@eqx.filter_jit
def _roots(arguments, root_finder, tol, max_steps, batch_size):
    """The results of solving ∂E/∂g = I: states, energies, residuals, and whether it succeeded."""
    problem = InitialValueProblem(arguments)
    default = float(jnp.finfo(problem.dtype).eps) ** (2 / 3)
    tolerance = Tolerance(default, default) if tol is None else Tolerance(0.0, tol)

    def root(field: EnergyFlow, x0: PyTree[Array]):
        def condition(x, _):
            u = field.drive(0.0, x)
            if field.clamp is None:
                return u
            held = like_state(x, field.clamp.held, "clamp")
            return jax.tree.map(lambda held, x, x0, u: jnp.where(held, x - x0, u), held, x, x0, u)

        x = optx.root_find(condition, root_finder, x0, max_steps=max_steps, throw=False).value
        force = field.force(0.0, x)
        return x, field.energy(0.0, x), largest(force), tolerance.distance(force, x) < 1

    return problem.map(root, batch_size=batch_size)


def _distinct(
    g: PyTree[Array], energy: np.ndarray, converged: np.ndarray, separation: float
) -> tuple[np.ndarray, np.ndarray]:
    """The index of one sample of each point, by ascending energy, and the point of each sample."""
    rows = [np.asarray(leaf).reshape(energy.size, -1) for leaf in jax.tree.leaves(g)]
    flat = np.concatenate(rows, axis=1)
    index = np.full(energy.size, -1)
    first: list[int] = []
    left = np.flatnonzero(converged)
    left = left[np.argsort(energy[left], kind="stable")]
    while left.size:
        point = flat[left[0]]
        bound = separation * (1 + np.abs(point))
        same = np.all(np.abs(flat[left] - point) <= bound, axis=1)
        index[left[same]] = len(first)
        first.append(int(left[0]))
        left = left[~same]
    return np.array(first, int), index


def _eigenvalues(
    field: EnergyFlow, points: PyTree[Array], size: int, count: int, dtype: np.dtype
) -> Float[Array, "points count"]:
    if size == 0:
        return jnp.zeros((0, count), dtype)
    # Padded to a power of two, so that another number of points is seldom compiled again.
    padding = (1 << (size - 1).bit_length()) - size
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(padding, 0)]), points)
    return _of_each(field, padded, count)[:size]


@eqx.filter_jit
def _of_each(field: EnergyFlow, points: PyTree[Array], count: int) -> Float[Array, "points count"]:
    # One point at a time, because each needs memory for a matrix or a basis of directions.
    return jax.lax.map(ft.partial(smallest_eigenvalues, field, count=count), points)
