"""`CudaDevice`: the `Device` protocol with CuPy. Only this module imports CuPy; the package imports it lazily."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import local
from typing import Any, NamedTuple

import cupy
import cupyx
import numpy as np
from cupy.cuda import runtime
from cupy_backends.cuda.libs import cublas

from accel.cupy_gpu import driver
from accel.cupy_gpu.device import ALIGNMENT, Array
from accel.cupy_gpu.launches import Launch
from accel.cupy_gpu.sources import OPTIONS, Kernel, source
from bloomref.errors import Unsupported, invalid

_NO_HEADERS = "Failed to find CUDA headers"
"""CuPy's message of a RuntimeError, before it calls the compiler."""
_STATIC_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a kernel may use without opting in to more."""
_EXACT_SUMS = 16
"""CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: keep the partial sums of a product in the accumulation dtype."""
_CUDA_TYPE = {
    "float16": runtime.CUDA_R_16F,
    "bfloat16": runtime.CUDA_R_16BF,
    "float32": runtime.CUDA_R_32F,
    "float64": runtime.CUDA_R_64F,
}
_PINNED = 1 << 16, 1 << 26
"""Fewest and most bytes that are downloaded to page-locked memory, which CuPy's pool keeps for the next download.

Copies of less take no longer from pageable memory; more would keep too much of the host's memory locked.
"""
_EARLY_ARCH = 90  # the first with programmatic dependent launch
_CUDA_MEMORY = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class _Mode(local):
    """Mode of `launch` in this thread. With `only_loads`, it loads the kernel and does not launch it."""

    only_loads = False


@cache
def cuda_device(number: int) -> "CudaDevice":
    """Return the one CudaDevice of a GPU, so that each kernel is loaded once."""
    return CudaDevice(number)


class CudaDevice:
    """One GPU, by its number among the visible ones."""

    def __init__(self, number: int) -> None:
        self._device = cupy.cuda.Device(number)
        title = runtime.getDeviceProperties(number)["name"].decode()
        self.name = f"{title} (cupy:{number})"
        self.arch = int(self._device.compute_capability)
        self.sms: int = self._device.attributes["MultiProcessorCount"]
        self.starts_early = (
            self.arch >= _EARLY_ARCH and runtime.driverGetVersion() >= driver.OLDEST and driver.library() is not None
        )
        self._kernels: dict[Kernel, Any] = {}
        self._mode = _Mode()
        self._scalars = {np.dtype(t): (np.ones(1, t), np.zeros(1, t)) for t in (np.float32, np.float64)}
        with self._device:
            self._copies = cupy.cuda.Stream(non_blocking=True)

    # --- memory ----------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._allocate(cupy.empty, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._allocate(cupy.zeros, shape, dtype)

    def _allocate(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any) -> Array:
        with self._device:
            try:
                return make(shape, dtype)
            except cupy.cuda.memory.OutOfMemoryError as error:
                raise Unsupported(
                    f"out of memory on {self.name}: {int(np.prod(shape)) * dtype.itemsize:,} bytes were requested, "
                    f"{self.free_bytes():,} are free; use a smaller batch, a shorter length or a narrower dtype"
                ) from error

    def free_bytes(self) -> int:
        with self._device:
            return int(runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def upload(self, host: Any) -> Array:
        array = self.empty(host.shape, host.dtype)
        self.write(array, host)
        return array

    def write(self, target: Array, host: Any) -> None:
        bits = _bits(target)
        with self._device:
            bits.set(np.ascontiguousarray(host).view(bits.dtype))

    def download(self, array: Array) -> Any:
        with self._device:
            bits, host = _bits(array), None
            if _PINNED[0] <= array.nbytes <= _PINNED[1]:
                host = cupyx.empty_pinned(array.shape, bits.dtype)
            copied: Any = bits.get(out=host).view(array.dtype)
            return copied

    def copy(self, target: Array, source: Array) -> None:
        with self._device:
            _bits(target)[...] = _bits(source)

    def take(self, array: Array, rows: Any) -> Array:
        taken = self.empty((len(rows), *array.shape[1:]), array.dtype)
        with self._device:
            if taken.size:
                cupy.take(_words(array), cupy.asarray(rows), axis=0, out=_words(taken))
        return taken

    def pinned(self, nbytes: int) -> Any:
        with self._device:
            return cupyx.empty_pinned((nbytes,), np.uint8)

    def send(self, source: Any, target: Array) -> Callable[[], None]:
        with self._device:
            queued = cupy.cuda.get_current_stream().record()
            self._copies.wait_event(queued)  # queued kernels may still use memory that the target reuses
            target.data.copy_from_host_async(source.ctypes.data, source.nbytes, self._copies)
            copied = self._copies.record()
        return lambda: copied.synchronize()

    def adopt(self, x: Any) -> Array:
        kind, number = map(int, x.__dlpack_device__())
        if kind not in _CUDA_MEMORY or number != self._device.id:
            raise invalid("x", f"an array on {self.name}", f"one on DLPack device ({kind}, {number})")
        with self._device:
            array = cupy.from_dlpack(x)
        if array.data.ptr % ALIGNMENT:
            raise invalid(
                "x", f"an array that begins on {ALIGNMENT} bytes", f"one at address {array.data.ptr:#x}", "copy it"
            )
        return array

    # --- work ------------------------------------------------------------------------------------

    def launch(self, launch: Launch, *arguments: Array | int | float | None) -> None:
        if 0 in launch.grid:
            return
        with self._device:
            kernel = self._kernels.get(launch.kernel) or self._load(launch)
            if self._mode.only_loads:
                return
            is_early = launch.starts_early and self.starts_early
            values = tuple(_kernel_argument(a, CTYPES if is_early else CUPY_TYPES) for a in arguments)
            if is_early:
                stream = cupy.cuda.get_current_stream().ptr
                driver.launch_early(kernel.kernel.ptr, launch.grid, launch.block, launch.shared, stream, values)
            else:
                kernel(launch.grid, (launch.block, 1, 1), values, shared_mem=launch.shared)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a CUDA graph on a separate stream.

        The caller's stream may be the default stream, which cannot be captured. A kernel cannot be loaded in a capture
        either, so `work` is called once before to load them.
        """
        self._mode.only_loads = True
        try:
            work()
        finally:
            self._mode.only_loads = False
        with self._device, cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                with suppress(runtime.CUDARuntimeError):  # the capture may be invalid; the first error says why
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        return lambda: self._replay(graph)

    def _replay(self, graph: Any) -> None:
        with self._device:
            graph.launch()

    def _load(self, launch: Launch) -> Any:
        """Load a kernel.

        NVRTC compiles it at its first use on a machine; later uses find it in CuPy's cache on disk.
        """
        name = launch.kernel.expression
        module = cupy.RawModule(code=source(launch.kernel.module), options=OPTIONS, name_expressions=[name])
        try:
            kernel = module.get_function(name)
            if launch.shared > _STATIC_SHARED:
                kernel.max_dynamic_shared_size_bytes = launch.shared
        except (cupy.cuda.compiler.CompileException, RuntimeError) as error:
            if isinstance(error, RuntimeError) and _NO_HEADERS not in str(error):
                raise
            raise Unsupported(_why_not_compiled(str(error))) from error
        return self._kernels.setdefault(launch.kernel, kernel)

    def matmul(self, x: Array, weight: Array, out: Array) -> None:
        """Call cuBLAS, which is column-major, for out^T (N, M) = weight x^T."""
        (m, k), n = x.shape, len(weight)
        if m == 0:
            return
        one, zero = self._scalars[out.dtype]
        kind, wide = _CUDA_TYPE[x.dtype.name], _CUDA_TYPE[out.dtype.name]
        compute = cublas.CUBLAS_COMPUTE_64F if wide == runtime.CUDA_R_64F else cublas.CUBLAS_COMPUTE_32F
        with self._device:
            handle = cupy.cuda.device.get_cublas_handle()
            before = cublas.getMathMode(handle)
            cublas.setMathMode(handle, _EXACT_SUMS)
            try:
                cublas.gemmEx(
                    handle, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, m, k, one.ctypes.data, weight.data.ptr, kind,
                    weight.shape[1], x.data.ptr, kind, k, zero.ctypes.data, out.data.ptr, wide, n, compute,
                    cublas.CUBLAS_GEMM_DEFAULT,
                )  # fmt: skip
            finally:
                cublas.setMathMode(handle, before)


def _bits(array: Array) -> Array:
    """View an array as unsigned integers, because CuPy cannot copy every dtype."""
    return array.view(_BITS[array.dtype.itemsize])


def _words(array: Array) -> Array:
    """View a contiguous array as rows of the widest unsigned integers, of which CuPy copies one per thread."""
    rows = _bits(array).reshape(len(array), -1)
    nbytes = rows.shape[1] * rows.itemsize
    return rows.view(_BITS[next(size for size in (8, 4, 2, 1) if nbytes % size == 0)])


class ArgumentTypes(NamedTuple):
    """Constructors of a kernel's arguments by the type of the Python value."""

    integer: Callable[[int], Any]
    real: Callable[[float], Any]
    array: Callable[[Array], Any]
    null: Callable[[], Any]


CUPY_TYPES = ArgumentTypes(np.int32, np.float64, lambda array: array, np.uintp)
"""Arguments of CuPy's own launch."""
CTYPES = ArgumentTypes(ctypes.c_int, ctypes.c_double, lambda array: ctypes.c_void_p(array.data.ptr), ctypes.c_void_p)
"""Arguments of `driver.launch_early`."""


def _kernel_argument(value: Array | int | float | None, types: ArgumentTypes) -> Any:
    if value is None:
        return types.null()
    if isinstance(value, int):
        return types.integer(value)
    return types.real(value) if isinstance(value, float) else types.array(value)


def _why_not_compiled(message: str) -> str:
    if "cannot open source file" in message or _NO_HEADERS in message:
        return "a kernel needs the headers of CUDA, which are not installed; pip install 'bloomref[cuda13]'"
    return f"a kernel does not compile with this version of CUDA: {message.strip().splitlines()[0]}"
