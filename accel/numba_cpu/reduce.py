"""How every kernel is compiled, and sums whose bits do not depend on how the compiler vectorised them.

A sum runs in PANEL lanes, each in order, and the lanes are added in order: it becomes vector instructions although the
compiler may regroup nothing.
"""

from typing import Any

import numpy as np
from numba import njit

from accel.numba_cpu.cpu import FASTMATH, PANEL
from accel.numba_cpu.elementwise import fma

jit = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=True)
jit_parallel = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=True, parallel=True)


@jit
def _add_to(lanes: Any, row: Any) -> None:
    for j in range(row.size):
        lanes[j] += row[j]


@jit
def _add_squares(lanes: Any, row: Any) -> None:
    for j in range(row.size):
        lanes[j] = fma(row[j], row[j], lanes[j])


@jit
def _collect(lanes: Any) -> Any:
    total = np.float32(0.0)
    for j in range(lanes.size):
        total += lanes[j]
    return total


@jit
def total_of(row: Any, lanes: Any) -> Any:
    """The sum of a row; zeros behind it do not change a bit. `lanes` is scratch space of PANEL numbers."""
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, PANEL):
        _add_to(lanes, row[start : start + PANEL])
    return _collect(lanes)


@jit
def squares_of(row: Any, lanes: Any) -> Any:
    """The sum of the squares of a row."""
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, PANEL):
        _add_squares(lanes, row[start : start + PANEL])
    return _collect(lanes)
