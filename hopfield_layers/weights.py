"""Which of a model's parameters training changes."""

from collections.abc import Collection

import equinox as eqx
import jax
from jaxtyping import PyTree

from .lagrangians import AbstractLagrangian
from .model import AbstractEnergyModel


def trainable_weights(model: PyTree, also: Collection[str] = ()) -> PyTree[bool]:
    """A tree like the model, True for its weights and False for all other leaves.

    The weights are all floating arrays (patterns, `W`, kernels, biases) except these:

    - the parameters of Lagrangians: β, γ, δ, scale, n, p and α, and those of your own Lagrangians;
    - the time constants τ of layers, and of models of your own.

    `equinox.partition` splits a model by this tree into the weights to train and the rest. The
    function itself can be a mask of optax: `optax.adamw(1e-3, mask=hl.trainable_weights)` keeps
    weight decay away from β and τ. `optax.masked` alone freezes nothing, because it passes the
    gradients of masked leaves on unchanged.

    **Arguments:**

    - `model`: a network, a layer, a synapse, or any tree of these.
    - `also`: names of fields to select as well, with all of their contents: `("beta", "tau")`, or
        `("hidden_lagrangian",)` for all parameters of the hidden Lagrangians. To select the β of
        one layer only, set its entry in the tree to True by `equinox.tree_at`.

    **Raises:** `TypeError` for a string instead of a collection of names; `ValueError` for a field
    in which the model has no floating array.

    Examples:
        >>> import equinox as eqx
        >>> layers = {"x": hl.TanhLayer(3, beta=2.0), "y": hl.SoftmaxLayer(2, tau=0.1)}
        >>> synapses = {"W": hl.DenseSynapse((3, 2), W=jnp.ones((3, 2)))}
        >>> ham = hl.HAM(layers, synapses, [(("x", "y"), "W")])
        >>> weights, constants = eqx.partition(ham, hl.trainable_weights(ham))
        >>> def loss(weights):  # jax.grad and optax get the weights alone
        ...     return hl.relax(eqx.combine(weights, constants), {"x": jnp.ones(3), "y": x}).energy
        >>> x = jnp.array([1.0, 0.0])
        >>> print(jax.tree.map(jnp.shape, jax.tree.leaves(jax.grad(loss)(weights))))
        [(3, 2)]
        >>> weights, _ = eqx.partition(ham, hl.trainable_weights(ham, also=("beta",)))
        >>> print(len(jax.tree.leaves(weights)))  # W and two β
        3
    """
    if isinstance(also, str):
        raise TypeError(f"Expected a tuple of names, got {also!r}: pass ({also!r},).")
    unseen = set(also)
    selected = _selected(model, True, frozenset(also), unseen)
    if unseen:
        raise ValueError(f"The model has no floating arrays in a field {sorted(unseen)}.")
    return selected


def _selected(
    node: PyTree, is_weight: bool, also: frozenset[str], unseen: set[str]
) -> PyTree[bool]:
    """The tree of booleans for one part of a model. Removes the names that it finds in `unseen`."""
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node
    )
    if structure == jax.tree.structure(0):
        return is_weight and eqx.is_inexact_array(node)
    if isinstance(node, AbstractLagrangian):
        is_weight = False
    results = []
    for (key,), child in children:
        name = getattr(key, "name", None)
        if name in also and any(map(eqx.is_inexact_array, jax.tree.leaves(child))):
            unseen.discard(name)
            results.append(jax.tree.map(eqx.is_inexact_array, child))
        else:
            is_time = name == "tau" and isinstance(node, AbstractEnergyModel)
            results.append(_selected(child, is_weight and not is_time, also, unseen))
    return jax.tree.unflatten(structure, results)
