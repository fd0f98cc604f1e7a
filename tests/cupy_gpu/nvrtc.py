"""Compiles kernels without a GPU: NVRTC through ctypes, and nvdisasm for the machine code."""

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import toolchain

from accel.cupy_gpu import sources

CUPY_OPTION = "--ftz=true"  # CuPy adds it for every kernel


@dataclass(frozen=True)
class Report:
    """Resources of a compiled kernel: registers per thread, and bytes of stack and of register spills."""

    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    """A module compiled for one architecture: report and machine code of each kernel, by expression."""

    reports: dict[str, Report]
    instructions: dict[str, str]


def compile_module(module: str, expressions: Sequence[str], arch: int) -> Compiled:
    """Compile kernels of a module for one architecture.

    Raises:
        RuntimeError: The compilation failed; the message is the compiler's log.
    """
    program, lib = ctypes.c_void_p(), _library()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), sources.source(module).encode(), b"module.cu", 0, None, None))
    for expression in expressions:
        _check(lib.nvrtcAddNameExpression(program, expression.encode()))
    headers = toolchain.headers()
    options = [
        f"-arch=sm_{arch}",
        *sources.OPTIONS,
        CUPY_OPTION,
        "--ptxas-options=-v",
        f"-I{headers}",
        f"-I{headers}/cccl",
    ]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = lib.nvrtcCompileProgram(program, len(options), encoded)
    log = _bytes(program, "ProgramLog").decode()
    if failed:
        raise RuntimeError(log)
    names = {_lowered(program, expression): expression for expression in expressions}
    reports = {names[name]: report for name, report in _reports(log).items() if name in names}
    instructions = {names[name]: text for name, text in _disassemble(_bytes(program, "CUBIN")) if name in names}
    _check(lib.nvrtcDestroyProgram(ctypes.byref(program)))
    return Compiled(reports, instructions)


@cache
def _library() -> Any:
    for name in ("libnvrtc-builtins", "libnvrtc"):  # the second does not find the first
        library = ctypes.CDLL(str(toolchain.library(name)), mode=ctypes.RTLD_GLOBAL)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(status: int) -> None:
    if status:
        raise RuntimeError(_library().nvrtcGetErrorString(status).decode())


def _bytes(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, data))
    return data.raw.rstrip(b"\0") if what == "ProgramLog" else data.raw


def _lowered(program: ctypes.c_void_p, expression: str) -> str:
    name = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
    return (name.value or b"").decode()


def _reports(log: str) -> dict[str, Report]:
    pattern = (
        r"Function properties for (\w+)\s[^\n]*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    reports = re.findall(pattern.replace(r"\s[^\n]*?", r"\n[^\n]*?"), log, re.DOTALL)
    return {name: Report(int(used), int(stack), int(out) + int(back)) for name, stack, out, back, used in reports}


def _disassemble(cubin: bytes) -> list[tuple[str, str]]:
    """Return (lowered name, instructions) of each kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(toolchain.cuda_file("bin/nvdisasm")), "-c", "-hex", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\.section\s+\.text\.(\w+)|^//-+ \.text\.(\w+)", text, flags=re.MULTILINE)
    names = [a or b for a, b in zip(sections[1::3], sections[2::3], strict=True)]
    return list(zip(names, sections[3::3], strict=True))
