"""Executes the shape annotations of bloomref; adds `--network`, `--require-backend` and `--emulated-cupy`."""

import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import install_import_hook

# The modules whose arrays have named axes. Front doors are left out: they must refuse wrong types themselves.
SHAPED = ["bloomref.alibi", "bloomref.params", "bloomref.reference", "bloomref.runtime.engine"]

settings.register_profile("bloomref", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("fast", settings.get_profile("bloomref"), max_examples=25)
settings.register_profile("emulated", settings.get_profile("bloomref"), max_examples=1)
settings.load_profile("bloomref")
EMULATED_CUPY = Path(__file__).parent / "cupy_gpu/plugin"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--network", action="store_true", help="also run the tests that load real checkpoints from the hub"
    )
    parser.addoption(
        "--require-backend", action="append", default=[], help="fail where this backend is not available, do not skip"
    )
    parser.addoption(
        "--emulated-cupy",
        action="store_true",
        help="add the backend cupy-emulated, CUDA kernels on the CPU, and try one example of each property on it",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["BLOOMREF_COMPILE_FIRST"] = "1"  # no test leaves a process behind that compiles kernels
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so; tests press Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("markexpr") != "not slow":
        # every call is checked against its annotations, but in the fast tests, of which that is a third of the time
        install_import_hook(SHAPED, "beartype.beartype")
    else:
        settings.load_profile("fast")
    if config.getoption("--emulated-cupy"):
        sys.path.insert(0, str(EMULATED_CUPY))  # as if it were installed
        settings.load_profile("emulated")
        config.getoption("--require-backend").append("cupy-emulated")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without the garbage collector: to walk their modules again and again is a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        first_example()  # hypothesis 6.120 asks the collector at its first example who refers to its random numbers
        gc.freeze()  # the collector does not walk the modules later, and knows nothing of them any more
        gc.enable()


@settings(max_examples=1, database=None)
@given(st.none())
def first_example(_: None) -> None:
    """An example without a test."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--network"):
        return
    for item in items:
        if item.get_closest_marker("network"):  # not `in item.keywords`, which holds folder names too
            item.add_marker(pytest.mark.skip(reason="loads real checkpoints; run with --network"))
