"""Layer norm, and the embedding lookup, which reads rows back from the packed head."""

from typing import Any

import numpy as np
from numba import prange

from accel.numba_cpu.elementwise import fma
from accel.numba_cpu.isa import MR, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.linear import put_row, round_row
from accel.numba_cpu.microkernel import widen_element
from accel.numba_cpu.reductions import squares_of, total_of
from accel.numba_cpu.structs import Norm, PackedRows, Projection
from bloomref.shapes import Array, Float, Int


@jit
def _centre(row: Array, mean: float, out: Array) -> None:
    for j in range(row.size):
        out[j] = row[j] - mean


@jit
def _affine(row: Array, scale: float, weight: Array, bias: Array) -> None:
    for j in range(row.size):
        row[j] = fma(row[j] * scale, weight[j], bias[j])


@jit
def norm_row(row: Float[Array, " D"], weight: Float[Array, " D"], bias: Float[Array, " D"], epsilon: Any,
             out: Float[Array, " D"], rounding: int, lanes: Float[Array, " N"]) -> None:  # fmt: skip
    """Layer norm of one float32 row (EMB-3, EMB-4), rounded; `lanes` is scratch space of NR numbers."""
    width = np.float32(row.size)
    _centre(row, total_of(row, lanes) / width, out)
    variance = squares_of(out, lanes) / width
    _affine(out, np.float32(1.0) / np.sqrt(variance + epsilon), weight, bias)
    round_row(out, rounding)


@jit
def _norm_range(x: Array, first: int, stop: int, norm: Norm, out: Array, rows: PackedRows, rounding: int) -> None:
    width, lanes = norm.weight.size, np.empty(NR, np.float32)
    for i in range(first, stop):
        norm_row(x[i, :width], norm.weight, norm.bias, norm.epsilon, out[i, :width], rounding, lanes)
        put_row(out[i, :width], rows, i)


@jit_parallel
def _norm_parallel(x: Array, norm: Norm, out: Array, rows: PackedRows, rounding: int, threads: int) -> None:
    for t in prange(threads):
        _norm_range(x, rows.m * t // threads, rows.m * (t + 1) // threads, norm, out, rows, rounding)


@jit
def norm_rows(x: Float[Array, "M _"], norm: Norm, out: Float[Array, "M _"], rows: PackedRows, rounding: int,
              threads: int) -> None:  # fmt: skip
    """Layer norm of every row, into `out` and into `rows`, the left operand of the next product.

    Args:
        x: float32 (M, at least D).
        out: float32 (M, at least D); may be `x`. Columns beyond D stay as they are.
        rows: packed rows (M, D).
        rounding: FLOAT32 (none), BFLOAT16 or FLOAT16.
    """
    if threads == 1 or rows.m <= 2 * MR:  # less work than waking the threads
        _norm_range(x, np.int64(0), rows.m, norm, out, rows, rounding)
    else:
        _norm_parallel(x, norm, out, rows, rounding, threads)


@jit
def gather_rows(ids: Int[Array, " M"], table: Projection, paired: bool, width: int, out: Float[Array, "M _"]) -> None:
    """Embedding lookup: out[i, :width] = row ids[i] of the packed table, whose steps are pairs if `paired`."""
    for i in range(ids.size):
        panel, lane = ids[i] // NR, ids[i] % NR
        for c in range(width):
            if paired:
                at = ((panel * table.steps + c // 2) * NR + lane) * 2 + c % 2
            else:
                at = (panel * table.steps + c) * NR + lane
            out[i, c] = widen_element(table.panels[at])
