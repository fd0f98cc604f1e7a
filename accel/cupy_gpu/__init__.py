"""BLOOM on NVIDIA GPUs, through CuPy and kernels in CUDA C++: `make_backend` is the entry point of bloomref's backend `cupy`."""

from importlib.util import find_spec
from typing import Any


def make_backend(device: str = "") -> Any:
    """The backend on the GPU of that number, or on the one that is CuPy's current device when a model is prepared.

    Imports no CuPy yet. Raises ImportError where it is not installed.
    """
    if find_spec("cupy") is None:
        raise ImportError("cupy is not installed")
    from accel.cupy_gpu.cupy_backend import CupyBackend
    from accel.cupy_gpu.probe import device_number, find_device

    number = device_number(device)
    return CupyBackend("cupy" if number is None else f"cupy:{number}", lambda: find_device(number))
