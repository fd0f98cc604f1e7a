"""The first start of `auto`: a small model runs on the next backend, while one process compiles kernels."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bloomref import BloomConfig
from bloomref.dtypes import DTypePolicy, dtype_policy
from bloomref.errors import BloomrefWarning
from bloomref.presets.preset_registry import PRESETS
from bloomref.runtime import compile_kernels, first_start, registry
from bloomref.runtime.numpy_backend import NumpyBackend

SMALL, LARGE = PRESETS["bloom_tiny_udhr"].config, PRESETS["bloom_560m_multi"].config
FLOAT32, FLOAT16 = dtype_policy("float32"), dtype_policy("float16")


class Compiling(NumpyBackend):
    """A backend with kernels, none of which exist."""

    name = "numba"

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def is_compiled(self, policy: DTypePolicy) -> bool:
        return policy.name in self.compiled

    def compile(self, policy: DTypePolicy) -> None:
        self.compiled.append(policy.name)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiling:
    """The only backend besides the reference; the environment is a user's, with a new cache folder."""
    compiling = Compiling()
    reference = registry.load("numpy")
    monkeypatch.setattr(registry, "names", lambda: ["numpy", "numba"])
    monkeypatch.setattr(registry, "load", lambda name: compiling if name == "numba" else reference)
    monkeypatch.delenv(first_start.COMPILE_FIRST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return compiling


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of the processes that would have been started."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    return commands


def chosen(config: BloomConfig = SMALL, policy: DTypePolicy = FLOAT32) -> str:
    return registry.choose("auto", config, policy).name


@pytest.mark.clause("BKD-28")
def test_the_next_backend_answers_while_one_process_compiles(backend: Compiling, started: list[list[str]]) -> None:
    with pytest.warns(
        BloomrefWarning, match=r"^backend 'numba': its kernels are being compiled in the background, once"
    ):
        assert chosen() == "numpy"
    assert chosen() == "numpy"  # without a warning, which would be an error here
    ((*_, name, policy, running),) = started
    assert (name, policy) == ("numba", "float32")
    compile_kernels.main(name, policy, running)
    assert backend.compiled == ["float32"]
    assert not Path(running).exists()
    assert chosen() == "numba"
    with pytest.warns(BloomrefWarning):
        assert chosen(policy=FLOAT16) == "numpy"
    assert len(started) == 2


@pytest.mark.clause("BKD-28")
@pytest.mark.usefixtures("backend")
def test_a_large_model_a_name_and_the_variable_wait_for_the_kernels(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(LARGE) == "numba"
    assert registry.choose("numba", SMALL, FLOAT32).name == "numba"
    monkeypatch.setenv(first_start.COMPILE_FIRST, "1")
    assert chosen() == "numba"
    assert started == []


@pytest.mark.usefixtures("backend")
def test_a_compilation_that_has_not_ended_is_started_again_later(started: list[list[str]]) -> None:
    for age, count in ((0, 1), (first_start.PATIENCE - 60, 1), (first_start.PATIENCE + 60, 2)):
        for path in map(Path, (command[-1] for command in started)):
            then = time.time() - age
            os.utime(path, (then, then))
        if len(started) < count:
            with pytest.warns(BloomrefWarning):
                chosen()
        else:
            chosen()
        assert len(started) == count


@pytest.mark.usefixtures("backend")
def test_nothing_is_started_where_the_cache_cannot_be_written(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert chosen() == "numpy"
    assert started == []


def test_two_installations_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    here = first_start._installation()
    monkeypatch.setattr(first_start, "__file__", "/elsewhere/first_start.py")
    assert first_start._installation() != here


@pytest.mark.usefixtures("backend")
def test_the_process_that_is_started_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real process, for a backend without kernels: it ends at once and removes its file."""
    real, processes = subprocess.Popen, []

    def start(command: list[str], **options: Any) -> Any:
        assert command[0] == sys.executable
        processes.append(real([*command[:-3], "numpy", *command[-2:]], **options))
        return processes[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.warns(BloomrefWarning):
        chosen()
    assert processes[0].wait(60) == 0
    assert list((tmp_path / "bloomref" / "compiling").iterdir()) == []
