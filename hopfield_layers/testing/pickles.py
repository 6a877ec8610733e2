"""Objects as expressions that restore them in another process, with the code of a script's own."""

import base64
import inspect
import io
import pickle
import sys
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

import cloudpickle
import equinox as eqx


def restored(value: object) -> str:
    """An expression for the object, which needs `base64` and `pickle`."""
    pickled = io.BytesIO()
    try:
        _Pickler(pickled).dump(value)
        pickle.loads(pickled.getvalue())
    except Exception:  # which error depends on what can't be pickled, or restored
        return "...  # the one that was checked"
    return f'pickle.loads(base64.b85decode("{base64.b85encode(pickled.getvalue()).decode()}"))'


class _Pickler(cloudpickle.Pickler):
    """Pickles functions and classes that can't be imported with their code.

    Those of Equinox are executed anew: cloudpickle would make an empty class first, and JAX would
    register it without its fields.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and issubclass(obj, eqx.Module) and not _is_imported(obj):
            source = textwrap.dedent(inspect.getsource(obj))
            return _class_of, (obj.__name__, source, _names_used(obj, source))
        return super().reducer_override(obj)


def _is_imported(cls: type) -> bool:
    return cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def _class_of(name: str, source: str, names: dict[str, Any]) -> type:
    exec(source, names)
    return names[name]


def _names_used(cls: type, source: str) -> dict[str, Any]:
    """The values of the names that the source of a class uses, but that of the class itself."""
    known = dict(vars(sys.modules[cls.__module__]))
    for function in filter(inspect.isfunction, vars(cls).values()):
        known |= inspect.getclosurevars(function).nonlocals
    known |= {base.__name__: base for base in cls.__bases__}
    used = set(_names_in(compile(source, cls.__name__, "exec"))) - {cls.__name__}
    return {"__name__": "__main__"} | {name: known[name] for name in used & set(known)}


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
