"""Detection of the GPU. If none can be used, the error names the cause and the remedy in one sentence."""

import importlib
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from accel.cupy_gpu.device import Device
from bloomref.errors import Unsupported, invalid

PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0")
"""Packages that provide the module `cupy`; only one may be installed."""
OLDEST = {"cupy": (14, 2), "numpy": (2, 1, 2)}
"""Oldest versions: CuPy that keeps compiled kernels by name, and NumPy with which it knows bfloat16."""
OLDEST_ARCH = 75
_NO_DRIVER, _NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice
_NO_GPU = "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it; use another backend"


def device_number(text: str) -> int | None:
    """Parse the device number of a backend's name, "1" of "cupy:1". Returns None for an empty string.

    Raises:
        InvalidInput: `text` is not a number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise invalid("backend", "cupy, or cupy: and the number of a device", repr(f"cupy:{text}"))
    return int(text)


def find_device(number: int | None) -> Device:
    """Return the GPU of that number, or CuPy's current device if `number` is None.

    Raises:
        Unsupported: The GPU cannot be used; the message gives the reason in one sentence.
    """
    _check_packages()
    cupy = _import_cupy()
    count = _count_devices(cupy.cuda.runtime)
    number = cupy.cuda.runtime.getDevice() if number is None else number
    if number >= count:
        known = "cupy:0 alone" if count == 1 else f"cupy:0 to cupy:{count - 1}"
        raise Unsupported(f"there is no device {number}; this machine has {known}")
    device = _open(cupy, number)
    if device.arch < OLDEST_ARCH:
        capability = f"{device.arch // 10}.{device.arch % 10}"
        raise Unsupported(
            f"{device.name} has compute capability {capability}, older than the 7.5 (Turing) needed; use another backend"
        )
    return device


def _open(cupy: Any, number: int) -> Device:
    """Open a device. CuPy loads NVRTC and cuBLAS lazily, so check both first."""
    try:
        cupy.cuda.nvrtc.getVersion()
        from accel.cupy_gpu.cuda_device import cuda_device
    except (ImportError, OSError, RuntimeError) as error:
        raise Unsupported(
            "CuPy does not find cuBLAS or NVRTC, libraries of CUDA; pip install 'bloomref[cuda13]'"
        ) from error
    return cuda_device(number)


def _check_packages() -> None:
    installed = [name for name in PACKAGES if _installed(name)]
    if len(installed) > 1:
        raise Unsupported(
            f"{' and '.join(installed)} overwrite each other's files; pip uninstall {' '.join(installed)}, then install one"
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _import_cupy() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below give better advice than CuPy's warnings
            cupy = importlib.import_module("cupy")
    except Exception as error:  # a missing CUDA library raises ImportError, OSError or AttributeError
        reason = str(error).strip(" =\n").splitlines()[-1:] or [type(error).__name__]
        raise Unsupported(
            f"cupy cannot be imported ({reason[0].strip()}); pip install --force-reinstall 'bloomref[cuda13]'"
        ) from error
    for module in (cupy, np):
        name, oldest = module.__name__, OLDEST[module.__name__]
        if _parts(module.__version__) < oldest:
            needed = ".".join(map(str, oldest))
            raise Unsupported(
                f"{name} {module.__version__} is older than the {needed} needed; pip install --upgrade 'bloomref[cuda13]'"
            )
    return cupy


def _parts(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, such as (14, 2, 0) of 14.2.0rc1."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[a-z+]", version)[0])))


def _count_devices(runtime: Any) -> int:
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            reason = "no NVIDIA driver is loaded on this machine; install one, or use another backend"
        elif error.status == _NO_DRIVER:
            older = " or pip install 'bloomref[cuda12]'" if driver // 1000 == 12 else ""
            reason = f"the NVIDIA driver is for CUDA {_cuda(driver)}, this CuPy for {_cuda(needed)}; update the driver{older}"
        elif error.status == _NO_DEVICE:
            reason = _NO_GPU
        else:
            reason = f"the NVIDIA driver does not answer ({error}); see whether nvidia-smi does"
        raise Unsupported(reason) from error
    if count == 0:
        raise Unsupported(_NO_GPU)
    return count


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
