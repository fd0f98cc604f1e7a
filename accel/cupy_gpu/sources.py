"""CUDA C++ source of each module, and names of its kernels.

The source is one string, because the cache of compiled kernels is keyed by this string alone: included headers are not
part of the key.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

CPP_TYPE = {"float64": "double", "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
MODULES = ("rows", "attention", "flash", "tiled", "matvec", "tensor", "choice")
OPTIONS = ("-std=c++17",)
"""Compiler options, in addition to the architecture and the include folder of cuda_fp16.h."""

_HEADERS = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"


@dataclass(frozen=True)
class Kernel:
    """A template instantiation: `expression` is its C++ name in the source of `module`, such as layer_norm<__half>."""

    module: str
    expression: str


def kernel(module: str, name: str, *arguments: str | int) -> Kernel:
    """Return the instantiation of `name` for template arguments.

    An argument is the NumPy name of a dtype, a number, or a bool, which is written as in C++.
    """
    listed = ", ".join(CPP_TYPE.get(str(a), str(a).lower() if isinstance(a, bool) else str(a)) for a in arguments)
    return Kernel(module, f"{name}<{listed}>" if listed else name)


@cache
def source(module: str) -> str:
    """Return the complete source of a module. It includes only cuda_bf16.h and cuda_fp16.h."""
    folder = files("accel.cupy_gpu") / "kernels"
    parts = [(folder / name).read_text("utf-8") for name in ("ptx.cuh", "common.cuh", f"{module}.cu")]
    return _HEADERS + "\n".join(parts)
