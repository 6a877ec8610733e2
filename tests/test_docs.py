"""The examples of the documentation run, and name everything that is public."""

import doctest
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import hopfield_layers as hl
from hopfield_layers import testing


# beartype chooses the items to check with the random module, which Hypothesis warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


PUBLIC = [(hl, name) for name in hl.__all__] + [
    (testing, name)
    for name, value in vars(testing).items()
    if inspect.isfunction(value) and not name.startswith("_")
]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_docstring(module, name):
    documentation = inspect.getdoc(getattr(module, name))
    assert documentation
    names = {"hl": hl, "jax": jax, "jnp": jnp}  # as the package's docstring says
    example = doctest.DocTestParser().get_doctest(documentation, names, name, None, None)
    assert example.examples
    with jax.enable_x64(False):
        options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
        failures, _ = doctest.DocTestRunner(verbose=False, optionflags=options).run(example)
    assert failures == 0


def test_public_names():
    assert set(hl.__all__) == {
        name
        for name, value in vars(hl).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def test_readme_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace = {}
    with jax.enable_x64(False):
        for block in blocks:
            exec(block, namespace)


def test_readme_pictures_are_there_and_small():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for picture in pictures:
        assert 1_000 < (ROOT / picture).stat().st_size < 150_000


def test_readme_lists_every_name():
    for name in hl.__all__:
        assert re.search(rf"\b{name}\b", README), name
