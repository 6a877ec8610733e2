"""Programs that reproduce violations contain the code of scripts, and leave a process as it is."""

import base64
import dataclasses
import json
import pickle
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Shaped

from hopfield_layers.testing import Violation
from hopfield_layers.testing.pickles import dumps

from .test_checks import program_of


SCRIPT = Path(__file__).parent / "wrong_script.py"
# Defines values(synapse), its energy and gradient. As a program it prints those of the pickles that
# it reads.
LOAD = """
    import base64, json, pickle, sys
    import jax
    import jax.numpy as jnp
    jax.config.update("jax_enable_x64", True)
    def values(synapse):
        gs = jnp.array([1.0, 0.5, 2.0]), jnp.array([1.0, 2.0])
        results = jax.value_and_grad(synapse.energy)(*gs)
        return [leaf.tolist() for leaf in jax.tree.leaves(results)]
    if __name__ == "__main__":
        texts = json.load(sys.stdin)
        synapses = {name: pickle.loads(base64.b85decode(text)) for name, text in texts.items()}
        print(json.dumps({name: values(synapse) for name, synapse in synapses.items()}))
"""


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT), run_name="__main__")


def run(program, tmp_path, text=""):
    return subprocess.run(
        [sys.executable, "-c", program], input=text, capture_output=True, text=True, cwd=tmp_path
    )


def test_classes_of_a_script(script, tmp_path):
    names: dict = {}
    exec(textwrap.dedent(LOAD), names)
    pickled = {name: dumps(synapse) for name, synapse in script["SYNAPSES"].items()}
    texts = {name: base64.b85encode(data).decode() for name, data in pickled.items()}
    other = run(textwrap.dedent(LOAD), tmp_path, json.dumps(texts))
    assert other.returncode == 0, other.stderr
    found = json.loads(other.stdout)
    for name, synapse in script["SYNAPSES"].items():
        jax.tree.map(np.testing.assert_array_equal, found[name], names["values"](synapse))


def test_the_program_of_a_script(script, tmp_path):
    other = run(program_of(script["report"]), tmp_path)
    assert "Violation: gradient:" in other.stderr, other.stderr


def test_the_process_stays_as_it_is(script):
    def attributes():
        classes = (
            "Fields",
            "AbstractScaled",
            "Options",
            "Kind",
            "InheritsInit",
            "AbstractWithInit",
        )
        return {name: dict(vars(script[name])) for name in classes}

    # pickle itself keeps the names of a class's slots in the class.
    for synapse in script["SYNAPSES"].values():
        dumps(synapse)
    before = attributes()
    script["Options"].made.append("later")
    with pytest.raises(Violation, match=r"^gradient:"):
        exec(program_of(script["report"]), {})
    copies = [pickle.loads(dumps(synapse)) for synapse in script["SYNAPSES"].values()]
    assert attributes() == before
    assert script["Options"].made == ["later"]
    assert not any(type(copy) in map(type, script["SYNAPSES"].values()) for copy in copies)
    script["Options"].made.clear()


@pytest.mark.parametrize("thing", [jax.Array, dataclasses.MISSING])
def test_what_is_compared_by_identity(thing):
    assert pickle.loads(dumps(thing)) is thing


@pytest.mark.parametrize("dtype", [Float, Shaped])
def test_annotations(dtype):
    annotation = pickle.loads(dumps(dtype[jax.Array, "n ..."]))
    assert isinstance(jnp.ones((2, 3)), annotation)
    assert not isinstance(jnp.ones(()), annotation)


def test_what_would_be_lost_is_an_error(script):
    with pytest.raises(pickle.PicklingError, match="registered with JAX"):
        dumps(script["HAS_NODE"])
