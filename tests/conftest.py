import gc
import os

import equinox as eqx
import hypothesis
import jax
import jaxtyping
import pytest


pytest_plugins = ["pytester"]
jax.config.update("jax_enable_x64", True)

# Tracing makes many long-lived objects. With the default threshold (700 in Python 3.11), collecting
# garbage takes a fifteenth of the time.
gc.set_threshold(200_000, 50, 1000)

# A test runs each of its programs once, so that compilation takes nine tenths of the time, and XLA
# compiles in half of it without optimizing. The tests of the last digits ask for optimization
# (compiling.py); with `XLA_FLAGS= pytest` all programs are optimized. The flags are for these
# releases of JAX alone, as XLA refuses to start with a flag that it doesn't know.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
flags = os.environ.get("XLA_FLAGS")
if flags != "" and FAST not in (flags or "") and (0, 10) <= jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{flags or ''} {FAST}".strip()


def pytest_report_header():
    return f"XLA_FLAGS: {os.environ.get('XLA_FLAGS')}"


# No deadlines, as the first example includes compilation; and the same examples in every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")


TESTS_RUN = pytest.StashKey[int]()


def pytest_runtest_teardown(item):
    """Frees the compiled programs of every hundred tests: thousands would fill the memory."""
    count = item.config.stash.get(TESTS_RUN, 0) + 1
    item.config.stash[TESTS_RUN] = count
    if count % 100 == 0:
        jax.clear_caches()
        eqx.clear_caches()


@pytest.fixture
def compilations():
    """A list that grows by one entry with every compilation.

    Compiled programs are dropped first, so that the count doesn't depend on the tests that ran
    before.
    """
    jax.clear_caches()
    count = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def unchecked_types():
    """Switches the runtime type checks off, for tests of the library's own errors.

    The checks would raise before the library sees an argument of the wrong type.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
