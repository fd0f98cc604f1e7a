"""What the host side needs of a GPU, and nothing more: `cuda_device` has it through CuPy, the tests have it on the CPU.

Arrays are the device's own. The host side uses their `shape`, `dtype`, `nbytes`, `reshape`, and slices of the first axis.
"""

from collections.abc import Callable
from typing import Any, Protocol

from accel.cupy_gpu.launches import Launch

Array = Any
ALIGNMENT = 16
"""Kernels read so many bytes at once."""


class Device(Protocol):
    """One GPU. Calls that compute only queue their work, in the order of the calls, on the caller's current stream.

    Attributes:
        name: as messages show it.
        arch: the compute capability without its dot, 90 for sm_90.
        sms: streaming multiprocessors.
        starts_early: whether kernels that can (`Launch.starts_early`) start beside the one before. May be set to False; what is
            captured keeps what it was captured with.
    """

    name: str
    arch: int
    sms: int
    starts_early: bool

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory with anything in it; base addresses are multiples of 256 bytes.

        Raises:
            Unsupported: out of memory.
        """
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def upload(self, host: Any) -> Array:
        """A copy of a host array, which may change afterwards."""
        ...

    def write(self, target: Array, host: Any) -> None:
        """Into an array that is there already; the host array is of its shape and dtype and may change afterwards."""
        ...

    def download(self, array: Array) -> Any:
        """A NumPy array, after everything that was queued before."""
        ...

    def copy(self, target: Array, source: Array) -> None:
        """From device to device; both of one shape and dtype, either may be a view with strides."""
        ...

    def take(self, array: Array, rows: Any) -> Array:
        """A copy of these entries of the first axis; `rows` are integers on the host."""
        ...

    def launch(self, launch: Launch, *arguments: Array | int | float | None) -> None:
        """Run a kernel: int arrives as int, float as double, None as a null pointer. A grid with a zero is skipped."""
        ...

    def matmul(self, x: Array, weight: Array, out: Array) -> None:
        """out (M, N) = x (M, K) weight[:, :K]^T, summed in the dtype of `out`, the accumulation dtype; weight (N, at least K)."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Remember what `work` launches, and only launches, without doing it. The function returned does it, on the stream that is
        current then, for as long as the caller holds every array that was named. Each kernel has been launched before.
        """
        ...

    def free_bytes(self) -> int:
        """What can still be allocated."""
        ...

    def pinned(self, nbytes: int) -> Any:
        """Host memory, a NumPy array of bytes, from which the device copies by itself."""
        ...

    def send(self, source: Any, target: Array) -> Callable[[], None]:
        """Begin to copy bytes of `pinned` into a contiguous array of as many bytes, beside everything that is queued later.

        The function returned waits until they are there; before that, neither may be used.
        """
        ...

    def adopt(self, x: Any) -> Array:
        """The memory of any array on this device that speaks DLPack, not copied.

        Raises:
            InvalidInput: when it is elsewhere, or does not begin on ALIGNMENT bytes.
        """
        ...
