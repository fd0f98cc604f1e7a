"""BLOOM on the CPU, through Numba and LLVM intrinsics; `make_backend` is the entry point of the backend `numba`."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.numba_cpu.numba_backend import NumbaBackend


def make_backend() -> "NumbaBackend":
    """Return the backend.

    Sets `GOMP_SPINCOUNT` to 10000 unless the environment has it. A thread of GNU's OpenMP that waits for work keeps its
    core busy, by default for milliseconds; BLAS, whose threads alternate with these in training, would have half the
    cores meanwhile. OpenMP reads the variable when the first parallel kernel runs.

    Raises:
        ImportError: numba is not installed.
    """
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise ImportError("numba is not installed") from error
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from accel.numba_cpu.jit_cache import use_cache_folder

    use_cache_folder()
    from accel.numba_cpu.numba_backend import NumbaBackend

    return NumbaBackend()
