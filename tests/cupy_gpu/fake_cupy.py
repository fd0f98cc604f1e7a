"""A fake of the parts of CuPy that accel.cupy_gpu.cuda_device uses, with host memory and the kernels of the emulator.

It checks shapes, pointers, leading dimensions, dtypes of scalars, and the order of copies. `NAMES` lists every name
that it fakes; a test looks each of them up in CuPy, if that is installed.
"""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from emulator import compile_kernel, run_grid

from accel.cupy_gpu.sources import MODULES, Kernel, source

NAMES = (
    "empty", "zeros", "take", "cuda.Stream.begin_capture", "cuda.Stream.end_capture", "cuda.Graph.launch", "asarray", "from_dlpack", "RawModule", "ndarray.view", "ndarray.reshape", "ndarray.set", "ndarray.get",
    "ndarray.data", "ndarray.flags", "get_default_memory_pool", "cuda.Device", "cuda.Device.compute_capability",
    "cuda.Device.attributes", "cuda.Device.id", "cuda.Stream.wait_event", "cuda.Stream.record",
    "cuda.Event.synchronize", "cuda.get_current_stream", "cuda.MemoryPointer.copy_from_host_async", "cuda.MemoryPointer.ptr",
    "cuda.MemoryPool.free_bytes", "cuda.compiler.CompileException", "cuda.memory.OutOfMemoryError",
    "cuda.device.get_cublas_handle", "cuda.nvrtc.getVersion", "RawModule.get_function", "RawKernel.max_dynamic_shared_size_bytes",
    "RawKernel.kernel", "cuda.function.Function.ptr",
    "cuda.runtime.getDeviceProperties", "cuda.runtime.getDeviceCount", "cuda.runtime.getDevice", "cuda.runtime.memGetInfo",
    "cuda.runtime.driverGetVersion", "cuda.runtime.runtimeGetVersion", "cuda.runtime.CUDARuntimeError",
    "cuda.runtime.CUDA_R_16F", "cuda.runtime.CUDA_R_16BF", "cuda.runtime.CUDA_R_32F", "cuda.runtime.CUDA_R_64F",
)  # fmt: skip
CUBLAS_NAMES = (
    "gemmEx", "setMathMode", "getMathMode", "CUBLAS_OP_T", "CUBLAS_OP_N", "CUBLAS_COMPUTE_32F", "CUBLAS_COMPUTE_64F",
    "CUBLAS_GEMM_DEFAULT",
)  # fmt: skip
_R_32F, _R_64F, _R_16F, _R_16BF = range(4)
_DTYPE = {_R_32F: np.float32, _R_64F: np.float64, _R_16F: np.float16, _R_16BF: ml_dtypes.bfloat16}
_OP_N, _OP_T, _COMPUTE_32F, _COMPUTE_64F = range(4)


class CompileException(Exception):
    pass


class OutOfMemoryError(Exception):
    pass


class CUDARuntimeError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class Array(np.ndarray[Any, Any]):
    """Device memory. NumPy's functions work on it, but it has no buffer that host code could use by mistake."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data, copy_from_host_async=self._copy_from_host)

    def _copy_from_host(self, address: int, nbytes: int, stream: "Stream") -> None:
        assert self.flags.c_contiguous
        assert nbytes == self.nbytes
        stream.waiting.append((self.ctypes.data, address, nbytes, self))

    def set(self, host: Any) -> None:
        assert type(host) is np.ndarray
        assert Stream.capturing() is None
        assert (host.shape, host.dtype, host.flags.c_contiguous) == (self.shape, self.dtype, True)
        np.copyto(self, host)

    def get(self, out: Any = None) -> Any:
        assert Stream.capturing() is None
        if out is None:
            return np.array(self)
        assert (out.shape, out.dtype, out.flags.c_contiguous) == (self.shape, self.dtype, True)
        np.copyto(out, self)
        return out


class Stream:
    """A stream that performs copies when they are waited for, the latest moment that CUDA allows."""

    entered: ClassVar[list["Stream"]] = []

    @classmethod
    def capturing(cls) -> list[Any] | None:
        """Return the list of captured launches while the current stream is captured, or None."""
        return cls.entered[-1].launches if cls.entered else None

    @classmethod
    def current_number(cls) -> int | None:
        """Return the address of the current stream for the driver, None for the default stream."""
        return cls.entered[-1].ptr if cls.entered else None

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = id(self) if non_blocking else 0
        self.lock = Lock()
        self.launches: list[Any] | None = None
        self.waiting: list[Any] = []
        self.waited_for: list[Any] = []
        self.non_blocking = non_blocking

    def record(self) -> Any:
        number = len(self.waiting)

        def synchronize() -> None:
            with self.lock:  # each copy is performed once, by the first thread that waits
                for copy in self.waiting[:number]:
                    if copy is not None:
                        ctypes.memmove(*copy[:3])
                self.waiting[:number] = [None] * number

        return SimpleNamespace(synchronize=synchronize, stream=self)

    def wait_event(self, event: Any) -> None:
        self.waited_for.append(event.stream)

    def __enter__(self) -> "Stream":
        Stream.entered.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Stream.entered.pop()

    def begin_capture(self) -> None:
        assert self.non_blocking
        self.launches = []

    def end_capture(self) -> "Graph":
        launches, self.launches = self.launches, None
        assert launches is not None
        return Graph(launches)


class Graph:
    """Captured launches with the addresses of their arrays. As in CUDA, the graph does not keep the arrays alive."""

    def __init__(self, launches: list[Any]) -> None:
        self.launches = launches

    def launch(self) -> None:
        assert not Stream.capturing()
        for launch in self.launches:
            run_grid(*launch, 0)


class RawKernel:
    loaded: ClassVar[dict[int, "RawKernel"]] = {}
    """Kernels by address, CuPy's `kernel.ptr`."""

    def __init__(self, kernel: Kernel) -> None:
        self.which = kernel
        self.kernel = SimpleNamespace(ptr=id(self))
        self.loaded[id(self)] = self
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid: Any, block: Any, arguments: Any, shared_mem: int) -> None:
        self.queue(grid, block[0], shared_mem, [_by_value(a) for a in arguments])

    def queue(self, grid: Any, block: int, shared: int, arguments: list[Any]) -> None:
        assert shared <= self.max_dynamic_shared_size_bytes
        launch = compile_kernel(self.which), grid, block, shared, arguments
        capturing = Stream.capturing()
        if capturing is None:
            run_grid(*launch, 0)
        else:
            capturing.append(launch)


class Driver:
    """The part of the CUDA driver that accel.cupy_gpu.driver calls."""

    def __init__(self) -> None:
        self.early: list[str] = []
        """Expressions of the kernels that were launched with the attribute."""

    def cuLaunchKernelEx(self, config: Any, function: int, arguments: Any, extra: Any) -> int:  # noqa: N802
        launch, kernel = config._obj, RawKernel.loaded[function]
        assert extra is None
        assert (launch.number_of_attributes, launch.attributes[0].id, launch.attributes[0].value) == (1, 6, 1)
        assert launch.stream == Stream.current_number()
        self.early.append(kernel.which.expression)
        copies = [ctypes.c_uint64.from_buffer_copy(ctypes.string_at(a, 8)) for a in arguments]  # as the driver does
        kernel.queue(tuple(launch.grid), launch.block[0], launch.shared_bytes, copies)
        return 0


def _by_value(argument: Any) -> Any:
    """Convert an argument of CuPy's launch to ctypes: a kernel's int is 4 bytes, double and pointer 8."""
    if isinstance(argument, Array):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    scalars = {np.int32: ctypes.c_int, np.float64: ctypes.c_double, np.uint64: ctypes.c_void_p}
    return scalars[type(argument)](argument.item() or None if isinstance(argument, np.uint64) else argument.item())


class RawModule:
    def __init__(self, code: str, options: Any, name_expressions: Any) -> None:
        assert options
        self.module = next(name for name in MODULES if source(name) == code)
        self.names = name_expressions

    def get_function(self, name: str) -> RawKernel:
        assert Stream.capturing() is None, "a kernel is loaded in a capture"
        assert name in self.names
        return RawKernel(Kernel(self.module, name))


class Cublas(ModuleType):
    """gemmEx by its definition, for column-major matrices at addresses."""

    CUBLAS_OP_N, CUBLAS_OP_T = _OP_N, _OP_T
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT = _COMPUTE_32F, _COMPUTE_64F, -1

    def __init__(self) -> None:
        super().__init__("cupy_backends.cuda.libs.cublas")
        self.mode = 5
        self.modes: list[int] = []

    def getMathMode(self, handle: int) -> int:  # noqa: ARG002, N802
        return self.mode

    def setMathMode(self, handle: int, mode: int) -> None:  # noqa: ARG002, N802
        self.mode = mode

    def gemmEx(  # noqa: N802
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int,  # noqa: ARG002
        b: int, b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int, compute: int, algorithm: int,  # noqa: ARG002
    ) -> None:  # fmt: skip
        assert Stream.capturing() is None, "CuPy refuses cuBLAS in a capture"
        self.modes.append(self.mode)
        wide = np.dtype({_COMPUTE_32F: np.float32, _COMPUTE_64F: np.float64}[compute])
        left, right = _columns(a, a_type, lda, m, k, transa), _columns(b, b_type, ldb, k, n, transb)
        out = _columns(c, c_type, ldc, m, n, _OP_N)
        scale, keep = (_memory(address, 1, wide)[0] for address in (alpha, beta))
        assert keep == 0
        out[...] = scale * product(left.astype(wide), right.astype(wide))


def product(left: Any, right: Any) -> Any:
    """Return left @ right with a fixed order of sums, whichever operand is the weight."""
    return np.ascontiguousarray(left[:, None, :] * right.T[None]).sum(-1)


def _columns(address: int, kind: int, leading: int, rows: int, columns: int, operation: int) -> Any:
    """Return op(matrix) of shape (rows, columns)."""
    stored = (columns, rows) if operation == _OP_T else (rows, columns)
    assert leading >= stored[0]
    dtype = np.dtype(_DTYPE[kind])
    size = leading * (stored[1] - 1) + stored[0]
    flat = _memory(address, size, dtype)
    matrix = np.lib.stride_tricks.as_strided(flat, stored, (dtype.itemsize, leading * dtype.itemsize))
    return matrix.T if operation == _OP_T else matrix


def _memory(address: int, size: int, dtype: Any) -> Any:
    return np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(address), dtype)


class FakeCupy(ModuleType):
    """The module `cupy`, with `count` GPUs that have `free` bytes of free memory each."""

    __version__ = "14.2.0"

    def __init__(self, free: int = 1 << 30, capability: str = "90", count: int = 2) -> None:
        super().__init__("cupy")
        self.__spec__ = ModuleSpec("cupy", None)
        self.free, self.capability, self.count, self.status = free, capability, count, 0
        self.driver, self.current, self.used, self.entered = 13020, 0, [], [0]
        self.ndarray, self.RawModule = Array, RawModule
        self.stream = Stream()
        self.cublas = Cublas()
        self.cuda = SimpleNamespace(
            runtime=self._runtime(),
            Device=self._device,
            Stream=Stream,
            Graph=Graph,
            get_current_stream=lambda: Stream.entered[-1] if Stream.entered else self.stream,
            compiler=SimpleNamespace(CompileException=CompileException),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 2)),
            device=SimpleNamespace(get_cublas_handle=lambda: 1),
        )

    def _runtime(self) -> Any:
        return SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            CUDA_R_16F=_R_16F,
            CUDA_R_16BF=_R_16BF,
            CUDA_R_32F=_R_32F,
            CUDA_R_64F=_R_64F,
            getDeviceCount=self._device_count,
            getDevice=lambda: self.current,
            getDeviceProperties=lambda number: {"name": f"Fake GPU {number}".encode()},
            driverGetVersion=lambda: self.driver,
            runtimeGetVersion=lambda: 13020,
            memGetInfo=lambda: (self.free, self.free),
        )

    def _device_count(self) -> int:
        if self.status:
            raise CUDARuntimeError(self.status)
        return self.count

    def _device(self, number: int) -> Any:
        @contextmanager
        def entered() -> Iterator[None]:
            self.entered.append(number)
            yield
            self.entered.pop()

        class Device:
            id = number
            compute_capability = self.capability
            attributes = {"MultiProcessorCount": 4}  # noqa: RUF012

            def __enter__(self) -> None:
                self.held = [*getattr(self, "held", []), entered()]
                self.held[-1].__enter__()

            def __exit__(self, *error: object) -> None:
                self.held.pop().__exit__(*error)

        return Device()

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 0)

    def empty(self, shape: Any, dtype: Any) -> Array:
        assert Stream.capturing() is None, "a graph does not keep memory of its capture alive"
        self.used.append(self.entered[-1])
        if math.prod(shape) * np.dtype(dtype).itemsize > self.free:
            raise OutOfMemoryError
        array = np.full(math.prod(shape) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)
        return array.view(Array)

    def zeros(self, shape: Any, dtype: Any) -> Array:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def asarray(self, values: Any) -> Array:
        return np.asarray(values).view(Array)

    def take(self, array: Any, rows: Any, axis: int, out: Any) -> None:
        assert type(rows) is Array
        out[...] = np.take(array, rows, axis)

    def from_dlpack(self, array: Any) -> Array:
        return np.from_dlpack(array).view(Array)


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCupy) -> FakeCupy:
    """Install the fake as CuPy until the test ends."""

    def empty_pinned(shape: Any, dtype: Any) -> Any:
        return np.full(shape, 0xFF, dtype)

    cupyx, cuda, libs = ModuleType("cupyx"), ModuleType("cupy.cuda"), ModuleType("cupy_backends.cuda.libs")
    cupyx.empty_pinned = empty_pinned  # type: ignore[attr-defined]
    cuda.runtime = fake.cuda.runtime  # type: ignore[attr-defined]
    libs.cublas = fake.cublas  # type: ignore[attr-defined]
    modules = {"cupy": fake, "cupyx": cupyx, "cupy.cuda": cuda, "cupy_backends.cuda.libs": libs}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "accel.cupy_gpu.cuda_device", fake)  # so that the test's end removes it
    del sys.modules["accel.cupy_gpu.cuda_device"]
    return fake
