"""`EmulatedDevice`: the Device protocol of accel.cupy_gpu with NumPy arrays and kernels that run on the CPU."""

import ctypes
import math
import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from emulator import EmulationError, compile_kernel, run_grid

from accel.cupy_gpu.device import ALIGNMENT
from accel.cupy_gpu.launches import Launch
from bloomref.errors import invalid

Numbers = np.ndarray[Any, Any]
GUARD = 256  # bytes of 0xff before and after each array, which are NaN if a kernel reads them
_AROUND = 2 * GUARD + 64
_FREE = 1 << 30


class EmulatedDevice:
    """An emulated GPU.

    Args:
        arch: Architecture, 90 for sm_90, for which kernels are chosen.
        sms: Number of SMs, which determines how work is divided.
        seed: 0 runs thread blocks and threads in order; another number seeds their random order.
        change: Edits the source of every module before it is compiled, to insert known mistakes.
    """

    def __init__(self, arch: int = 90, sms: int = 4, seed: int = 1, change: Callable[[str], str] = str) -> None:
        self.name = f"emulated sm_{arch}"
        self.arch, self.sms, self.seed, self._change = arch, sms, seed, change
        self.starts_early = True
        self._only_loads = False
        self.launched: list[str] = []
        """Expressions of the launched kernels, in order."""
        self.captured: list[tuple[Launch, tuple[Any, ...]]] | None = None
        """Launches of the current capture, or None."""

    def empty(self, shape: Any, dtype: Any) -> Numbers:
        """Return an array of NaN (integers: -1), so that tests detect reads of uninitialised memory."""
        self._not_captured("allocates")
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        buffer = np.full(size + _AROUND, 0xFF, np.uint8)
        start = _start(buffer)
        return buffer[start : start + size].view(dtype).reshape(shape)

    def zeros(self, shape: Any, dtype: Any) -> Numbers:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def upload(self, host: Numbers) -> Numbers:
        array = self.empty(host.shape, host.dtype)
        array[...] = host
        return array

    def write(self, target: Numbers, host: Numbers) -> None:
        self._not_captured("writes")
        assert (target.shape, target.dtype) == (host.shape, host.dtype)
        target[...] = host

    def download(self, array: Numbers) -> Numbers:
        self._not_captured("waits")
        return array.copy()

    def copy(self, target: Numbers, source: Numbers) -> None:
        self._not_captured("copies")
        target[...] = source

    def take(self, array: Numbers, rows: Any) -> Numbers:
        return self.upload(array[rows])

    def free_bytes(self) -> int:
        return _FREE

    def pinned(self, nbytes: int) -> Numbers:
        return np.full(nbytes, 0xFF, np.uint8)

    def send(self, source: Numbers, target: Numbers) -> Callable[[], None]:
        """Copy when the returned function is called, the latest moment that the protocol allows."""
        return lambda: target.reshape(-1).view(np.uint8).__setitem__(slice(None), source)

    def adopt(self, x: Any) -> Numbers:
        array: Numbers = np.from_dlpack(x)
        if array.ctypes.data % ALIGNMENT:
            raise invalid("x", f"an array that begins on {ALIGNMENT} bytes", "another address", "copy it")
        return array

    def matmul(self, x: Numbers, weight: Numbers, out: Numbers) -> None:
        """out = x W^T, accumulated in the dtype of out."""
        self._not_captured("calls cuBLAS")
        np.matmul(x.astype(out.dtype), weight[:, : x.shape[1]].astype(out.dtype).T, out=out)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture kernels, which a first call loads. As in a CUDA graph, their arrays are referenced weakly."""
        self._only_loads = True
        try:
            work()
        finally:
            self._only_loads = False
        self.captured = []
        try:
            work()
        finally:
            captured, self.captured = self.captured, None
        graph = [(launch, tuple(map(_weakly, arguments))) for launch, arguments in captured]
        del captured
        return lambda: self._replay(graph)

    def _replay(self, graph: list[tuple[Launch, tuple[Any, ...]]]) -> None:
        """Replay a graph.

        A kernel that may start early does so at random; the preceding one runs when all threads wait for it.
        """
        coin, before = random.Random(self.seed), None
        for number, (launch, weak) in enumerate(graph):
            work = partial(self._run, launch, tuple(a() if isinstance(a, _Weak) else a for a in weak), before)
            follows = self.starts_early and number + 1 < len(graph) and graph[number + 1][0].starts_early
            before = work if follows and before is None and self.seed and coin.random() < 0.5 else None
            if before is None:
                work()

    def _not_captured(self, what: str) -> None:
        assert self.captured is None, f"a capture that {what}"

    def launch(self, launch: Launch, *arguments: Any) -> None:
        if 0 in launch.grid or self._only_loads:
            return
        if self.captured is not None:
            self.captured.append((launch, arguments))
            return
        self._run(launch, arguments)

    def _run(self, launch: Launch, arguments: tuple[Any, ...], previous: Callable[[], None] | None = None) -> None:
        self.launched.append(launch.kernel.expression)
        run = compile_kernel(launch.kernel, self._change)
        run_grid(run, launch.grid, launch.block, launch.shared, [_argument(a) for a in arguments], self.seed, previous)
        for array in arguments:
            if isinstance(array, np.ndarray):
                _check_guards(array)


class _Weak:
    """A weak reference to an array, as a CUDA graph has it: an address that does not keep the memory alive."""

    def __init__(self, array: Numbers) -> None:
        self._owner, self._view = weakref.ref(_buffer(array)), (array.ctypes.data, array.shape, array.dtype)

    def __call__(self) -> Numbers:
        buffer, (address, shape, dtype) = self._owner(), self._view
        assert buffer is not None, "a graph uses memory that was freed"
        start = address - buffer.ctypes.data
        return buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _weakly(argument: Any) -> Any:
    return _Weak(argument) if isinstance(argument, np.ndarray) else argument


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_int(int(value))


def _check_guards(array: Numbers) -> None:
    """Raise EmulationError if a kernel wrote outside the array's allocation."""
    buffer = _buffer(array)
    if buffer.dtype != np.uint8:
        return  # adopted from another library
    start = _start(buffer)
    if not ((buffer[:start] == 0xFF).all() and (buffer[start + buffer.size - _AROUND :] == 0xFF).all()):
        raise EmulationError("written beyond an array")


def _buffer(array: Numbers) -> Numbers:
    """Return the allocation that contains an array."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _start(buffer: Numbers) -> int:
    """Return the offset of the array in its allocation: 64-byte aligned, after a guard zone."""
    return GUARD + -(buffer.ctypes.data + GUARD) % 64
