"""Layer norm, and the embedding, whose rows are gathered from the packed head."""

from typing import Any

import numpy as np
from numba import prange

from accel.numba_cpu.elementwise import fma
from accel.numba_cpu.isa import MR, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.linear import put_row, round_row
from accel.numba_cpu.microkernel import widen_element
from accel.numba_cpu.reductions import squares_of, total_of


@jit
def _centre(row: Any, mean: Any, out: Any) -> None:
    for j in range(row.size):
        out[j] = row[j] - mean


@jit
def _affine(row: Any, scale: Any, weight: Any, bias: Any) -> None:
    for j in range(row.size):
        row[j] = fma(row[j] * scale, weight[j], bias[j])


@jit
def norm_row(row: Any, weight: Any, bias: Any, epsilon: Any, out: Any, dtype: int, lanes: Any) -> None:
    """EMB-3, EMB-4; rounded to `dtype`."""
    width = np.float32(row.size)
    _centre(row, total_of(row, lanes) / width, out)
    variance = squares_of(out, lanes) / width
    _affine(out, np.float32(1.0) / np.sqrt(variance + epsilon), weight, bias)
    round_row(out, dtype)


@jit
def _norm_range(x: Any, m: int, first: int, stop: int, width: int, ln: Any, out: Any, rows: Any, dtype: int) -> None:
    lanes = np.empty(NR, np.float32)
    for i in range(first, stop):
        norm_row(x[i, :width], ln[0], ln[1], ln[2], out[i, :width], dtype, lanes)
        put_row(out[i, :width], rows, m, i)


@jit_parallel
def _norm_parallel(x: Any, m: int, width: int, ln: Any, out: Any, rows: Any, dtype: int, threads: int) -> None:
    for t in prange(threads):
        _norm_range(x, m, m * t // threads, m * (t + 1) // threads, width, ln, out, rows, dtype)


@jit
def norm_rows(x: Any, m: int, width: int, ln: Any, out: Any, rows: Any, dtype: int, threads: int) -> None:
    """Layer norm of the first m rows, into `out` and as rows of the product that follows; `ln` is (weight, bias, epsilon).

    Columns of `out` beyond `width` stay as they are.
    """
    if m <= 2 * MR:  # less work than waking the threads
        _norm_range(x, m, np.int64(0), m, width, ln, out, rows, dtype)
    else:
        _norm_parallel(x, m, width, ln, out, rows, dtype, threads)


@jit
def gather_rows(ids: Any, panels: Any, steps: int, paired: bool, width: int, out: Any) -> None:
    """out[i, :width] = the embedding of ids[i], read back from the packed head."""
    for i in range(ids.size):
        panel, lane = ids[i] // NR, ids[i] % NR
        for c in range(width):
            at = ((panel * steps + c // 2) * NR + lane) * 2 + c % 2 if paired else (panel * steps + c) * NR + lane
            out[i, c] = widen_element(panels[at])
