"""Hardware limits: the rate of reading memory bounds decoding, the rate of matrix products bounds prefill."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

SIDE = 2048


def cores() -> int:
    """Number of processors that this process may run on, as narrowed by `taskset`."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Memory:
    """An array larger than any cache, whose reading is timed."""

    def __init__(self, size: int = 1 << 29) -> None:
        self.values = np.ones(size // 8, np.float64)
        self.pool = ThreadPoolExecutor(2 * cores())

    def read_rate(self) -> float:
        """GB/s of computing the maximum of the array, with one and with two threads a core: the best of six runs."""
        return max(self._read(streams) for streams in (cores(), 2 * cores()) for _ in range(3))

    def _read(self, streams: int) -> float:
        parts = np.array_split(self.values, streams)
        began = perf_counter()
        list(self.pool.map(np.max, parts))
        return self.values.nbytes / (perf_counter() - began) / 1e9


def product_rate(matrix: Any) -> float:
    """GFLOP/s of `matrix @ matrix` in NumPy or torch: the best of five runs."""
    return 2 * matrix.shape[0] ** 3 / best_seconds(lambda: matrix @ matrix) / 1e9


def best_seconds(run: Callable[[], Any], times: int = 5) -> float:
    """Shortest time of `times` runs."""
    seconds = []
    for _ in range(times):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return min(seconds)
