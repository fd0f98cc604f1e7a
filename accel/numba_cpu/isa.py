"""What this processor can do, and the constants that every kernel is compiled with."""

import math
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

import llvmlite.binding
import numba

# The compiler may change no result: with any flag it fuses or regroups as each context suits it, and a kernel from the cache
# no longer gives the bits of one just compiled. Where fusing is wanted, the code says `fma`.
FASTMATH: Final = False

ISA_VARIABLE: Final = "BLOOMREF_NUMBA_ISA"
ISAS: Final = ("avx512bf16", "avx512", "generic")


def detect() -> str:
    """The widest instruction set that may be used: the variable's, or what the processor reports.

    An instruction that the processor lacks does not raise, it ends the process; so a forced target of Numba
    (NUMBA_CPU_NAME) leaves only the generic kernels.
    """
    forced = os.environ.get(ISA_VARIABLE)
    if forced is not None:
        if forced not in ISAS:
            raise ValueError(f"{ISA_VARIABLE}: expected one of {', '.join(ISAS)}, got {forced!r}")
        return forced
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        return "generic"
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512bw"):
        return "avx512bf16" if features.get("avx512bf16") else "avx512"
    return "generic"


ISA: Final = detect()
HAS_BF16_DOT: Final = ISA == "avx512bf16"
# Rows and columns of the largest register tile: 24 of 32 vector registers hold sums (AVX-512), 12 of 16 elsewhere.
TILE_ROWS: Final = 6 if ISA == "generic" else 12
PANEL: Final = 16 if ISA == "generic" else 32
# Steps of one slice of a sum: 32 kB of a panel, which is read again from the second-level cache for every tile of rows.
DEPTH: Final = 256
# Steps from one row of a slice to the next: a little more, so that the rows of a tile do not meet in the same cache sets.
PITCH: Final = DEPTH + 32
LINE: Final = 64  # bytes of a cache line, and of a vector of AVX-512
QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def thread_count() -> int:
    """What Numba was told or sees, at most what the container may use: Numba knows a process's affinity, not its quota."""
    return min(numba.get_num_threads(), _quota())


# How long a thread of GNU's OpenMP that waits for work keeps its core busy: by default for milliseconds, in which BLAS, whose
# threads take turns with these in training, has half the cores. Read when the first parallel kernel runs.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@cache
def _quota() -> int:
    """Processors' worth of time that the control group (version 2) grants."""
    try:
        time, period = QUOTA.read_text("ascii").split()
        return max(1, math.ceil(int(time) / int(period)))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return sys.maxsize
