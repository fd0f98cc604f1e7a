"""BLOOM on the CPU, through Numba and LLVM intrinsics; `make_backend` is the entry point of the backend `numba`."""

import os
import platform
from typing import TYPE_CHECKING

from bloomref.errors import Unsupported, invalid

if TYPE_CHECKING:
    from accel.numba_cpu.numba_backend import NumbaBackend


THREADS = "NUMBA_NUM_THREADS"
MAX_THREADS = 1024
WITHOUT_F16C = ("generic", "x86-64", "x86-64-v2")


def _check_threads() -> None:
    """Check the variable before Numba reads it, which would start a million threads if asked to."""
    value = os.environ.get(THREADS)
    if value and not (value.strip().isdecimal() and 0 < int(value) <= MAX_THREADS):
        raise invalid(THREADS, f"an integer in [1, {MAX_THREADS}]", repr(value))


def _check_target() -> None:
    """Refuse a forced processor without the conversion of float16 (F16C): LLVM would end the process.

    Raises:
        Unsupported: with the variables that it needs.
    """
    name, features = os.environ.get("NUMBA_CPU_NAME", ""), os.environ.get("NUMBA_CPU_FEATURES", "")
    if name in WITHOUT_F16C and "+f16c" not in features and platform.machine() in ("x86_64", "AMD64"):
        hint = "set NUMBA_CPU_FEATURES=+f16c, or choose backend 'numpy'"
        raise Unsupported(f"NUMBA_CPU_NAME: expected a processor with F16C, got {name!r}; {hint}")


def make_backend() -> "NumbaBackend":
    """Return the backend.

    Sets `GOMP_SPINCOUNT` to 10,000 unless the environment has it: a thread of GNU's OpenMP that waits for another one
    spins for under a millisecond, and then sleeps. By default it keeps its core for longer. That core is missing where
    the other thread waits for it: beside a busy process, and in training, where BLAS has threads of its own. A tenth of
    it or less costs a quarter of the speed of decoding on a quiet machine, where threads are woken too often. OpenMP
    reads the variable when the first parallel kernel runs.

    Raises:
        ImportError: numba is not installed. InvalidInput, Unsupported: an environment variable has a wrong
            value, or one with which kernels cannot be compiled.
    """
    _check_threads()
    _check_target()
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise ImportError("numba is not installed") from error
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from accel.numba_cpu.jit_cache import use_cache_folder

    use_cache_folder()
    from accel.numba_cpu.numba_backend import NumbaBackend

    return NumbaBackend()
