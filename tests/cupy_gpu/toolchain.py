"""Where the compiler of NVIDIA's wheels, its headers and g++ are; why not, where they are not."""

import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = "pip install 'bloomref[cuda-check]'"


@cache
def wheel_file(pattern: str) -> Path | None:
    """The first file that matches under the folder of NVIDIA's packages."""
    spec = find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for root in roots for path in Path(root).glob(pattern))
    return found[0] if found else None


def headers() -> Path | None:
    """The folder of cuda_fp16.h."""
    header = wheel_file("*/include/cuda_fp16.h")
    return header.parent if header else None


def emulator_missing() -> str | None:
    """Why kernels cannot run on the CPU here."""
    if shutil.which("g++") is None:
        return "g++ is not installed: the kernels are compiled for the CPU with it"
    return None if headers() else f"cuda_fp16.h is not installed: {PACKAGES}"


def compiler_missing() -> str | None:
    """Why kernels cannot be compiled for devices here."""
    wanted = {"NVRTC": "*/lib/libnvrtc.so*", "cuda_fp16.h": "*/include/cuda_fp16.h", "nvdisasm": "*/bin/nvdisasm"}
    missing = [name for name, pattern in wanted.items() if wheel_file(pattern) is None]
    return f"{', '.join(missing)} not installed: {PACKAGES}" if missing else None


def require(reason: str | None, config: pytest.Config) -> None:
    """Skip where something is missing, or fail where `--require-backend cupy-emulated` says that it must be there."""
    if reason is None:
        return
    if "cupy-emulated" in config.getoption("--require-backend"):
        pytest.fail(reason)
    pytest.skip(reason)
