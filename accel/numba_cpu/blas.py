"""BLAS, where it is used: in float64 and in training, and then on no more threads than the kernels beside it take."""

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
    """For as long as this lasts."""
    least = min([thread_count(), *(pool["num_threads"] for pool in _pools().info())])
    with _pools().limit(limits=least):
        yield
