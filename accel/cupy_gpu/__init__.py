"""BLOOM on NVIDIA GPUs, with CuPy and CUDA C++ kernels.

`make_backend` is the entry point of bloomref's backend `cupy`.
"""

from importlib.util import find_spec
from typing import Any


def make_backend(device: str = "") -> Any:
    """Return the backend on one GPU. CuPy is not imported yet.

    Args:
        device: Number of the GPU. An empty string means CuPy's current device at the time a model is prepared.

    Raises:
        ImportError: CuPy is not installed.
        InvalidInput: `device` is not a number.
    """
    if find_spec("cupy") is None:
        raise ImportError("cupy is not installed")
    from accel.cupy_gpu.cupy_backend import CupyBackend
    from accel.cupy_gpu.probe import device_number, find_device

    number = device_number(device)
    return CupyBackend("cupy" if number is None else f"cupy:{number}", lambda: find_device(number))
