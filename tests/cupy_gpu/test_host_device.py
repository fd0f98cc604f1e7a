"""`CudaDevice` with a fake of CuPy, which executes the calls on the CPU."""

import importlib
from functools import reduce
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulated_device import EmulatedDevice
from fake_cupy import CUBLAS_NAMES, NAMES, Array, Driver, FakeCupy, install, product
from host_model import CONFIG, run_blocks

from accel import cupy_gpu
from accel.cupy_gpu import driver, probe
from accel.cupy_gpu.cupy_backend import CupyBackend
from bloomref.dtypes import POLICIES
from bloomref.errors import InvalidInput
from bloomref.params import init_params
from bloomref.runtime.backend import Step

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """A fake of CuPy whose driver supports programmatic dependent launch."""
    monkeypatch.setattr(probe, "_check_packages", lambda: None)
    library = Driver()
    monkeypatch.setattr(driver, "library", lambda: library)
    return install(monkeypatch, FakeCupy())


@pytest.fixture
def device(fake: FakeCupy) -> Any:  # noqa: ARG001
    return probe.find_device(1)


@pytest.mark.skipif(find_spec("cupy") is None, reason="cupy is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_cupy_has_the_names_of_the_fake(name: str) -> None:
    import cupy

    assert reduce(getattr, name.split("."), cupy) is not None


def real_cublas() -> Any:
    """Return CuPy's cuBLAS module, which loads the library lazily."""
    try:
        return pytest.importorskip("cupy_backends.cuda.libs").cublas
    except ImportError:
        pytest.skip("cuBLAS is not installed")


@pytest.mark.parametrize("name", CUBLAS_NAMES)
def test_cublas_has_the_names_of_the_fake(name: str) -> None:
    cublas = real_cublas()
    assert getattr(cublas, name) is not None
    signature = "(intptr_t handle, int transa, int transb, int m, int n, int k, size_t alpha, size_t A, int Atype, int lda, size_t B, "
    signature += "int Btype, int ldb, size_t beta, size_t C, int Ctype, int ldc, int computeType, int algo)"
    assert name != "gemmEx" or cublas.gemmEx.__doc__.split("gemmEx", 1)[1].startswith(signature)


def test_the_module_can_be_imported_without_a_driver() -> None:
    real_cublas()
    from accel.cupy_gpu import cuda_device

    assert set(cuda_device._CUDA_TYPE) == {"float16", "bfloat16", "float32", "float64"}


def test_a_device_has_a_name_an_architecture_and_sms(device: Any) -> None:
    assert (device.name, device.arch, device.sms) == ("Fake GPU 1 (cupy:1)", 90, 4)
    assert probe.find_device(1) is device
    assert probe.find_device(None).name == "Fake GPU 0 (cupy:0)"  # CuPy's current device


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_copied_and_allocated_on_the_device(device: Any, fake: FakeCupy, dtype: Any) -> None:
    host = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = device.upload(host)
    assert device.download(array).tobytes() == host.tobytes()
    target = device.empty((2, 4), np.dtype(dtype))
    device.copy(target, array[:, -1])
    assert device.download(target).tobytes() == host[:, -1].tobytes()
    taken = device.download(device.take(array, np.array([1, 0, 1])))
    assert (taken.dtype, taken.tobytes()) == (host.dtype, host[[1, 0, 1]].tobytes())
    assert device.download(device.zeros((3,), np.dtype(dtype))).tobytes() == np.zeros(3, dtype).tobytes()
    assert device.take(array[:0], np.array([], int)).shape == (0, 3, 4)
    assert set(fake.used) == {1}  # all memory is on the requested device
    assert fake.entered == [0]  # the current device is unchanged


@pytest.mark.parametrize("count", [100, 20_000])
def test_many_bytes_are_downloaded_to_pinned_memory(device: Any, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The result is new each time, and the caller may write to it."""
    cupyx, pinned = importlib.import_module("cupyx"), []
    empty = cupyx.empty_pinned
    monkeypatch.setattr(cupyx, "empty_pinned", lambda *a: pinned.append(empty(*a)) or pinned[-1])
    host = np.arange(count, dtype=np.float32)
    array = device.upload(host)
    first = device.download(array)
    first[:] = 0
    assert np.array_equal(device.download(array), host)
    assert len(pinned) == (2 if host.nbytes >= 1 << 16 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 7, 3), (17, 24, 16), (0, 4, 8)])
def test_a_product_is_exact_in_the_accumulation_dtype(
    device: Any, fake: FakeCupy, dtype: Any, m: int, n: int, k: int
) -> None:
    rng, stride = np.random.default_rng(m), (k + 7) // 8 * 8
    x, weight = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((n, stride)).astype(dtype)
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    out = device.empty((m, n), wide)
    device.matmul(device.upload(x), device.upload(weight), out)
    np.testing.assert_allclose(
        device.download(out), x.astype(wide) @ weight[:, :k].astype(wide).T, rtol=1e-5, atol=1e-5
    )
    assert fake.cublas.modes == [16] * (m > 0)  # no reduced precision in sums
    assert fake.cublas.mode == 5  # restored for other users


def test_a_product_that_fails_restores_the_math_mode(
    device: Any, fake: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(fake.cublas, "gemmEx", fail)
    x = device.zeros((8, 8), np.dtype(np.float32))
    with pytest.raises(RuntimeError, match="CUBLAS"):
        device.matmul(x, x, x)
    assert fake.cublas.mode == 5


def test_bytes_are_sent_after_queued_work_and_arrive_with_the_wait(device: Any, fake: FakeCupy) -> None:
    source, target = device.pinned(8), device.zeros((4,), np.dtype(np.float16))
    source[:] = np.float16([1, 2, 3, 4]).view(np.uint8)
    wait = device.send(source, target)
    assert device._copies.waited_for == [fake.stream]
    assert device._copies.non_blocking
    assert device.download(target).tolist() == [0, 0, 0, 0]  # still pending
    wait()
    assert device.download(target).tolist() == [1, 2, 3, 4]


def test_an_error_in_a_capture_is_not_hidden_by_the_end_of_it(
    device: Any, fake: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invalid(_: Any) -> None:
        raise fake.cuda.runtime.CUDARuntimeError(901)  # cudaErrorStreamCaptureInvalidated

    def fail() -> None:
        raise RuntimeError("the first error")

    monkeypatch.setattr(fake.cuda.Stream, "end_capture", invalid)
    with pytest.raises(RuntimeError, match="the first error"):
        device.capture(fail)


class Theirs:
    """An array of another library."""

    def __init__(self, array: Any, place: tuple[int, int]) -> None:
        self.array, self.place = array, place

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


def test_an_array_of_another_library_is_adopted_or_refused(
    device: Any, fake: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = device.empty((6,), np.dtype(np.float32)).view(np.ndarray)
    monkeypatch.setattr(fake, "from_dlpack", lambda x: np.from_dlpack(x.array).view(Array))
    assert np.shares_memory(device.adopt(Theirs(array, (2, 1))), array)
    with pytest.raises(
        InvalidInput, match=r"^x: expected an array that begins on 16 bytes, got one at address 0x.*; copy it$"
    ):
        device.adopt(Theirs(array[1:], (2, 1)))
    for place in ((1, 0), (2, 0)):
        with pytest.raises(
            InvalidInput, match=r"^x: expected an array on Fake GPU 1 \(cupy:1\), got one on DLPack device"
        ):
            device.adopt(Theirs(array, place))


class SameSums(EmulatedDevice):
    def matmul(self, x: Any, weight: Any, out: Any) -> None:
        out[...] = product(weight[:, : x.shape[1]].astype(out.dtype), x.astype(out.dtype).T).T


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("policy", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("time", [1, 3, 20])
def test_a_model_has_the_bits_of_the_emulated_device(fake: FakeCupy, policy: str, time: int) -> None:  # noqa: ARG001
    """This covers every kernel and product, with the arguments that CuPy gets."""
    names, real = POLICIES[policy], np.ones((2, time + 1), bool)
    real[0, 0] = False
    ids = np.arange(2 * time).reshape(2, time) % 40
    emulated = SameSums(sms=4, seed=0)
    results = []
    for backend in (cupy_gpu.make_backend("1"), CupyBackend("emulated", lambda: emulated)):
        prepared = backend.prepare(init_params(CONFIG, 0, names.variable_dtype), CONFIG, names)
        cache, logits = prepared.new_cache(2, time + 1), b""
        for start, tokens in ((0, ids), (time, ids[:, :1])):
            x = run_blocks(prepared, tokens, cache, Step.at(start, real[:, : start + tokens.shape[1]]))
            logits += prepared.logits(prepared.final_norm(x), False).tobytes()
        results.append(logits)
    assert results[0] == results[1]
