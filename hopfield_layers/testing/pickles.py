"""Pickles of models whose classes and functions are defined in a script or in a function."""

import copyreg
import dataclasses
import inspect
import io
import types
from typing import Any, cast

import cloudpickle
import equinox as eqx
import jax


def dumps(model: object) -> bytes:
    """The pickle of a model, with the code of what can't be imported.

    Raises whichever error tells that a part can't be pickled. The code is bytecode, which another
    minor version of Python can't read.
    """
    with io.BytesIO() as file:
        _Pickler(file).dump(model)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's, for Equinox's classes, jaxtyping's annotations and dataclasses too.

    cloudpickle makes an empty class and then sets its attributes, so that methods may refer to
    their own class. A class of Equinox's needs its fields from the start, as it is registered with
    JAX when it is made.
    """

    def reducer_override(self, obj):
        # A string is the name of the object in its module, where its own `__name__` isn't, or where
        # a copy would not be recognised.
        if obj is jax.Array:
            return "Array"
        if obj is dataclasses.MISSING:
            return "MISSING"
        if type(obj) in copyreg.dispatch_table:  # as those of jaxtyping's annotations are
            return NotImplemented
        reduced = super().reducer_override(obj)
        if not isinstance(obj, type(eqx.Module)) or not isinstance(reduced, tuple):
            return reduced
        # Without the arguments after these, by which cloudpickle would find the class itself if it
        # exists already, and set its attributes to copies.
        _, args, *state = reduced
        metaclass, name, bases, namespace, *_ = cast(tuple[Any, ...], args)
        own = inspect.get_annotations(obj)
        fields = [f for f in dataclasses.fields(obj) if f.name in own]
        is_static = {f.name: f.metadata.get("static", False) for f in fields}
        return _module_class, (metaclass, name, bases, namespace, is_static), *state


def _module_class(metaclass, name, bases, namespace, is_static):
    """A class that has its fields, but not yet its other attributes."""
    # Without `init=False` the order of fields with and without a default would be checked.
    fields = {key: eqx.field(static=static, init=False) for key, static in is_static.items()}
    annotations = dict.fromkeys(fields, object)
    return types.new_class(
        name,
        bases,
        {"metaclass": metaclass},
        lambda ns: ns.update(namespace, **fields, __annotations__=annotations),
    )
