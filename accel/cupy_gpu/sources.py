"""The CUDA C++ of each module as one string, and the names of the kernels in it.

One string, because a compiled kernel is cached by the text that was compiled: headers that it includes do not count.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

CPP_TYPE = {"float64": "double", "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
MODULES = ("rows", "attention", "flash", "tiled", "matvec", "tensor", "choice")
OPTIONS = ("-std=c++17",)
"""What the compiler needs beside the architecture and the folder of cuda_fp16.h."""

_HEADERS = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"


@dataclass(frozen=True)
class Kernel:
    """One instantiation: `expression` is the C++ name, such as layer_norm<__half>, in the source of `module`."""

    module: str
    expression: str


def kernel(module: str, name: str, *arguments: str | int) -> Kernel:
    """The instantiation of `name` for these template arguments; a dtype is given by its name, a bool as 0 or 1."""
    listed = ", ".join(CPP_TYPE.get(str(a), str(int(a)) if isinstance(a, bool) else str(a)) for a in arguments)
    return Kernel(module, f"{name}<{listed}>" if listed else name)


@cache
def source(module: str) -> str:
    """The whole text of a module. It includes nothing but cuda_bf16.h and cuda_fp16.h."""
    folder = files("accel.cupy_gpu") / "kernels"
    parts = [(folder / name).read_text("utf-8") for name in ("ptx.cuh", "common.cuh", f"{module}.cu")]
    return _HEADERS + "\n".join(parts)
