"""A script whose synapse is wrong. Its classes and functions can't be imported when it is run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import hopfield_layers as hl
from hopfield_layers.testing import check_synapse


T = TypeVar("T")
FACTOR = 3.0


@dataclasses.dataclass(frozen=True)
class Options:
    power: int = 3
    others: tuple = dataclasses.field(default_factory=tuple)


@jax.custom_jvp
def cube(s):
    return s**OPTIONS.power


@cube.defjvp
def _(primals, tangents):  # the mistake is the sign
    return cube(*primals), -FACTOR * primals[0] ** 2 * tangents[0]


OPTIONS = Options()


def doubled(method):
    @functools.wraps(method)
    def twice(*args):
        return 2 * method(*args)

    return twice


class AbstractScaled(hl.AbstractSynapse, Generic[T]):
    scale: T
    name: str = eqx.field(static=True)


class Cubic(AbstractScaled[Array]):
    w: Float[Array, "n m"] = eqx.field(converter=jnp.asarray)
    options: Options = eqx.field(static=True, default_factory=Options)
    outer: Callable = cube
    kind: ClassVar[str] = "cubic"

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
        # What would be lost if a class, its fields or their defaults were others afterwards.
        assert type(self) is __class__ is Cubic
        assert self.kind == "cubic"
        assert self.name == "mine"
        assert self.options == OPTIONS == dataclasses.replace(OPTIONS, power=3)
        assert dataclasses.replace(self, name="other").name == "other"
        assert len(jax.tree.leaves(self)) == 3
        assert Cubic.with_weights([[1]]).w.shape == (1, 1)
        return self.outer(self.product(g1, self.scaled, g2))


if __name__ == "__main__":
    report = check_synapse(Cubic.with_weights(jnp.eye(3, 2)), [3, 2], max_examples=5)
