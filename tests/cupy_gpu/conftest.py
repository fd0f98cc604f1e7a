"""Kernels on the CPU: where g++ or NVIDIA's headers are missing, these tests are skipped with the reason."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "backend"))  # the budget of an error is defined there

import toolchain
from emulated_device import EmulatedDevice


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> type[EmulatedDevice]:
    toolchain.require(toolchain.emulator_missing(), request.config)
    return EmulatedDevice


@pytest.fixture(scope="session")
def device(emulator: type[EmulatedDevice]) -> EmulatedDevice:
    """An sm_90 that runs blocks and threads in an order drawn at random."""
    return emulator()
