"""The examples of the documentation run, and name everything that is public."""

import doctest
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import hopfield_layers as hl
from hopfield_layers import plotting, testing


# beartype chooses the items to check with the random module, which Hypothesis warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / ".docs" / "pages"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    namespace = {}
    with jax.enable_x64(False):
        for block in blocks:
            exec(block, namespace)


def test_readme_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^]]*\]\((.*?)\)", README)
    assert pictures
    for picture in pictures:
        assert 1_000 < (ROOT / picture).stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_pages_are_there(page):
    for link in re.findall(r"\]\(((?!http).*?)\)", page.read_text()):
        assert link == "gallery.md" or (page.parent / link).exists(), link


def test_readme_is_short():
    assert len(README.split()) <= 800


def test_reference_lists_every_name():
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    entries = set(re.findall(r"^::: hopfield_layers\.(\S+)$", reference, re.MULTILINE))
    expected = {name for module, name in PUBLIC if module is hl}
    for module in (testing, plotting):
        short = module.__name__.rpartition(".")[2]
        values = {name for name, value in vars(module).items() if not inspect.ismodule(value)}
        expected |= {f"{short}.{name}" for name in values if not name.startswith("_")}
    assert expected <= entries
