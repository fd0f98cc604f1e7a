"""Errors that say in one sentence what is missing and what to do, with fakes of CuPy, driver and GPUs."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cupy import CompileException, FakeCupy, install

from accel import cupy_gpu
from accel.cupy_gpu import probe
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES
from bloomref.errors import InvalidInput, Unsupported
from bloomref.params import init_params

CONFIG = BloomConfig(vocabulary_size=40, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=11)
LARGE = CONFIG.replace(vocabulary_size=250_880, hidden_dim=1536)
GB = 10**9


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return installed(monkeypatch, FakeCupy())


def installed(
    monkeypatch: pytest.MonkeyPatch, fake: FakeCupy, packages: tuple[str, ...] = ("cupy-cuda13x",)
) -> FakeCupy:
    monkeypatch.setattr(probe, "_installed", lambda name: "14.2.0" if name in packages else None)
    return install(monkeypatch, fake)


def reason(config: BloomConfig = CONFIG, policy: str = "float32", device: str = "") -> str | None:
    return cupy_gpu.make_backend(device).unsupported(config, POLICIES[policy])


def test_a_gpu_that_can_be_used_has_no_reason_against_it(fake: FakeCupy) -> None:
    assert [reason(policy=name) for name in POLICIES] == [None] * len(POLICIES)
    assert fake.used == []  # nothing was allocated


def test_a_missing_cupy_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_gpu, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"^cupy is not installed$"):
        cupy_gpu.make_backend()


def test_two_versions_of_cupy_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FakeCupy(), ("cupy-cuda12x", "cupy-cuda13x"))
    assert reason() == (
        "cupy-cuda12x and cupy-cuda13x overwrite each other's files; pip uninstall cupy-cuda12x cupy-cuda13x, then install one"
    )


@pytest.mark.parametrize("old", ["13.6.0", "14.1.1", "14.0.0rc1"])
def test_an_old_cupy_is_reported(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    monkeypatch.setattr(type(fake), "__version__", old)
    assert reason() == f"cupy {old} is older than the 14.2 needed; pip install --upgrade 'bloomref[cuda13]'"


@pytest.mark.usefixtures("fake")
def test_a_numpy_whose_bfloat16_cupy_does_not_know_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        old.setattr(np, "__version__", "2.1.1")
        assert reason() == "numpy 2.1.1 is older than the 2.1.2 needed; pip install --upgrade 'bloomref[cuda13]'"
        old.setattr(np, "__version__", "2.10.0")
        assert reason() is None


@pytest.mark.parametrize(
    "message", ["libcublas.so.13: cannot open shared object file", "=====\nlong\n\nOriginal error:\n  no\n===", ""]
)
def test_a_broken_cupy_is_reported(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    installed(monkeypatch, FakeCupy())

    def broken(_: str) -> Any:
        raise ImportError(message)

    monkeypatch.setattr(probe.importlib, "import_module", broken)
    shown = reason()
    assert shown is not None
    assert shown.startswith("cupy cannot be imported (")
    assert shown.endswith("); pip install --force-reinstall 'bloomref[cuda13]'")
    assert "\n" not in shown
    assert (message.split()[-2:-1] or ["ImportError"])[0] in shown


def test_missing_cuda_libraries_are_reported(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "CuPy does not find cuBLAS or NVRTC, libraries of CUDA; pip install 'bloomref[cuda13]'"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cupy_backends.cuda.libs", ModuleType("no cublas in it"))
        assert reason() == expected
    assert reason() is None

    def fail() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.13")

    fake.cuda.nvrtc.getVersion = fail
    assert reason() == expected


@pytest.mark.parametrize(
    ("driver", "status", "expected"),
    [
        (0, 35, "no NVIDIA driver is loaded on this machine; install one, or use another backend"),
        (
            12040,
            35,
            "the NVIDIA driver is for CUDA 12.4, this CuPy for 13.2; update the driver or pip install 'bloomref[cuda12]'",
        ),
        (11080, 35, "the NVIDIA driver is for CUDA 11.8, this CuPy for 13.2; update the driver"),
        (13020, 100, "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it; use another backend"),
        (13020, 999, "the NVIDIA driver does not answer (cudaError 999); see whether nvidia-smi does"),
    ],
)
def test_a_missing_driver_or_device_is_reported(fake: FakeCupy, driver: int, status: int, expected: str) -> None:
    fake.driver, fake.status = driver, status
    assert reason() == expected


def test_a_device_that_does_not_exist_is_reported(fake: FakeCupy) -> None:
    assert reason(device="1") is None
    assert reason(device="2") == "there is no device 2; this machine has cupy:0 to cupy:1"
    fake.count = 1
    assert reason(device="1") == "there is no device 1; this machine has cupy:0 alone"


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "1:2", " ", "０x"])
def test_a_device_must_be_a_number(text: str, fake: FakeCupy) -> None:  # noqa: ARG001
    with pytest.raises(InvalidInput, match=r"^backend: expected cupy, or cupy: and the number of a device"):
        cupy_gpu.make_backend(text)


def test_the_name_has_the_requested_device(fake: FakeCupy) -> None:  # noqa: ARG001
    assert [cupy_gpu.make_backend(text).name for text in ("", "0", "1")] == ["cupy", "cupy:0", "cupy:1"]


@pytest.mark.parametrize("capability", ["52", "70"])
def test_an_old_gpu_is_reported(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    installed(monkeypatch, FakeCupy(capability=capability))
    shown = f"{capability[0]}.{capability[1]}"
    expected = (
        f"Fake GPU 0 (cupy:0) has compute capability {shown}, older than the 7.5 (Turing) needed; use another backend"
    )
    assert reason() == expected


def test_bfloat16_on_a_gpu_without_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FakeCupy(capability="75"))
    assert reason(policy="float16") is None
    expected = "Fake GPU 0 (cupy:0) computes bfloat16 only from compute capability 8.0 on; use dtype='float16'"
    assert reason(policy="bfloat16") == reason(policy="mixed_bfloat16") == expected


@pytest.mark.parametrize(
    ("policy", "free", "expected"),
    [
        ("float32", 3, None),
        ("float32", 1, "1.62 GB of float32 weights do not fit into 1 GB free on Fake GPU 0 (cupy:0); dtype='bfloat16' does"),
        ("float64", 2, "3.24 GB of float64 weights do not fit into 2 GB free on Fake GPU 0 (cupy:0); dtype='float32' does"),
        ("float16", 0.5, "810 MB of float16 weights do not fit into 500 MB free on Fake GPU 0 (cupy:0); it needs a device with more memory"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_reported(
    monkeypatch: pytest.MonkeyPatch, policy: str, free: float, expected: str | None
) -> None:
    fake = installed(monkeypatch, FakeCupy(free=int(free * GB)))
    assert reason(LARGE, policy) == expected
    assert fake.used == []


def test_running_out_of_memory_is_unsupported(fake: FakeCupy) -> None:
    """Memory can run out despite the estimates, for example if another program allocates some."""
    prepared = cupy_gpu.make_backend().prepare(init_params(CONFIG, 0), CONFIG, POLICIES["float32"])
    fake.free = 1000
    with pytest.raises(
        Unsupported,
        match=r"^out of memory on Fake GPU 0 \(cupy:0\): 1,200 bytes .* 1,000 are free; use a smaller batch",
    ):
        prepared.from_host(init_params(CONFIG, 0).word_embedding[None, :20])


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (RuntimeError, "Failed to find CUDA headers. Please install", r"needs the headers of CUDA.*; pip install 'bloomref\[cuda13\]'$"),
        (CompileException, "x.cu(1): error: cannot open source file \"cuda_fp16.h\"", r"needs the headers of CUDA.*; pip install 'bloomref\[cuda13\]'$"),
        (CompileException, "x.cu(1): error: no\nmore\n", r"does not compile with this version of CUDA: x.cu\(1\): error: no$"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_be_compiled_is_unsupported(
    fake: FakeCupy, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str, expected: str
) -> None:
    raises(fake, monkeypatch, kind(message))
    with pytest.raises(Unsupported, match=expected):
        first_kernel()


def test_another_error_of_cupy_is_not_hidden(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    raises(fake, monkeypatch, RuntimeError("the disk is full"))
    with pytest.raises(RuntimeError, match=r"^the disk is full$"):
        first_kernel()


def raises(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let CuPy raise an error when it loads a kernel."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fake.RawModule, "get_function", fail)


def first_kernel() -> None:
    params = init_params(CONFIG, 0)
    prepared = cupy_gpu.make_backend().prepare(params, CONFIG, POLICIES["float32"])
    prepared.final_norm(prepared.from_host(params.word_embedding[None, :2]))


def test_nothing_is_imported_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken CuPy must not keep `auto` from the other backends."""
    module = ModuleType("cupy")
    module.__spec__ = ModuleSpec("cupy", None)
    monkeypatch.setitem(sys.modules, "cupy", module)  # an empty module
    assert cupy_gpu.make_backend().name == "cupy"


def test_only_one_module_imports_cupy() -> None:
    code = "import sys, accel.cupy_gpu.cupy_backend, accel.cupy_gpu.probe; print('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"False"]
