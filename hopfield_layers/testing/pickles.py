"""Pickles of models whose classes and functions are defined in a script or in a function."""

import copyreg
import dataclasses
import inspect
import io
import pickle
import sys
import types
import weakref

import cloudpickle
import equinox as eqx
import jax


def dumps(model: object) -> bytes:
    """The pickle of a model, with the code of what a script or a function defines.

    The code is bytecode, which another minor version of Python can't read. Raises an error, of one
    kind or another, if a part can't be pickled or if another process couldn't load it.
    """
    with io.BytesIO() as file:
        _Pickler(file).dump(model)
        pickled = file.getvalue()
    copy = _OtherProcess(io.BytesIO(pickled)).load()
    # The copy of a class that was registered with JAX by itself is not: its instances are leaves.
    if _leaf_types(model) != _leaf_types(copy):
        raise pickle.PicklingError("A class that is registered with JAX would be lost.")
    return pickled


def _leaf_types(tree: object) -> list[tuple[str, str]]:
    """The names of the classes of the leaves; the classes of a script are others in a copy."""
    classes = map(type, jax.tree.leaves(tree))
    return [(cls.__module__, cls.__qualname__) for cls in classes]


class _OtherProcess(pickle.Unpickler):
    """Loads as another process would, whose `__main__` is another module."""

    def find_class(self, module, name):
        if module == "__main__":
            raise pickle.UnpicklingError(f"{name} is defined in a script.")
        return super().find_class(module, name)


class _Pickler(cloudpickle.Pickler):
    """Pickles classes of Equinox, which `cloudpickle.Pickler` can't do (Equinox #231).

    cloudpickle makes a class without attributes and sets them afterwards, because methods may refer
    to their class. A class of Equinox is registered with JAX when it is made, and needs its fields
    and its kind of `__init__` then.
    """

    def reducer_override(self, obj):
        if isinstance(obj, jax.custom_vjp):  # its `__new__` has an argument
            return jax.custom_vjp, (obj.fun,), vars(obj)
        if isinstance(obj, weakref.ref):  # jaxtyping's decorator has one
            return weakref.ref, (obj(),)
        # Markers such as `dataclasses.MISSING` are compared by identity, and must not be copied.
        name = _name_beside_class(obj)
        if name is not None:
            return name
        # The types of jaxtyping's annotations have a reducer, which cloudpickle would leave aside.
        if type(obj) in copyreg.dispatch_table:
            return NotImplemented
        reduced = super().reducer_override(obj)
        if not isinstance(obj, type) or not isinstance(reduced, tuple) or len(reduced) < 6:
            return reduced
        # The last two arguments would let cloudpickle find the class itself in this process, and
        # set its attributes to copies.
        make, (*args, _, _), *state = reduced
        if not isinstance(obj, type(eqx.Module)):
            return make, (*args, None, None), *state
        own = inspect.get_annotations(obj)
        fields = [f for f in dataclasses.fields(obj) if f.name in own]
        is_static = {f.name: f.metadata.get("static", False) for f in fields}
        has_dataclass_init = vars(obj)["__dataclass_params__"].init
        return _module_class, (*args, is_static, has_dataclass_init), *state


def _name_beside_class(obj):
    """The name of an object that is a global of the module that defines its class."""
    beside = sys.modules.get(type(obj).__module__)
    # pickle looks for the name in the module of the object, which may be another one.
    module = sys.modules.get(getattr(obj, "__module__", ""))
    if beside is None or beside.__name__ == "__main__":
        return None
    names = (name for name, value in vars(beside).items() if value is obj)
    return next((name for name in names if getattr(module, name, None) is obj), None)


def _module_class(metaclass, name, bases, namespace, is_static, has_dataclass_init):
    """A class that has its fields, but not yet its other attributes."""
    # Without `init=False` the order of fields with and without a default would be checked.
    fields = {key: eqx.field(static=static, init=False) for key, static in is_static.items()}
    attributes = {**namespace, **fields, "__annotations__": dict.fromkeys(fields, object)}
    if not has_dataclass_init:
        attributes["__init__"] = lambda self: None
    cls = types.new_class(name, bases, {"metaclass": metaclass}, lambda ns: ns.update(attributes))
    if not has_dataclass_init:
        del cls.__init__  # it may be inherited
    # Its methods are set later, and attributes among them may be instances, which an abstract class
    # can't have.
    cls.__abstractmethods__ = frozenset()
    return cls
