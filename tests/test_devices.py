"""Programs of several devices give what one device gives, and gather nothing for it."""

import os
import pathlib
import subprocess
import sys

import pytest

from .devices import PROGRAMS


ROOT = pathlib.Path(__file__).parents[1]
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
EIGHT_DEVICES = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_on_eight_devices(name):
    command = [sys.executable, "-m", "tests.devices", name]
    options = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    run = subprocess.run(command, env=os.environ | EIGHT_DEVICES, cwd=ROOT, **options)
    assert run.returncode == 0, run.stderr
