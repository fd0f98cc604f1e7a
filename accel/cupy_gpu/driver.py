"""cuLaunchKernelEx, a kernel launch with attributes, through ctypes.

It is the one call of the CUDA driver API that CuPy lacks.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

OLDEST = 12030
"""First driver API version whose captured graphs keep programmatic dependencies."""
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h, with the one kind of value that is used here."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("number_of_attributes", ctypes.c_uint),
    )


@cache
def library() -> Any:
    """Return the driver's library, or None if it is not installed or too old for the call."""
    try:
        return typed(ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    except (OSError, AttributeError):
        return None


def typed(driver: Any) -> Any:
    """Declare the argument types of the call in a loaded library, and return the library."""
    driver.cuLaunchKernelEx.argtypes = (ctypes.POINTER(LaunchConfig), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return driver


def launch_early(
    function: int, grid: tuple[int, int, int], block: int, shared: int, stream: int, arguments: Sequence[Any]
) -> None:
    """Queue a kernel that may start before the preceding kernel has completed (programmatic dependent launch).

    Args:
        function: Address of a CUfunction.
        grid: Thread blocks in x, y and z.
        block: Threads per block.
        shared: Bytes of dynamic shared memory.
        stream: Address of a CUstream.
        arguments: Kernel arguments as ctypes numbers; a pointer is a c_void_p.

    Raises:
        RuntimeError: The driver returned an error code.
    """
    early = LaunchAttribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
    config = LaunchConfig(grid, (block, 1, 1), shared, stream, ctypes.pointer(early), 1)
    addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    status = library().cuLaunchKernelEx(ctypes.byref(config), function, addresses, None)
    if status:
        raise RuntimeError(
            f"cuLaunchKernelEx failed: CUDA driver error {status}; set the device's `starts_early = False` to avoid it"
        )
