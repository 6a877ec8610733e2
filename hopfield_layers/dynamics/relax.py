"""Relaxation to a fixed point."""

import functools as ft
import math
from operator import attrgetter
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Real

from ..model import AbstractEnergyModel, Flow, StateLike
from . import problems
from .block_updates import BlockUpdates, Updates
from .closures import without_closures
from .fixed_point import settle
from .flow import EnergyFlow
from .flow_to_rest import follow
from .inputs import depends_on_time
from .options import as_count, as_limits, check_options, check_tools
from .problems import InitialValueProblem, ProblemArguments
from .rest import known_values, of_samples, Tolerance
from .run_time_errors import Errors, known_error, nan_like, raised_in
from .state_trees import tree_where, without_derivatives


class Relaxation(eqx.Module):
    """The result of [`hopfield_layers.relax`][]. Each attribute has one value per sample.

    **Attributes:**

    - `x`: the final state, of the structure and shapes of x0.
    - `energy`: E − Σ I·g at x.
    - `residual`: the largest |τ dx/dt| of all units at x, in the units of x.
    - `converged`: whether |τ dx/dt| is within the tolerance in every unit.
    - `time`: the time t that the flow took, in the units of τ, or None if no flow was followed.
    - `num_steps`: the number of steps, including rejected ones; for `BlockUpdates`, of sweeps.

    Only x and the energy have derivatives; those of the other attributes are 0.

    Examples:
        >>> rest = hl.relax(hl.TanhLayer(3), jnp.ones((5, 3)))
        >>> print(rest.x.shape, rest.energy.shape, bool(rest.residual.max() < 1e-4))
        (5, 3) (5,) True
    """

    x: PyTree[Array]
    energy: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    time: Float[Array, "*batch"] | None
    num_steps: Int[Array, "*batch"]


def relax(
    model: AbstractEnergyModel,
    x0: StateLike,
    *,
    flow: Flow = "activation",
    clamp: StateLike | None = None,
    inputs: StateLike | None = None,
    tol: Real[ArrayLike, "..."] | None = None,
    solver: BlockUpdates | diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    dt0: Real[ArrayLike, "..."] | None = None,
    max_steps: int = 4096,
    batch_size: int | None = None,
    progress_meter: diffrax.AbstractProgressMeter | None = None,
    throw: bool = True,
) -> Relaxation:
    """Brings a model to rest downhill of x0: |τ dx/dt| < tol in every unit.

    The default, [`hopfield_layers.BlockUpdates`][], doesn't follow the flow. Its fixed point has at
    most the energy of x0, but may be another attractor than the one to which the flow leads. Where
    basins of attraction matter, follow the flow τ dx/dt = −∂E/∂g in steps of a given accuracy:
    `solver=ETD2RK(), stepsize_controller=diffrax.PIDController(1e-3, 1e-3), dt0=0.1`.

    The tolerance holds for τ dx/dt of each unit separately, so that one large or slow unit can't
    hide another, and each sample of a batch stops independently.

    The derivative of the result, forward or reverse, with respect to parameters, inputs and clamped
    values is that of the fixed point x*, by the implicit function theorem: dx* solves
    (I + S H) dx* = −∂u/∂θ dθ, with S = ∂²E_s/∂g² and H = ∂²L/∂x². This needs no matrices and no
    stored steps. The system is solved by conjugate gradients in the inner product aᵀHb, in which it
    is symmetric, and by GMRES where that fails, as at a saddle. For `flow="activation"` the
    derivative is exact, and 0 with respect to free units of x0. For `flow="state"` the derivatives
    of g* and of the energy are exact where u = 0, or where H u = 0 in a neighbourhood of x* (a
    softmax's row, a dead ReLU). x* itself also depends on the part of x0 that H can't move (the
    mean of the row, the dead unit), which its derivative ignores; and with a clamp a
    Lagrangian of your own must declare its `coupled_axes`, see
    [`hopfield_layers.as_lagrangian`][]. The derivative of a sample that didn't converge is
    meaningless, but a cotangent of 0 gives 0, so that a loss may mask the sample out.

    **Arguments:**

    - `model`, `x0`, `flow`, `clamp`: as for [`hopfield_layers.solve`][]. Clamped units count as
        being at rest.
    - `inputs`: the external input I, a tree of arrays that broadcast to x0.
    - `tol`: the bound on |τ dx/dt|, in the units of x, greater than 0. By default ε^(2/3)·(1 + |x|)
        for each unit, 4e-11 in float64 and 2e-5 in float32, ε being the dtype's.
    - `solver`: a [`hopfield_layers.BlockUpdates`][], or any diffrax solver of a single `ODETerm`,
        which follows the flow. By default `BlockUpdates` for the activation flow, or
        [`hopfield_layers.ETD2RK`][] if a `stepsize_controller` or `dt0` is given; for the state
        flow `diffrax.ImplicitEuler` with Newton's method and conjugate gradients.
    - `stepsize_controller`: a controller of diffrax that does not step to given times, because
        every step begins at t = 0. By default [`hopfield_layers.energy_descent`][] of
        `diffrax.PIDController(rtol=0.1, atol=0.1)`, or of constant steps for a solver without an
        error estimate.
    - `dt0`: the first step, in the units of t. By default 100 times the largest τ; for constant
        steps the smallest τ.
    - `max_steps`: the largest number of steps. A step of `BlockUpdates` costs about one evaluation
        of ∂E/∂g and one of E.
    - `batch_size`: the most samples that are relaxed at a time, as in `jax.lax.map`. On a CPU never
        more than 128 are, unless the batch is divided among devices, which saves time and memory.
        The last eighth of 64 or more goes on without the others, on one device.
    - `progress_meter`: one of diffrax, which shows the share of `max_steps` that was taken, for
        each of these sets of samples in turn.
    - `throw`: whether to raise errors for samples that didn't converge or have no derivative, and
        for an x0 that isn't finite. With `throw=False` the program calls no Python, so that
        `jax.export` can export it.

    **Returns:** a [`hopfield_layers.Relaxation`][], whose arrays begin with the batch axes of x0.

    **Raises:** `ValueError` for tol ≤ 0 or dt0 ≤ 0, for steps to given times, for inputs that
    depend on t, for `BlockUpdates` of the state flow, and as in [`hopfield_layers.solve`][] for x0,
    masks and inputs. With `throw=True`, `RuntimeError` for samples that ran out of steps, for an
    energy without lower bound and for values beyond the range of the dtype. Under an outer jit,
    which hides the values, it is an error at run time, which `equinox.filter_jit` raises as an
    `equinox.EquinoxRuntimeError`; on several devices the results are NaN, as for `solve`.

    A batch that is divided among devices stays divided, as in `solve`.

    Source: Krotov & Hopfield, arXiv:2008.06996; Bai, Kolter & Koltun, "Deep equilibrium models",
    arXiv:1909.01377, for the derivative.

    Examples:
        >>> layer = hl.TanhLayer(3, bias=jnp.array([1.0, 2.0, 3.0]))
        >>> rest = hl.relax(layer, jnp.zeros((5, 3)))
        >>> print(rest.x[0], rest.converged)
        [1. 2. 3.] [ True  True  True  True  True]
        >>> print(jax.grad(lambda I: hl.relax(layer, jnp.zeros(3), inputs=I).x.sum())(jnp.ones(3)))
        [1. 1. 1.]
    """
    if depends_on_time(inputs):
        raise ValueError("Inputs that depend on t have no fixed point: expected arrays.")
    max_steps = as_count("max_steps", max_steps)
    limits = as_limits(batch_size=batch_size)
    check_tools(None if isinstance(solver, BlockUpdates) else solver, stepsize_controller)
    if progress_meter is not None:
        check_options({"progress_meter": progress_meter})
    arguments = ProblemArguments(model, x0, flow, clamp, inputs).converted()
    dtype = problems.solve_dtype(arguments.x0)
    numbers = {"dt0": dt0, "tol": tol}
    numbers = {k: problems.as_scalar(v, dtype, k) for k, v in numbers.items() if v is not None}
    _check_positive({k: v for k, v in numbers.items() if isinstance(v, np.ndarray)})
    tools = {"solver": solver, "controller": stepsize_controller, "meter": progress_meter}
    tools = problems.with_array_floats(tools, dtype)
    rest, is_unbounded, errors = _relax(
        arguments=arguments,
        numbers=numbers,
        throw=throw,
        max_steps=max_steps,
        **limits,
        **tools,
    )
    if not throw:
        return rest
    if (message := known_error(errors)) is not None:
        problems.raise_if_not_finite(arguments.x0)
        _check_positive({k: v for k, v in numbers.items() if not isinstance(v, Tracer)})
        # Every process evaluates the details, as they may need arrays of the others.
        detailed = _with_details(message, rest, is_unbounded, arguments, max_steps)
        if getattr(rest.converged, "is_fully_addressable", True):
            raise RuntimeError(detailed)
        if np.any(known_values(~rest.converged)):
            raise RuntimeError(f"{detailed} Each process names those of its own samples.")
        raise RuntimeError(f"{message} The samples of this process converged.")
    return raised_in(errors, rest)


def _check_positive(numbers: dict[str, Any]) -> None:
    for name, number in numbers.items():
        if not 0 < float(number) < math.inf:
            raise ValueError(f"Expected a finite {name} > 0, got {number}.") from None


@problems.flat_jit
def _relax(arguments, numbers, max_steps, batch_size, solver, controller, meter, throw):
    """The relaxed samples, which of them have an energy without lower bound, and the errors.

    Errors are looked for only if `throw`.
    """
    problem = InitialValueProblem(arguments)
    dtype, errors = problem.dtype, Errors.of({})
    if throw:
        flags = problems.start_errors(problem)
        for name, number in numbers.items():
            flags[f"Expected a finite {name} > 0."] = ~((number > 0) & (number < jnp.inf))
        errors = Errors.of(flags)
        # No step is taken from NaN.
        x0 = tree_where(errors.index < 0, problem.x0, jax.tree.map(nan_like, problem.x0))
        problem = eqx.tree_at(attrgetter("x0"), problem, x0)
    tol, default = numbers.get("tol"), float(jnp.finfo(dtype).eps) ** (2 / 3)
    tolerance = (
        Tolerance(default, default) if tol is None else Tolerance(0.0, jnp.asarray(tol, dtype))
    )
    follows = controller is not None or "dt0" in numbers
    if solver is None and problem.field.flow == "activation" and not follows:
        solver = BlockUpdates()
    meter = diffrax.NoProgressMeter() if meter is None else meter
    options = {"tolerance": tolerance, "max_steps": max_steps, "meter": meter}
    if not isinstance(solver, BlockUpdates):
        search = follow(problem, solver, controller, numbers.get("dt0"), **options)
    elif problem.field.flow == "activation" and not follows:
        search = ft.partial(Updates, method=solver, **options)
    else:
        raise ValueError(
            'BlockUpdates are for flow="activation", without a stepsize_controller or dt0.'
        )

    def relax_sample(field, x0):
        model = without_closures(field.model, x0)
        field = eqx.tree_at(attrgetter("model"), field, model)
        x, energy, attributes = settle(search(field), x0, throw)
        is_unbounded = attributes.pop("is_unbounded")
        return Relaxation(x, energy, **attributes), is_unbounded

    rest, is_unbounded = problem.map(relax_sample, batch_size=batch_size)
    if throw:
        unconverged = ~rest.converged
        diverged = unconverged & jnp.isinf(rest.residual)
        outcomes = {
            _DIVERGED.format(details=""): jnp.any(diverged),
            _UNBOUNDED.format(details="a unit"): jnp.any(is_unbounded),
            _UNCONVERGED.format(details=""): jnp.any(unconverged),
        }
        errors |= Errors.of(outcomes)
    return rest, is_unbounded, errors


def _with_details(
    message: str,
    rest: Relaxation,
    is_unbounded: Bool[Array, "*batch"],
    arguments: ProblemArguments,
    max_steps: int,
) -> str:
    """The message, completed with the samples and the unit concerned."""
    unconverged = known_values(~rest.converged)
    if message == _DIVERGED.format(details=""):
        diverged = unconverged & np.isinf(known_values(rest.residual))
        return _DIVERGED.format(details=of_samples(diverged))
    # Under jax.jvp the values are known, but have tangents.
    model, _, flow, clamp, inputs = arguments
    x, field = without_derivatives((rest.x, EnergyFlow(model, flow, clamp, inputs)))
    if message == _UNBOUNDED.format(details="a unit"):
        samples = known_values(is_unbounded)
        return _UNBOUNDED.format(details=f"{_largest_unit(x, samples)[0]}{of_samples(samples)}")
    if message != _UNCONVERGED.format(details=""):
        return message
    force = eqx.filter_jit(EnergyFlow.force)(field, jnp.zeros(()), x)
    slowest, speed = _largest_unit(force, unconverged)
    num_steps = int(np.max(known_values(rest.num_steps)[unconverged], initial=0))
    time = ""
    if rest.time is not None:
        time = f" and t = {np.max(known_values(rest.time)[unconverged], initial=0):.3g}"
    return _UNCONVERGED.format(
        details=f"{of_samples(unconverged)}; the slowest unit is {slowest} with |τ dx/dt| = "
        f"{speed:.3g} after {num_steps} of {max_steps} steps{time}"
    )


def _largest_unit(tree: PyTree[Array], samples: np.ndarray) -> tuple[str, float]:
    """The largest entry of these samples, and its unit, written as an index into the state."""

    def size(leaf):
        mask = samples.reshape(samples.shape + (1,) * (leaf.ndim - samples.ndim))
        return np.where(mask, np.abs(known_values(leaf)), 0)

    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(size, tree))
    path, leaf = max(leaves, key=lambda leaf: np.max(leaf[1], initial=0.0))
    index = np.unravel_index(np.argmax(leaf), leaf.shape)
    unit = f"x{jax.tree_util.keystr(path)}[{', '.join(map(str, index))}]"
    return unit, float(np.max(leaf, initial=0))


_RETURNS = "With throw=False it returns the last state."
_DIVERGED = (
    "relax did not converge{details}: dx/dt is NaN or leaves the range of the dtype, because x0, "
    f"the inputs or the model's parameters are too large or NaN. {_RETURNS}"
)
_UNBOUNDED = (
    "relax did not converge: {details} grows without end, because the energy has no lower bound. "
    "Bound the activations of this layer, or the weights of the synapses that join it. "
    f"{_RETURNS}"
)
_UNCONVERGED = (
    "relax did not bring every unit to rest{details}. Allow more max_steps or a larger tol; use "
    "float64; or follow the flow, for stiff models with "
    f"solver=diffrax.Kvaerno3(root_finder=hopfield_layers.newton_krylov()). {_RETURNS}"
)
