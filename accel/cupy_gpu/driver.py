"""The one call of CUDA's driver that CuPy does not have: cuLaunchKernelEx, a launch with attributes. Through ctypes."""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

OLDEST = 12030
"""Driver API version from which a captured graph keeps programmatic dependencies."""
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h, its value as the one kind that is used here."""

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
    """The driver's library, or None where there is none or it is too old for the call."""
    try:
        return typed(ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    except (OSError, AttributeError):
        return None


def typed(found: Any) -> Any:
    """The same library, told the types of the call's arguments."""
    found.cuLaunchKernelEx.argtypes = (ctypes.POINTER(LaunchConfig), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return found


def launch_early(
    function: int, grid: tuple[int, int, int], block: int, shared: int, stream: int, arguments: Sequence[Any]
) -> None:
    """Queue a kernel that may start before the one before it is done: programmatic dependent launch.

    Args:
        function: a CUfunction; `stream` a CUstream.
        arguments: ctypes numbers; a pointer is a c_void_p.

    Raises:
        RuntimeError: with the driver's code.
    """
    early = LaunchAttribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
    config = LaunchConfig(grid, (block, 1, 1), shared, stream, ctypes.pointer(early), 1)
    behind = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    status = library().cuLaunchKernelEx(ctypes.byref(config), function, behind, None)
    if status:
        raise RuntimeError(
            f"cuLaunchKernelEx failed: CUDA driver error {status}; `starts_early = False` of the device does without it"
        )
