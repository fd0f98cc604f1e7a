"""Instruction set, tile sizes and threads: the constants that every kernel is compiled with."""

import math
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

import llvmlite.binding
import numba

from bloomref.errors import invalid

ISA_VARIABLE: Final = "BLOOMREF_NUMBA_ISA"
ISAS: Final = ("avx512bf16", "avx512", "generic")


def detect() -> str:
    """Return the widest instruction set that may be used: that of BLOOMREF_NUMBA_ISA, or what the processor reports.

    An instruction that the processor lacks ends the process without an exception. A forced target of Numba
    (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES) therefore leaves only the generic kernels.

    Raises:
        InvalidInput: the variable names no instruction set.
    """
    forced = os.environ.get(ISA_VARIABLE)
    if forced is not None:
        if forced not in ISAS:
            raise invalid(ISA_VARIABLE, f"one of {', '.join(ISAS)}", repr(forced))
        return forced
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        return "generic"
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512bw"):
        return "avx512bf16" if features.get("avx512bf16") else "avx512"
    return "generic"


ISA: Final = detect()
HAS_BF16_DOT: Final = ISA == "avx512bf16"
# Sizes of the products' loops, by the names of BLIS; `linear` says which loop is whose.
# Rows that a register tile may have, largest first, and columns: 24 of 32 vector registers hold sums (AVX-512), else 12
# of 16.
TILE_SIZES: Final = (6, 4, 2, 1) if ISA == "generic" else (12, 8, 4, 2, 1)
MR: Final = TILE_SIZES[0]
NR: Final = 16 if ISA == "generic" else 32
# Steps of one slice of a sum: 32 kB of a panel, which every tile of rows reads again from the second-level cache.
KC: Final = 256
# Steps from one row of a slice to the next: more than KC, so that the rows of a tile do not map to the same cache sets.
LDA: Final = KC + 32
LINE: Final = 64  # bytes of a cache line, and of a vector of AVX-512
QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def thread_count() -> int:
    """Number of threads of a kernel: Numba's, which respects affinity, and at most the CPU quota of the container."""
    return min(numba.get_num_threads(), _quota())


@cache
def _quota() -> int:
    """CPUs that the control group (version 2) grants, rounded up."""
    try:
        time, period = QUOTA.read_text("ascii").split()
        return max(1, math.ceil(int(time) / int(period)))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return sys.maxsize
