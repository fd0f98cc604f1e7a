"""Where the tools of the tests are found: in NVIDIA's packages, or in a CUDA toolkit."""

from pathlib import Path

import pytest
import toolchain


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of the packages and of a toolkit, both empty."""
    packages, toolkit = tmp_path / "packages", tmp_path / "toolkit"
    monkeypatch.setattr(toolchain, "roots", lambda: (packages, toolkit))
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: "/usr/bin/g++")
    return packages, toolkit


def add(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_packages_come_before_a_toolkit(folders: tuple[Path, Path]) -> None:
    packages, toolkit = folders
    add(toolkit, "bin/nvdisasm", "lib64/libnvrtc.so.13", "include/cuda_fp16.h")
    assert toolchain.library("libnvrtc") == toolkit / "lib64/libnvrtc.so.13"
    add(packages, "lib/libnvrtc.so.13", "include/cuda_fp16.h")
    assert toolchain.library("libnvrtc") == packages / "lib/libnvrtc.so.13"
    assert toolchain.cuda_file("bin/nvdisasm") == toolkit / "bin/nvdisasm"
    assert toolchain.headers() == packages / "include"
    assert toolchain.compiler_missing() is None


def test_gcc_needs_headers_that_nvrtc_does_not(folders: tuple[Path, Path]) -> None:
    packages, toolkit = folders
    add(packages, "include/cuda_fp16.h")
    assert toolchain.emulator_missing() == f"cuda_fp16.h and its folder crt are not installed: {toolchain.PACKAGES}"
    add(toolkit, "include/cuda_fp16.h", "include/crt/host_defines.h")
    assert toolchain.emulator_missing() is None
    assert toolchain.host_headers() == toolkit / "include"


@pytest.mark.usefixtures("folders")
def test_what_is_missing_is_named() -> None:
    assert toolchain.compiler_missing() == f"NVRTC, cuda_fp16.h, nvdisasm not installed: {toolchain.PACKAGES}"
