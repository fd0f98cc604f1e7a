"""Kernels on the CPU: where g++ or NVIDIA's headers are missing, these tests are skipped with the reason."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import toolchain
from emulated_device import EmulatedDevice

from bloomref.runtime import registry

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> type[EmulatedDevice]:
    toolchain.require(toolchain.emulator_missing(), request.config)
    return EmulatedDevice


@pytest.fixture(scope="session")
def device(emulator: type[EmulatedDevice]) -> EmulatedDevice:
    """An sm_90 that runs blocks and threads in an order drawn at random."""
    return emulator()


@pytest.fixture
def emulated_backend(emulator: type[EmulatedDevice], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: ARG001
    """The name of a backend that is installed for this test, in this process and in those that it starts."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    yield "cupy-emulated"
    sys.modules.pop("emulated_cupy", None)
