"""The rules of the house that can be measured: imports, types, sizes, classes and conversions."""

import ast
import collections
import doctest
import importlib
import importlib.metadata
import inspect
import io
import pathlib
import pkgutil
import re
import statistics
import subprocess
import sys
import tokenize
import types
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import pytest

import hopfield_layers as hl
from hopfield_layers import _conversion


ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "hopfield_layers"
SOURCES = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def imported(path: pathlib.Path, program: ast.AST) -> dict[str, str]:
    """The full names of what a program imports in any of its lines, by the names that it uses."""
    package, names = path.relative_to(ROOT).parent.parts, {}
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
    return names


def package_imports() -> dict[str, set[str]]:
    """For each module or folder at the top of the package, the others that it imports.

    An import of the package itself, or of a name from it, counts as one of "hopfield_layers".
    """
    tops = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    graph: dict[str, set[str]] = {name: set() for name in tops.values() if name != "__init__"}
    for path, name in tops.items():
        for module in imported(path, ast.parse(SOURCES[path])).values():
            first, second, *_ = *module.split("."), ""
            if name in graph and first == PACKAGE.name and second != name:
                graph[name].add(second if second in graph else first)
    return graph


# Each may import from those in lines above it, and from nothing else of the package.
ORDER = [
    ["_conversion", "_meshes", "_trees"],
    ["_numerics"],
    ["model"],
    ["lagrangians"],
    ["layers", "synapses", "weights"],
    ["layer_constructors", "network"],
]
DYNAMICS = {"_conversion", "_meshes", "_numerics", "_trees", "model"}


def test_imports_go_one_way():
    graph = package_imports()
    above: set[str] = set()
    for line in ORDER:
        for name in line:
            assert graph.pop(name) <= above, name
        above |= set(line)
    assert graph.pop("dynamics") <= DYNAMICS
    for name in ("plotting", "testing"):
        assert graph.pop(name) <= above | {"dynamics", PACKAGE.name}, name
    assert not graph


def test_the_core_is_imported_without_optional_packages():
    optional = ("hypothesis", "tqdm", "matplotlib")
    code = f"import sys, hopfield_layers; print([m for m in {optional} if m in sys.modules])"
    assert output(code) == "[]"


def test_optional_modules_are_imported_at_their_first_use():
    code = """
import sys
import hopfield_layers as hl
assert hl.__version__
assert "hypothesis" not in sys.modules and "matplotlib" not in sys.modules
assert hl.testing.LAWS and "hypothesis" in sys.modules and "matplotlib" not in sys.modules
assert hl.plotting.plot_energy and "matplotlib" in sys.modules
print(hl.__version__)
"""
    assert output(code) == importlib.metadata.version("hopfield_layers") == hl.__version__
    with pytest.raises(AttributeError, match="no attribute 'pictures'"):
        hl.pictures  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def output(code: str) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def test_tests_never_import_benchmarks():
    for path in (ROOT / "tests").glob("*.py"):
        modules = imported(path, ast.parse(path.read_text())).values()
        assert not [module for module in modules if module.split(".")[0] == "benchmarks"], path


def test_annotations_say_more_than_any():
    annotated = [
        (f"{path.name}:{function.lineno} {argument.arg}", ast.unparse(argument.annotation))
        for path, text in SOURCES.items()
        for function in functions(text)
        for argument in arguments(function)
        if argument.annotation is not None
    ]
    # Only a bare `Any` counts, as `dict[str, Any]` and `Callable[..., Any]` do say something.
    anything = [place for place, annotation in annotated if annotation in ("Any", "typing.Any")]
    assert len(annotated) > 100
    assert len(anything) <= 0.02 * len(annotated), anything


def arguments(function: Function) -> list[ast.arg]:
    """All parameters of a function."""
    each = function.args
    variable = [argument for argument in (each.vararg, each.kwarg) if argument is not None]
    return [*each.posonlyargs, *each.args, *each.kwonlyargs, *variable]


def test_modules_are_short():
    lines = {
        str(path.relative_to(ROOT)): text.count("\n")
        for path, text in SOURCES.items()
        if path.name != "__init__.py"
    }
    assert not {name: count for name, count in lines.items() if count > 350}
    assert statistics.median(lines.values()) <= 150


def test_functions_are_short():
    lengths = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}": body_length(function)
        for path, text in SOURCES.items()
        for function in functions(text)
    }
    assert not {name: length for name, length in lengths.items() if length > 60}


def test_lambdas_are_few():
    # Diffrax, Equinox, Lineax and Optimistix have 1.0 to 1.5 for each 100 lines of code.
    nodes = [node for text in SOURCES.values() for node in ast.walk(ast.parse(text))]
    lambdas = [node for node in nodes if isinstance(node, ast.Lambda)]
    assert len(lambdas) <= 0.015 * sum(map(code_lines, SOURCES.values()))


def code_lines(text: str) -> int:
    """The lines of a module without blank lines, comments and docstrings."""
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT)
        for line in range(token.start[0], token.end[0] + 1)
        if token.string.strip()
    }
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | Function)
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            code -= set(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(code)


def body_length(function: Function) -> int:
    """The lines of a function, signature included, without its docstring."""
    length = line_count(function)
    if ast.get_docstring(function) is not None:
        length -= line_count(function.body[0])
    return length


def line_count(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.fixture(scope="module")
def classes() -> list[type]:
    """All Equinox modules of the package."""
    for module in pkgutil.walk_packages(hl.__path__, f"{hl.__name__}."):
        importlib.import_module(module.name)

    def descendants(cls: type) -> set[type]:
        direct = set(cls.__subclasses__())
        return direct.union(*map(descendants, direct))

    found = {cls for cls in descendants(eqx.Module) if is_ours(cls)}
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == PACKAGE.name


def is_abstract(cls: type) -> bool:
    unset = ("__abstractvars__", "__abstractclassvars__")
    return inspect.isabstract(cls) or any(getattr(cls, name, None) for name in unset)


def test_classes_are_abstract_or_final(classes):
    assert len(classes) > 30
    subclassed = [
        f"{cls.__qualname__} subclasses the concrete {base.__qualname__}"
        for cls in classes
        for base in cls.__mro__[1:]
        if is_ours(base) and not is_abstract(base)
    ]
    assert not subclassed


# Equinox calls each __check_init__ of the bases, and makes __init__ for classes without one.
COOPERATIVE = ("__init__", "__check_init__", "__init_subclass__")


def concrete_methods(cls: type) -> set[str]:
    """The names of the methods and properties that the class itself implements."""
    return {
        name
        for name, value in vars(cls).items()
        if (callable(value) or isinstance(value, property | classmethod | staticmethod))
        and not getattr(value, "__isabstractmethod__", False)
        and not inspect.isclass(value)
        and name not in COOPERATIVE
    }


def test_concrete_methods_are_not_overridden(classes):
    overridden = [
        f"{cls.__qualname__}.{name} overrides that of {base.__qualname__}"
        for cls in classes
        for base in cls.__mro__[1:]
        if is_ours(base)
        for name in sorted(concrete_methods(base) & set(vars(cls)))
    ]
    assert not overridden


def example_programs() -> Iterator[tuple[pathlib.Path, ast.Module]]:
    """The blocks of the pages, the docstrings' examples, tests, examples and benchmarks."""
    for page in [ROOT / "README.md", *(ROOT / ".docs" / "pages").glob("*.md")]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            yield page, ast.parse(block)
    for folder in ("hopfield_layers", "tests", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            program = ast.parse(path.read_text())
            if folder != "hopfield_layers":  # whose classes the tests above check
                yield path, program
            for node in ast.walk(program):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
                    yield path, ast.parse("".join(example.source for example in examples))


def class_bases(path: pathlib.Path, program: ast.Module) -> Iterator[str | ast.ClassDef]:
    """The bases of all classes: those of the same program, and the full names of the others."""
    names = imported(path, program)
    classes = {node.name: node for node in ast.walk(program) if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        for base in node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            first, *attributes = name.split(".")
            yield classes.get(name) or ".".join([names.get(first, first), *attributes])


def test_classes_in_examples_are_abstract_or_final():
    bases = [
        (path.name, base)
        for path, program in example_programs()
        for base in class_bases(path, program)
    ]
    ours = [
        (name, base)
        for name, base in bases
        if isinstance(base, str) and base.split(".")[0] in (PACKAGE.name, "tests")
    ]
    assert len(ours) > 10
    assert not [(name, base) for name, base in ours if not is_abstract(pkgutil.resolve_name(base))]
    # A base that a program defines itself has an abstract method or field.
    local = [(name, base) for name, base in bases if isinstance(base, ast.ClassDef)]
    abstract = re.compile("abstractmethod|Abstract(Class)?Var")
    assert not [
        (name, base.name)
        for name, base in local
        if not any(abstract.search(ast.unparse(statement)) for statement in base.body)
    ]


def conversions(run: Callable[[], object]) -> dict[str, int]:
    """How often a run calls each function of `_conversion`."""
    calls = collections.Counter()

    def count(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == _conversion.__file__:
            calls[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return {name: calls[name] for name in ("as_float", "as_state", "widened")}


@pytest.mark.parametrize(("flow", "counts"), [("state", (6, 4, 2)), ("activation", (4, 2, 2))])
def test_conversions(flow, counts):
    layers = {"x": hl.TanhLayer(6), "y": hl.SoftmaxLayer(4, tau=0.1)}
    synapses = {"W": hl.DenseSynapse((6, 4), key=jax.random.key(0))}
    ham = hl.HAM(layers, synapses, [(("x", "y"), "W")])
    x, field = ham.init_states(), hl.EnergyFlow(ham, flow)
    in_field = conversions(lambda: jax.make_jaxpr(lambda x: field(0.0, x))(x))
    assert in_field == dict(zip(("as_float", "as_state", "widened"), counts, strict=True))
    jax.clear_caches()  # so that the solve is traced even if another test had the same one
    in_solve = conversions(lambda: hl.solve(ham, x, 1.0, flow=flow))
    most = {"as_float": 42, "as_state": 28, "widened": 12}
    assert not {name: count for name, count in in_solve.items() if not 1 <= count <= most[name]}


def test_the_map_of_the_suite_names_every_file():
    names = {path.stem for path in (ROOT / "tests").glob("*.py")} - {"__init__", "conftest"}
    documentation = (ROOT / "tests" / "__init__.py").read_text()
    assert names == set(re.findall(r"^\| `(\w+)` \|", documentation, re.MULTILINE))
