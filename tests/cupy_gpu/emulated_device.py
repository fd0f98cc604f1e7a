"""A device whose arrays are NumPy's and whose kernels run on the CPU: the Device protocol of accel.cupy_gpu, for tests."""

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
GUARD = 256  # bytes of 0xff before and behind each array: NaN, for who reads them
_AROUND = 2 * GUARD + 64
_FREE = 1 << 30


class EmulatedDevice:
    """One of accel.cupy_gpu.device.Device.

    Args:
        arch: 90 plays sm_90; kernels that differ by architecture are chosen for it.
        sms: multiprocessors, which decide how work is divided.
        seed: 0 runs blocks and threads in order; any other number draws their order at random.
        change: edits the text of every module before it is compiled (planted faults).
    """

    def __init__(self, arch: int = 90, sms: int = 4, seed: int = 1, change: Callable[[str], str] = str) -> None:
        self.name = f"emulated sm_{arch}"
        self.arch, self.sms, self.seed, self._change = arch, sms, seed, change
        self.starts_early = True
        self.launched: list[str] = []
        """The expression of each kernel that was launched, in order."""
        self.captured: list[tuple[Launch, tuple[Any, ...]]] | None = None
        """What is being captured."""

    def empty(self, shape: Any, dtype: Any) -> Numbers:
        """Full of NaN (integers: -1), so that nobody counts on what it holds."""
        self._not_captured("allocates")
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        room = np.full(size + _AROUND, 0xFF, np.uint8)
        start = _start(room)
        return room[start : start + size].view(dtype).reshape(shape)

    def zeros(self, shape: Any, dtype: Any) -> Numbers:
        made = self.empty(shape, dtype)
        made[...] = 0
        return made

    def upload(self, host: Numbers) -> Numbers:
        made = self.empty(host.shape, host.dtype)
        made[...] = host
        return made

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
        """Nothing arrives before the function returned is called."""
        return lambda: target.reshape(-1).view(np.uint8).__setitem__(slice(None), source)

    def adopt(self, x: Any) -> Numbers:
        array: Numbers = np.from_dlpack(x)
        if array.ctypes.data % ALIGNMENT:
            raise invalid("x", f"an array that begins on {ALIGNMENT} bytes", "another address", "copy it")
        return array

    def matmul(self, x: Numbers, weight: Numbers, out: Numbers) -> None:
        """out = x W^T over the columns of x, accumulated in the dtype of out."""
        self._not_captured("calls cuBLAS")
        np.matmul(x.astype(out.dtype), weight[:, : x.shape[1]].astype(out.dtype).T, out=out)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Only kernels, with arguments that stay: what a CUDA graph can hold without anybody else's help."""
        known, self.captured = set(self.launched), []
        try:
            work()
        finally:
            captured, self.captured = self.captured, None
        assert {launch.kernel.expression for launch, _ in captured} <= known, "a kernel is loaded in a capture"
        held = [(launch, tuple(map(_weakly, arguments))) for launch, arguments in captured]
        del captured
        return lambda: self._replay(held)

    def _replay(self, held: list[tuple[Launch, tuple[Any, ...]]]) -> None:
        """A kernel that may start early does so by chance: the one before it runs when all that is left waits for it."""
        coin, before = random.Random(self.seed), None
        for number, (launch, weak) in enumerate(held):
            work = partial(self._run, launch, tuple(a() if isinstance(a, _Weak) else a for a in weak), before)
            follows = self.starts_early and number + 1 < len(held) and held[number + 1][0].starts_early
            before = work if follows and before is None and self.seed and coin.random() < 0.5 else None
            if before is None:
                work()

    def _not_captured(self, what: str) -> None:
        assert self.captured is None, f"a capture that {what}"

    def launch(self, launch: Launch, *arguments: Any) -> None:
        if 0 in launch.grid:
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
    """An array as a graph knows it: where it was, not whether it is still held."""

    def __init__(self, array: Numbers) -> None:
        self._owner, self._view = weakref.ref(_room(array)), (array.ctypes.data, array.shape, array.dtype)

    def __call__(self) -> Numbers:
        room, (address, shape, dtype) = self._owner(), self._view
        assert room is not None, "a graph uses memory that nobody holds any more"
        start = address - room.ctypes.data
        return room[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


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
    """What surrounds the allocation of this array is as it was."""
    room = _room(array)
    if room.dtype != np.uint8:
        return  # adopted
    start = _start(room)
    if not ((room[:start] == 0xFF).all() and (room[start + room.size - _AROUND :] == 0xFF).all()):
        raise EmulationError("written beyond an array")


def _room(array: Numbers) -> Numbers:
    """The allocation that an array is in."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _start(room: Numbers) -> int:
    """The first byte of the array in its allocation: 64-byte aligned, behind a guard zone."""
    return GUARD + -(room.ctypes.data + GUARD) % 64
