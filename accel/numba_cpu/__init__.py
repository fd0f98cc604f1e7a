"""BLOOM on the CPU, through Numba and LLVM intrinsics: `make_backend` is the entry point of bloomref's backend `numba`."""

from typing import Any


def make_backend() -> Any:
    """The backend. Imports numba; an ImportError says what to install."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise ImportError("numba is not installed") from error
    from accel.numba_cpu.jit_cache import use_cache_folder

    use_cache_folder()
    from accel.numba_cpu.numba_backend import NumbaBackend

    return NumbaBackend()
