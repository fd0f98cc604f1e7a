"""Compiles a kernel for the CPU with g++ and cuda_on_cpu.h, and runs its grids.

Libraries are cached by the hash of their source.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import toolchain

from accel.cupy_gpu import sources
from accel.cupy_gpu.sources import Kernel

SHIM = Path(__file__).with_name("cuda_on_cpu.h")
FLAGS = ("-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-w")

_ENTRY = """
static const auto kernel = emulated::entry({expression});
static std::string failure;
extern "C" const char* run(
    const unsigned* grid, int threads, size_t shared, unsigned seed, void (*previous)(), void** arguments) {{
    failure = emulated::run_grid(
        dim3(grid[0], grid[1], grid[2]), threads, shared, seed, previous, [&] {{ kernel(arguments); }});
    return failure.c_str();
}}
"""


_WORK = ctypes.CFUNCTYPE(None)


class EmulationError(AssertionError):
    """A grid broke a rule: a deadlock, a misaligned load, a write beyond shared memory."""


def compile_kernel(kernel: Kernel, change: Callable[[str], str] = str) -> Any:
    """Compile one kernel and return the C function `run` of its library. `change` edits the source first."""
    return _library(change(sources.source(kernel.module)), kernel.expression)


@cache
def _library(source: str, expression: str) -> Any:
    text = f'#include "{SHIM.name}"\n{source}\n{_ENTRY.format(expression=expression)}'
    path = _folder() / f"{_hash(text)}.so"
    if not path.exists():
        _compile("-", path, "c++", text)
    run = ctypes.CDLL(str(path)).run
    run.restype = ctypes.c_char_p
    run.argtypes = (
        ctypes.POINTER(ctypes.c_uint), ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, _WORK, ctypes.c_void_p,
    )  # fmt: skip
    return run


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _folder() -> Path:
    """Return the folder of the libraries built with this shim, headers and flags. The shim is precompiled there."""
    headers = str(toolchain.host_headers())
    folder = (
        Path(tempfile.gettempdir())
        / f"bloomref-emulated-{os.getuid()}"
        / _hash("\0".join((SHIM.read_text(), headers, *FLAGS)))
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    compiled = folder / f"{SHIM.name}.gch"
    if not compiled.exists():
        _compile(str(SHIM), compiled, "c++-header")
    return folder


def _compile(source: str, path: Path, language: str, text: str = "") -> None:
    """Compile a file, or `text` if `source` is "-"."""
    partial = path.with_suffix(f".{os.getpid()}{path.suffix}")
    includes = (f"-I{path.parent}", f"-I{SHIM.parent}", f"-I{toolchain.host_headers()}")
    command = [shutil.which("g++") or "g++", *FLAGS, *includes, "-x", language, source, "-o", str(partial)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr[:4000]}")
    partial.rename(path)  # atomic, because other processes may compile the same library


def run_grid(
    run: Any,
    grid: Sequence[int],
    block: int,
    shared: int,
    arguments: Sequence[Any],
    seed: int,
    previous: Callable[[], None] | None = None,
) -> None:
    """Run a grid.

    Args:
        previous: Runs the preceding kernel, for one that starts early. It is called when all threads wait for it.

    Raises:
        EmulationError: The grid broke a rule; the message is the reason.
    """
    addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    errors: list[BaseException] = []
    before = _WORK(_catching(previous, errors)) if previous else _WORK()
    failure = run((ctypes.c_uint * 3)(*grid), block, shared, seed, before, addresses).decode()
    if errors:
        raise errors[0]
    if failure:
        raise EmulationError(failure)


def _catching(work: Callable[[], None], errors: list[BaseException]) -> Callable[[], None]:
    """Wrap `work` so that its exception is stored, because C code cannot propagate it."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    return run
