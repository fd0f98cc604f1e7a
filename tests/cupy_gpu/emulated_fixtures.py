"""Fixtures of tests that run CUDA kernels on the CPU, for the conftest.py of a folder to import.

If g++ or NVIDIA's headers are missing, their tests are skipped with the reason.
"""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import toolchain
from emulated_device import EmulatedDevice

from bloomref.runtime import registry

HERE = Path(__file__).parent
PLUGIN = HERE / "plugin"


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> type[EmulatedDevice]:
    """The class of emulated devices."""
    toolchain.require(toolchain.emulator_missing(), request.config)
    return EmulatedDevice


@pytest.fixture(scope="session")
def device(emulator: type[EmulatedDevice]) -> EmulatedDevice:
    """An emulated sm_90 that runs thread blocks and threads in random order."""
    return emulator()


@pytest.fixture
def emulated_backend(emulator: type[EmulatedDevice], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: ARG001
    """The name of a backend that is installed during the test, in this process and in its child processes."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    folders = (str(PLUGIN), str(HERE), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    yield "cupy-emulated"
    sys.modules.pop("emulated_cupy", None)
