"""`driver`: a launch with attributes, as a library reads it that is compiled against the CUDA driver's header."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toolchain
from fake_cupy import Driver, FakeCupy, install

from accel.cupy_gpu import driver, launches, probe

FAKE_DRIVER = r"""
#include <cuda.h>
extern "C" {
unsigned numbers[12];
CUstream stream;
CUfunction function;
int argument;
double second;
int status = 0;
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void** extra) {
    const unsigned asked[] = {c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
                              c->numAttrs, unsigned(c->attrs[0].id),
                              unsigned(c->attrs[0].value.programmaticStreamSerializationAllowed),
                              CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, extra != nullptr};
    for (int i = 0; i < 12; ++i) numbers[i] = asked[i];
    stream = c->hStream;
    function = f;
    argument = *static_cast<int*>(arguments[0]);
    second = *static_cast<double*>(arguments[1]);
    return CUresult(status);
}
unsigned sizes[] = {sizeof(CUlaunchConfig), sizeof(CUlaunchAttribute)};
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    header = toolchain.cuda_file("include/cuda.h")
    if header is None or shutil.which("g++") is None:
        pytest.skip(f"g++ or cuda.h is not installed: {toolchain.PACKAGES}")
    path = tmp_path_factory.mktemp("driver") / "libdriver.so"
    command = ["g++", "-shared", "-fPIC", f"-I{Path(header).parent}", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=FAKE_DRIVER, text=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def library(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(driver, "library", lambda: driver.typed(compiled))
    return compiled


def test_the_driver_reads_the_launch(library: Any) -> None:
    driver.launch_early(0x1234, (5, 6, 7), 256, 4096, 0x77, [ctypes.c_int(-3), ctypes.c_double(0.5)])
    numbers = list((ctypes.c_uint * 12).in_dll(library, "numbers"))
    assert numbers[:8] == [5, 6, 7, 256, 1, 1, 4096, 1]
    assert numbers[8] == numbers[10]  # the attribute's number in the header
    assert numbers[9] == 1
    assert not numbers[11]
    assert ctypes.c_void_p.in_dll(library, "stream").value == 0x77
    assert ctypes.c_void_p.in_dll(library, "function").value == 0x1234
    assert ctypes.c_int.in_dll(library, "argument").value == -3
    assert ctypes.c_double.in_dll(library, "second").value == 0.5


def test_structures_have_the_sizes_of_the_header(compiled: Any) -> None:
    ours = [ctypes.sizeof(driver.LaunchConfig), ctypes.sizeof(driver.LaunchAttribute)]
    assert list((ctypes.c_uint * 2).in_dll(compiled, "sizes")) == ours


def test_an_error_of_the_driver_is_raised(library: Any) -> None:
    status = ctypes.c_int.in_dll(library, "status")
    status.value = 701
    try:
        with pytest.raises(RuntimeError, match="cuLaunchKernelEx failed: CUDA driver error 701"):
            driver.launch_early(1, (1, 1, 1), 32, 0, 0, [ctypes.c_int(0), ctypes.c_double(0)])
    finally:
        status.value = 0


@pytest.mark.parametrize("old", [OSError("no such file"), SimpleNamespace()])
def test_without_a_driver_or_with_an_old_one_there_is_no_library(monkeypatch: pytest.MonkeyPatch, old: Any) -> None:
    def load(_: str) -> Any:
        if isinstance(old, OSError):
            raise old
        return old

    driver.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", load)
    try:
        assert driver.library() is None
    finally:
        driver.library.cache_clear()


# --- which kernels start early -----------------------------------------------------------------------------------


def device_over(monkeypatch: pytest.MonkeyPatch, capability: str, driver_version: int, library: Any) -> Any:
    monkeypatch.setattr(probe, "_check_packages", lambda: None)
    monkeypatch.setattr(driver, "library", lambda: library)
    fake = FakeCupy(capability=capability)
    fake.driver = driver_version
    install(monkeypatch, fake)
    return probe.find_device(1)


@pytest.mark.parametrize(
    ("capability", "version", "library", "early"),
    [("90", 13000, Driver(), True), ("120", 12030, Driver(), True), ("89", 13000, Driver(), False),
     ("90", 12020, Driver(), False), ("90", 13000, None, False)],
)  # fmt: skip
def test_kernels_start_early_if_gpu_and_driver_support_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, version: int, library: Any, early: bool
) -> None:
    assert device_over(monkeypatch, capability, version, library).starts_early is early


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("allowed", [True, False])
def test_only_kernels_that_wait_themselves_start_early(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    library = Driver()
    device = device_over(monkeypatch, "90", 13000, library)
    device.starts_early = allowed
    x, weight = (device.upload(np.arange(1, n + 1, dtype=np.float32)) for n in (8, 8))
    normed, activated = (device.empty((1, 8), np.dtype(np.float32)) for _ in range(2))

    def work() -> None:
        device.launch(launches.layer_norm("float32", 1), x, weight, weight, 1e-5, normed, 8)
        device.launch(launches.bias_gelu("float32", 1), normed, weight, activated, 8)

    work()
    eager = device.download(activated)
    device.write(activated, np.zeros_like(eager))
    device.capture(work)()
    assert np.array_equal(device.download(activated), eager)
    assert np.isfinite(eager).all()
    assert library.early == ["layer_norm<float>"] * 2 * allowed
