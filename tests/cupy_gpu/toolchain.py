"""Finds g++ and the compiler and headers of NVIDIA's wheels, and explains what is missing."""

import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = "pip install 'bloomref[cuda-check]'"


@cache
def wheel_file(pattern: str) -> Path | None:
    """Return the first file that matches in the folder of NVIDIA's packages."""
    spec = find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return min((path for root in roots for path in Path(root).glob(pattern)), default=None)


def headers() -> Path | None:
    """Return the folder of cuda_fp16.h."""
    header = wheel_file("*/include/cuda_fp16.h")
    return header.parent if header else None


def emulator_missing() -> str | None:
    """Return the reason why kernels cannot run on this CPU, or None."""
    if shutil.which("g++") is None:
        return "g++ is not installed: the kernels are compiled for the CPU with it"
    return None if headers() else f"cuda_fp16.h is not installed: {PACKAGES}"


def compiler_missing() -> str | None:
    """Return the reason why kernels cannot be compiled for GPUs on this machine, or None."""
    patterns = {"NVRTC": "*/lib/libnvrtc.so*", "cuda_fp16.h": "*/include/cuda_fp16.h", "nvdisasm": "*/bin/nvdisasm"}
    missing = [name for name, pattern in patterns.items() if wheel_file(pattern) is None]
    return f"{', '.join(missing)} not installed: {PACKAGES}" if missing else None


def require(reason: str | None, config: pytest.Config) -> None:
    """Skip the test if `reason` says that something is missing, or fail it with `--require-backend cupy-emulated`."""
    if reason is None:
        return
    if "cupy-emulated" in config.getoption("--require-backend"):
        pytest.fail(reason)
    pytest.skip(reason)
