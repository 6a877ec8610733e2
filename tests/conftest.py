import os

import equinox as eqx
import hypothesis
import jax
import pytest


jax.config.update("jax_enable_x64", True)

# A test runs its programs once, and nine tenths of its time are their compilation: XLA does it in
# half the time without optimizing. The tests of the last digits optimize, and with XLA_FLAGS= all
# do. Not every release of XLA knows these flags, and it refuses to start with unknown ones.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
flags = os.environ.get("XLA_FLAGS")
if flags != "" and FAST not in (flags or "") and (0, 10) <= jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{flags or ''} {FAST}".strip()


def pytest_report_header():
    return f"XLA_FLAGS: {os.environ.get('XLA_FLAGS')}"


# Compiling falls into the first example, so no deadlines; the same examples in every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _count_of_tests():
    return [0]


@pytest.fixture(autouse=True)
def _few_programs_in_memory(_count_of_tests):
    """Thousands of compiled programs would take all of it."""
    yield
    _count_of_tests[0] += 1
    if _count_of_tests[0] % 100 == 0:
        jax.clear_caches()
        eqx.clear_caches()


@pytest.fixture
def compilations():
    """The compilations so far."""
    count = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)
