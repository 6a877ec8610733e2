"""Which of a model's parameters training changes."""

from collections.abc import Collection

import equinox as eqx
import jax
from jaxtyping import PyTree

from .lagrangians import AbstractLagrangian
from .model import AbstractEnergyModel


def trainable_weights(model: PyTree, also: Collection[str] = ()) -> PyTree[bool]:
    """A tree like the model, True for its weights and False for all other leaves.

    The weights are all floating arrays (patterns, `W`, kernels, biases) but these:

    - the parameters of Lagrangians: β, γ, δ, scale, n, p and α, and those of your own Lagrangians;
    - the time constants τ of layers, and of models of your own.

    The tree selects what `equinox.partition` splits off to be trained. As a function of the
    parameters it is also a mask of optax: `optax.adamw(1e-3, mask=hl.trainable_weights)` lets no
    weight decay act on β and τ. `optax.masked` by itself freezes nothing, for it passes on the
    gradients of what the mask leaves out.

    **Arguments:**

    - `model`: a network, a layer, a synapse, or any tree of such.
    - `also`: names of fields to select as well, each with all that is in it: `("beta", "tau")`, or
        `("hidden_lagrangian",)` for all parameters of the hidden Lagrangians. To select the β of
        one layer alone, set its entry in the tree to True by `equinox.tree_at`.

    **Raises:** `TypeError` for a string in the place of the names; `ValueError` for a name that no
    floating array of the model is in.

    Examples:
        >>> import equinox as eqx
        >>> layers = {"x": hl.TanhLayer(3, beta=2.0), "y": hl.SoftmaxLayer(2, tau=0.1)}
        >>> synapses = {"W": hl.DenseSynapse((3, 2), W=jnp.ones((3, 2)))}
        >>> ham = hl.HAM(layers, synapses, [(("x", "y"), "W")])
        >>> weights, constants = eqx.partition(ham, hl.trainable_weights(ham))
        >>> def loss(weights):  # of the rest: jax.grad and optax see the weights alone
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
    """The tree of booleans of one part of a model. Takes names that it meets out of `unseen`."""
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
