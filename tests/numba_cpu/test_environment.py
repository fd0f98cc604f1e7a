"""The environment of the Numba backend: variables, folders and installations that are not as expected."""

import os
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from accel import numba_cpu  # noqa: E402
from accel.numba_cpu import isa, jit_cache, parallel  # noqa: E402
from bloomref.errors import InvalidInput, Unsupported  # noqa: E402
from bloomref.runtime import registry  # noqa: E402

POINT = EntryPoint("numba", "accel.numba_cpu:make_backend", registry.GROUP)


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5", "1000000", "9" * 50, "\u00b2"])
def test_a_wrong_number_of_threads_is_named(value, monkeypatch):
    monkeypatch.setenv(numba_cpu.THREADS, value)
    with pytest.raises(InvalidInput, match=numba_cpu.THREADS):
        numba_cpu.make_backend()


@pytest.mark.parametrize("value", ["", "1", " 2 "])
def test_a_right_number_of_threads_is_taken(value, monkeypatch):
    monkeypatch.setenv(numba_cpu.THREADS, value)
    numba_cpu._check_threads()


@pytest.mark.parametrize("name", numba_cpu.WITHOUT_F16C)
def test_a_processor_without_float16_is_refused_before_llvm_ends_the_process(name, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("NUMBA_CPU_NAME", name)
    with pytest.raises(Unsupported, match="F16C"):
        numba_cpu.make_backend()
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2,+f16c")
    numba_cpu._check_target()


@pytest.mark.parametrize("value", ["", "avx", "AVX512", "generic "])
def test_a_wrong_instruction_set_is_named(value, monkeypatch):
    monkeypatch.setenv(isa.ISA_VARIABLE, value)
    with pytest.raises(InvalidInput, match=f"{isa.ISA_VARIABLE}: expected one of avx512bf16"):
        isa.detect()


def test_the_marks_are_those_of_one_python_processor_and_installation(tmp_path, monkeypatch):
    names = {jit_cache.cache_folder().name}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 99, 1))
        names.add(jit_cache.cache_folder().name)
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CPU_NAME", "generic")
        names.add(jit_cache.cache_folder().name)
    copy = shutil.copytree(Path(jit_cache.__file__).parent, tmp_path / "copy")
    monkeypatch.setattr(jit_cache, "__file__", str(copy / "jit_cache.py"))
    names.add(jit_cache.cache_folder().name)
    os.utime(copy / "linear.py", (5, 5))
    names.add(jit_cache.cache_folder().name)
    assert len(names) == 5


@pytest.mark.parametrize("place", ["/dev/null", "/proc", "file"])
def test_a_folder_that_cannot_be_written_is_no_cache(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / place))
    assert not jit_cache.can_cache.__wrapped__()
    jit_cache.mark("float32")
    assert not jit_cache.is_marked("float32")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new"))
    assert jit_cache.can_cache.__wrapped__()


@pytest.mark.parametrize("error", [EOFError(), UnpicklingError("invalid load key")])
def test_damaged_kernels_are_a_sentence(error):
    def call() -> None:
        raise error

    with pytest.raises(Unsupported, match="delete this folder"):
        parallel.enters_kernels(call)()


def test_a_foreign_module_of_the_packages_name_is_named(monkeypatch, tmp_path):
    assert registry.hidden(POINT) == ""
    foreign = ModuleType("accel")
    foreign.__file__ = str(tmp_path / "accel.py")
    Path(foreign.__file__).touch()
    monkeypatch.setitem(sys.modules, "accel", foreign)
    monkeypatch.delitem(sys.modules, "accel.numba_cpu")
    assert "accel.py hides the package 'accel' of bloomref" in registry.hidden(POINT)
    with pytest.raises(Unsupported, match=r"accel\.py hides"):
        registry._call("numba", POINT)
    monkeypatch.setattr(registry, "available", lambda: {"numba": POINT})
    assert len(registry.hidden_backends()) == 1
