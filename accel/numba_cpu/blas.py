"""The threads of BLAS, which float64 and training use: no more than the kernels take."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from accel.numba_cpu.isa import thread_count

FEW = 1 << 22  # multiplications of all heads: fewer take less time than it takes to start threads


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class _Process:
    """State of this process. The lock is held while the number of threads changes: what a thread restores is what it
    found.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]


@contextmanager
def limited() -> Iterator[None]:
    """Limit BLAS to `thread_count()` threads within the context."""
    with _process.lock:
        limit = _pools().limit(limits=min([thread_count(), *(pool["num_threads"] for pool in _pools().info())]))
    try:
        yield
    finally:
        with _process.lock:
            limit.restore_original_limits()


def of_heads(a: Any, b: Any, out: Any) -> Any:
    """`out` = a @ b for each head of (B, H, ...): every thread multiplies for its share of the heads.

    BLAS would start all of its threads for each head. Such a product is so short that they spend most of the time
    waiting for each other, the more so on a busy machine.
    """
    threads = min(thread_count(), a.shape[1])
    if threads < 2 or a.size * b.shape[-1] < FEW:
        return np.matmul(a, b, out=out)

    def multiply(t: int) -> None:
        share = slice(a.shape[1] * t // threads, a.shape[1] * (t + 1) // threads)
        np.matmul(a[:, share], b[:, share], out=out[:, share])

    with _process.lock, _pools().limit(limits=1), ThreadPoolExecutor(threads) as pool:
        list(pool.map(multiply, range(threads)))
    return out
