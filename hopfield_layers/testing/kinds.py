"""What kind of object a user passes, and the errors that name the function for it."""

from typing import TypeVar

import equinox as eqx
import jax

import hopfield_layers as hl

from ..synapses.base import as_synapse, HasEnergy, LagrangianLike, SynapseLike


_T = TypeVar("_T")


def kind_of(candidate: object) -> str | None:
    """The kind of an object, None for a callable or what is of no use at all."""
    kinds = {
        "layer": hl.Layer,
        "network": hl.HAM,
        "model": hl.AbstractEnergyModel,
        "Lagrangian": hl.AbstractLagrangian,
        "synapse": HasEnergy,
    }
    return next((kind for kind, cls in kinds.items() if isinstance(candidate, cls)), None)


def checked_kind(expected: str, candidate: _T) -> _T:
    """The object, or an error that names the function for an object of another kind."""
    kind = kind_of(candidate)
    is_model = expected == "model" and isinstance(candidate, hl.AbstractEnergyModel)
    # The conversion of callables to Lagrangians and synapses has errors of its own.
    may_be_callable = kind is None and expected in ("Lagrangian", "synapse")
    if kind == expected or is_model or may_be_callable:
        return candidate
    if kind is None:
        calls = ": call check_lagrangian(lagrangian) or check_synapse(synapse, shapes)"
        instead = calls if callable(candidate) else ""
        raise TypeError(f"Expected a {expected}, got {candidate!r}{instead}.")
    name = type(candidate).__name__
    arguments = {"synapse": ", shapes", "model": ", x"}.get(kind, "")
    inside = " or pass layer.lagrangian" * (kind == "layer" and expected == "Lagrangian")
    raise TypeError(
        f"Expected a {expected}, got the {kind} {name}: call "
        f"check_{kind.lower()}({kind.lower()}{arguments}){inside}."
    )


def is_of_the_library(part: object) -> bool:
    """Whether a Lagrangian or a synapse, and all in it, is the library's own, which is tested."""
    if getattr(hl, type(part).__name__, None) is not type(part):
        return False
    leaves = jax.tree.leaves(vars(part), is_leaf=lambda leaf: isinstance(leaf, eqx.Module))
    # Callables are in modules too, which the library doesn't export.
    return all(is_of_the_library(leaf) for leaf in leaves if isinstance(leaf, eqx.Module))


def checked_lagrangian(lagrangian: LagrangianLike) -> hl.AbstractLagrangian:
    """`as_lagrangian`, with an error for a model that names the function to use instead."""
    return hl.as_lagrangian(checked_kind("Lagrangian", lagrangian))


def checked_synapse(synapse: SynapseLike) -> HasEnergy:
    """The synapse or callable, as a network takes it."""
    return as_synapse(type(synapse).__name__, checked_kind("synapse", synapse))


def checked_model(model: hl.AbstractEnergyModel) -> hl.AbstractEnergyModel:
    """The model, or an error that names what it should be."""
    if isinstance(model, hl.AbstractEnergyModel):
        return model
    if kind_of(model) == "synapse":
        checked_kind("model", model)
    instead = "Layer(lagrangian, shape)" if isinstance(model, hl.AbstractLagrangian) else "a Layer"
    raise TypeError(f"Expected an AbstractEnergyModel, {instead} for instance, got {model!r}.")
