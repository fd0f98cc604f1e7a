"""The threads of BLAS, which float64 and training use: no more than the kernels take."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

from accel.numba_cpu.isa import thread_count


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def limited() -> Iterator[None]:
    """Limit BLAS to `thread_count()` threads within the context."""
    least = min([thread_count(), *(pool["num_threads"] for pool in _pools().info())])
    with _pools().limit(limits=least):
        yield
