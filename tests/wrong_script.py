"""A script with synapses of its own, whose classes can't be imported when it is run.

The slope of `cube` has the wrong sign, so that the reports of all of them have a violation. The
assertions are about what could be lost when a class is pickled.
"""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import beartype
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
from jaxtyping import Array, Float

import hopfield_layers as hl
from hopfield_layers.testing import check_synapse


T = TypeVar("T")
FACTOR = 3.0


class Kind(enum.Enum):
    CUBE = 3


@dataclasses.dataclass(frozen=True)
class Options:
    power: int = 3
    others: tuple = dataclasses.field(default_factory=tuple)
    made: ClassVar[list[str]] = []


OPTIONS = Options()


@jax.custom_jvp
def cube(s):
    return s**OPTIONS.power


@cube.defjvp
def _(primals, tangents):
    return cube(*primals), -FACTOR * primals[0] ** 2 * tangents[0]


@jax.custom_vjp
def cube_in_reverse(s):
    return s**3


cube_in_reverse.defvjp(lambda s: (s**3, s), lambda s, ct: (-FACTOR * s**2 * ct,))


def doubled(method):
    @functools.wraps(method)
    def twice(*args):
        return 2 * method(*args)

    return twice


class AbstractScaled(hl.AbstractSynapse, Generic[T]):
    scale: T
    name: str = eqx.field(static=True)

    @property
    @abc.abstractmethod
    def scaled(self) -> T: ...


class Fields(AbstractScaled[Array]):
    w: Float[Array, "n m"] = eqx.field(converter=jnp.asarray)
    options: Options = eqx.field(static=True, default_factory=Options)
    outer: Callable = cube
    leaf: Kind = Kind.CUBE
    kind: ClassVar[Kind] = Kind.CUBE

    @property
    def scaled(self):
        return self.scale * self.w

    @staticmethod
    def product(g1, w, g2):
        return g1 @ w @ g2

    @classmethod
    def with_weights(cls, w):
        return cls(jnp.array(0.5), "mine", w)

    @doubled
    def alignment(self, g1: Float[Array, " n"], g2: Float[Array, " m"]):
        assert type(self) is __class__ is Fields
        assert self.kind is self.leaf is Kind.CUBE
        assert self.name == "mine"
        assert self.options == OPTIONS == dataclasses.replace(OPTIONS, power=3)
        assert dataclasses.replace(self, name="other").name == "other"
        assert len(jax.tree.leaves(self)) == 4
        assert Fields.with_weights([[1]]).w.shape == (1, 1)
        return self.outer(self.product(g1, self.scaled, g2))


class AbstractWithInit(hl.AbstractSynapse):
    power: int = eqx.field(static=True, default=3)
    w: Array  # pyright: ignore[reportGeneralTypeIssues]

    def __init__(self, w):
        self.w = jnp.asarray(w)

    @abc.abstractmethod
    def alignment(self, g1, g2) -> Array: ...


class InheritsInit(AbstractWithInit):
    def alignment(self, g1, g2):
        other = InheritsInit(self.w)  # pyright: ignore[reportCallIssue]
        return cube(g1 @ other.w @ g2)


class NamesAnInstance(hl.AbstractSynapse):
    w: Array

    def alignment(self, g1, g2):
        return cube(g1 @ (self.w * INSTANCE.w) @ g2)


INSTANCE = NamesAnInstance(jnp.array(2.0))


class Reverse(hl.AbstractSynapse):
    w: Array

    def alignment(self, g1, g2):
        return cube_in_reverse(g1 @ self.w @ g2)


class Typed(hl.AbstractSynapse):
    w: Array

    @jaxtyping.jaxtyped(typechecker=beartype.beartype)
    def alignment(self, g1: Float[Array, " n"], g2: Float[Array, " m"]) -> Float[Array, ""]:
        return cube(g1 @ self.w @ g2)


@jax.tree_util.register_pytree_node_class
class Node:
    """A pytree of its own making, which can't be restored."""

    def __init__(self, w):
        self.w = w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class HasNode(hl.AbstractSynapse):
    node: Node

    def alignment(self, g1, g2):
        return cube(g1 @ self.node.w @ g2)


SYNAPSES = {
    "fields": Fields.with_weights(jnp.eye(3, 2)),
    "inherits __init__": InheritsInit(jnp.eye(3, 2)),  # pyright: ignore[reportCallIssue]
    "names an instance": NamesAnInstance(jnp.eye(3, 2)),
    "custom_vjp": Reverse(jnp.eye(3, 2)),
    "jaxtyped": Typed(jnp.eye(3, 2)),
}
HAS_NODE = HasNode(Node(jnp.eye(3, 2)))


if __name__ == "__main__":
    report = check_synapse(SYNAPSES["fields"], [3, 2], max_examples=5)
