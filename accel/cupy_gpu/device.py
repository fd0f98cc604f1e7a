"""`Device`: the protocol of a GPU, as the host code uses it.

`cuda_device` implements it with CuPy, the tests on the CPU.

Device arrays have the type of the implementation. The host code only uses their `shape`, `dtype`, `nbytes`, `reshape`,
and slices of the first axis.
"""

from collections.abc import Callable
from typing import Any, Protocol

from accel.cupy_gpu.launches import Launch

Array = Any
ALIGNMENT = 16
"""Bytes of the widest load of a kernel. Arrays start on a multiple of it."""


class Device(Protocol):
    """One GPU. Methods that compute are asynchronous: they queue work on the caller's current stream, in call order.

    Attributes:
        name: Name for messages.
        arch: Compute capability without its dot: 90 for sm_90.
        sms: Number of streaming multiprocessors (SMs).
        starts_early: True if kernels that support it (`Launch.starts_early`) use programmatic dependent launch. It may
            be set to False. A captured graph keeps the setting of its capture.
    """

    name: str
    arch: int
    sms: int
    starts_early: bool

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return uninitialised memory whose base address is a multiple of 256 bytes.

        Raises:
            Unsupported: out of memory.
        """
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def upload(self, host: Any) -> Array:
        """Return a copy of a host array. The host array may change afterwards."""
        ...

    def write(self, target: Array, host: Any) -> None:
        """Copy a host array into `target`, of the same shape and dtype. The host array may change afterwards."""
        ...

    def download(self, array: Array) -> Any:
        """Wait for all queued work and return a copy as a NumPy array."""
        ...

    def copy(self, target: Array, source: Array) -> None:
        """Copy from device to device. Both have the same shape and dtype; either may be a strided view."""
        ...

    def take(self, array: Array, rows: Any) -> Array:
        """Return a copy of the entries `rows` (integers on the host) of the first axis."""
        ...

    def launch(self, launch: Launch, *arguments: Array | int | float | None) -> None:
        """Queue a kernel.

        The kernel receives int as int, float as double, None as a null pointer. A grid with a zero is skipped.
        """
        ...

    def matmul(self, x: Array, weight: Array, out: Array) -> None:
        """out (M, N) = x (M, K) weight[:, :K]^T, summed in the dtype of `out`, the accumulation dtype.

        `weight` is (N, at least K).
        """
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that `work` launches, without running them, and return a function that replays them.

        `work` is called twice: first to load the kernels, when it may allocate memory as well, then to capture the
        launches, when it may do nothing else. The replay runs on the stream that is current when it is called. The
        caller must keep every array of the launches alive as long as it replays.
        """
        ...

    def free_bytes(self) -> int:
        """Return the number of bytes that can still be allocated."""
        ...

    def pinned(self, nbytes: int) -> Any:
        """Return page-locked (pinned) host memory, a NumPy array of bytes, for asynchronous copies."""
        ...

    def send(self, source: Any, target: Array) -> Callable[[], None]:
        """Start an asynchronous copy of pinned bytes into a contiguous array of the same size.

        Returns a function that waits for the copy, which overlaps with work that is queued later. Neither array may be
        used before the wait returns.
        """
        ...

    def adopt(self, x: Any) -> Array:
        """Return a view of another library's array on this device, through DLPack, without a copy.

        Raises:
            InvalidInput: The array is on another device, or its address is not a multiple of ALIGNMENT bytes.
        """
        ...
