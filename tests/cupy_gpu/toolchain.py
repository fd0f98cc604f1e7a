"""Finds g++ and the compiler and headers of NVIDIA's wheels or toolkit, and explains what is missing."""

import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = "pip install 'bloomref[cuda-check]'"
TOOLKITS = ("CUDA_HOME", "CUDA_PATH")
"""Environment variables of the folder of a CUDA toolkit. Without them it is /usr/local/cuda if CuPy is installed."""


@cache
def roots() -> tuple[Path, ...]:
    """Return the folders that may have bin, lib and include of CUDA: those of NVIDIA's packages, then the toolkit's."""
    spec = find_spec("nvidia")
    packages = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    usual = [Path("/usr/local/cuda")] if find_spec("cupy") else []
    toolkits = [Path(os.environ[name]) for name in TOOLKITS if name in os.environ] or usual
    return (*(root for folder in packages for root in sorted(folder.glob("*"))), *toolkits)


def cuda_file(*patterns: str) -> Path | None:
    """Return the first file that matches one of the patterns in one of the folders of CUDA."""
    paths = (path for root in roots() for pattern in patterns for path in sorted(root.glob(pattern)))
    return next(paths, None)


def library(name: str) -> Path | None:
    """Return a shared library of CUDA, such as libnvrtc."""
    return cuda_file(f"lib/{name}.so*", f"lib64/{name}.so*")


def headers() -> Path | None:
    """Return the folder of cuda_fp16.h for NVRTC, which has the other headers built in."""
    header = cuda_file("include/cuda_fp16.h")
    return header.parent if header else None


def host_headers() -> Path | None:
    """Return the folder of cuda_fp16.h for g++, which also needs the folder crt. Some wheels lack it."""
    header = cuda_file("include/crt/host_defines.h")
    return header.parent.parent if header and (header.parent.parent / "cuda_fp16.h").exists() else None


def emulator_missing() -> str | None:
    """Return the reason why kernels cannot run on this CPU, or None."""
    if shutil.which("g++") is None:
        return "g++ is not installed: the kernels are compiled for the CPU with it"
    return None if host_headers() else f"cuda_fp16.h and its folder crt are not installed: {PACKAGES}"


def compiler_missing() -> str | None:
    """Return the reason why kernels cannot be compiled for GPUs on this machine, or None."""
    tools = {"NVRTC": library("libnvrtc"), "cuda_fp16.h": headers(), "nvdisasm": cuda_file("bin/nvdisasm")}
    missing = [name for name, path in tools.items() if path is None]
    return f"{', '.join(missing)} not installed: {PACKAGES}" if missing else None


def require(reason: str | None, config: pytest.Config) -> None:
    """Skip the test if `reason` says that something is missing, or fail it with `--require-backend cupy-emulated`."""
    if reason is None:
        return
    if "cupy-emulated" in config.getoption("--require-backend"):
        pytest.fail(reason)
    pytest.skip(reason)
