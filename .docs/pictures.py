"""A hook of the documentation: what the examples of `hopfield_layers.plotting` draw."""

import doctest
import io

import jax
import jax.numpy as jnp
import matplotlib as mpl
from mkdocs.structure.files import File

import hopfield_layers as hl


def on_files(files, config):
    """Adds the picture of each function below `api/pictures/`."""
    mpl.use("agg")
    for name in hl.plotting.__all__:
        uri = f"api/pictures/{name}.png"
        files.append(File.generated(config, uri, content=picture(name)))
    return files


def picture(name: str) -> bytes:
    """The axes that the example in a function's docstring ends with, as PNG."""
    docstring = getattr(hl.plotting, name).__doc__
    names = {"hl": hl, "jax": jax, "jnp": jnp}
    for example in doctest.DocTestParser().get_examples(docstring):
        exec(example.source, names)
    file = io.BytesIO()
    names["ax"].figure.savefig(file, dpi=110)
    return file.getvalue()
