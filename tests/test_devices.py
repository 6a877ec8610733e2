"""Programs of several devices give what one device gives, and gather nothing for it."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from .devices import PROGRAMS


ROOT = pathlib.Path(__file__).parents[1]
# With the flags of conftest.py, which compile faster.
FLAGS = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
EXAMPLE = ("examples/distributed_retrieval.py", "--quick")
EIGHT_DEVICES = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_on_eight_devices(name):
    command = [sys.executable, "-m", "tests.devices", name]
    options = {"capture_output": True, "text": True, "timeout": 600, "check": False}
    run = subprocess.run(command, env=os.environ | EIGHT_DEVICES, cwd=ROOT, **options)
    assert run.returncode == 0, run.stderr


@contextlib.contextmanager
def two_processes(*program: str) -> Iterator[list[subprocess.Popen]]:
    """Two processes of two devices each, which run the program."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *program, "--coordinator", coordinator, "--processes", "2"]
    flags = FLAGS.replace("count=8", "count=2")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen([*command, "--process", str(i)], env=environment, cwd=ROOT, **streams)
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def outputs_of(*program: str) -> list[str]:
    """The outputs of both processes, which must end without an error."""
    with two_processes(*program) as processes:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def test_two_processes():
    outputs = outputs_of(*EXAMPLE)
    assert "2 processes, 4 devices" in outputs[0]
    assert outputs[0].count(" 1.000 ") == 2, outputs[0]


def test_errors_in_two_processes():
    outputs_of("-m", "tests.two_processes")


def test_a_process_that_dies_is_an_error_in_the_others():
    with two_processes(*EXAMPLE, "--rounds", "1000000", "--heartbeat", "10") as (first, second):
        assert first.stdout is not None
        too_late = threading.Timer(120, first.kill)
        too_late.start()
        assert any(" 1.000 " in line for line in first.stdout)
        too_late.cancel()
        second.kill()
        output, _ = first.communicate(timeout=60)
        assert first.returncode != 0, output
