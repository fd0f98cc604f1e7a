"""x W^T + b over packed weights: one layout, from a single row to a long prompt.

A weight (N, K) is stored as panels of PANEL output columns: `[N / PANEL][K][PANEL]`, or `[N / PANEL][K / 2][PANEL][2]` for
pairs of bfloat16. A product reads each panel once, front to back: at one row that is a stream at memory speed, at many rows
the panel's slice stays in the first-level cache while the rows pass over it.

Rows x (M, K) are packed into blocks of TILE_ROWS (the rest into 8, 4, 2, 1), each `[K][rows]`, so that a tile reads both
sides in order. K is cut into slices of DEPTH; a sum is the sum over slices in order, each summed in order: a row's result is
the same bits whatever the other rows are.
"""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.cpu import PANEL, TILE_ROWS
from accel.numba_cpu.elementwise import bfloat_bits, bits_as_float, float_as_half, gelu, half_as_float
from accel.numba_cpu.microkernel import tile_1, tile_2, tile_4, tile_6, tile_8, tile_12
from accel.numba_cpu.reduce import jit, jit_parallel

DEPTH = 256  # steps of one slice: 32 kB of a panel, in any dtype but float16 and shifted bfloat16, where it is 16 kB
PLAIN, GELU, RESIDUAL = 0, 1, 2
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
STRIP = 64  # columns packed at a time: what is written to fits the first-level cache
ROW_CHUNK = 42 * 12  # rows that share one pass over the weights: their slice stays in the second-level cache


@jit
def block_rows(left: int) -> int:
    """How many of the `left` remaining rows the next tile takes."""
    if left >= TILE_ROWS:
        return TILE_ROWS
    if left >= 8:
        return 8
    return 4 if left >= 4 else (2 if left >= 2 else 1)


@jit
def tile(rows: int, a: Any, ao: int, b: Any, bo: int, c: Any, co: int, k: int, ldc: int, keep: bool) -> None:
    """The tile of that many rows."""
    if rows == 12:
        tile_12(a, ao, b, bo, c, co, k, ldc, keep)
    elif rows == 1:
        tile_1(a, ao, b, bo, c, co, k, ldc, keep)
    elif rows == 2:
        tile_2(a, ao, b, bo, c, co, k, ldc, keep)
    elif rows == 4:
        tile_4(a, ao, b, bo, c, co, k, ldc, keep)
    elif rows == 6:
        tile_6(a, ao, b, bo, c, co, k, ldc, keep)
    else:
        tile_8(a, ao, b, bo, c, co, k, ldc, keep)


# --- packing -------------------------------------------------------------------------------------


@jit_parallel
def pack_weight(rows: Any, out: Any, k: int) -> None:
    """rows (N, K) of float32, uint16 or int16 into panels of the same dtype; columns beyond N are zero."""
    n = rows.shape[0]
    for p in prange((n + PANEL - 1) // PANEL):
        for first in range(0, k, STRIP):
            for j in range(PANEL):
                column = p * PANEL + j
                for l in range(first, min(k, first + STRIP)):
                    out[(p * k + l) * PANEL + j] = rows[column, l] if column < n else 0


@jit_parallel
def pack_weight_pairs(rows: Any, out: Any, steps: int) -> None:
    """rows (N, K) of bfloat16 bits into panels of pairs; an odd K is filled with a zero."""
    n, k = rows.shape
    for p in prange((n + PANEL - 1) // PANEL):
        for first in range(0, 2 * steps, STRIP):
            for j in range(PANEL):
                column = p * PANEL + j
                for l in range(first, min(2 * steps, first + STRIP)):
                    value = rows[column, l] if column < n and l < k else np.uint16(0)
                    out[((p * steps + l // 2) * PANEL + j) * 2 + l % 2] = value


@jit
def _pack_row_float(row: Any, k: int, out: Any, start: int, stride: int) -> None:
    for l in range(k):
        out[start + l * stride] = row[l]


@jit
def _pack_row_pairs(row: Any, k: int, out: Any, start: int, stride: int) -> None:
    for l in range(k // 2):
        low, high = bfloat_bits(row[2 * l]), bfloat_bits(row[2 * l + 1])
        out[start + l * stride] = np.uint32(low) | (np.uint32(high) << np.uint32(16))
    if k % 2:
        out[start + (k // 2) * stride] = np.uint32(bfloat_bits(row[k - 1]))


def pack_row(row: Any, k: int, out: Any, start: int, stride: int) -> None:
    """One row of a block: element l goes to out[start + l stride]; pairs of bfloat16 when `out` is uint32."""
    (_pack_row_pairs if out.dtype == np.uint32 else _pack_row_float)(row, k, out, start, stride)


@overload(pack_row)
def _pack_row(row, k, out, start, stride):  # type: ignore[no-untyped-def]  # noqa: ARG001
    chosen = _pack_row_pairs if out.dtype == types.uint32 else _pack_row_float
    return lambda row, k, out, start, stride: chosen(row, k, out, start, stride)


@jit
def _pack_blocks(x: Any, row: int, stop: int, m: int, k: int, steps: int, out: Any) -> None:
    while row < stop:
        rows = block_rows(m - row)
        for i in range(rows):
            pack_row(x[row + i], k, out, row * steps + i, rows)
        row += rows


@jit_parallel
def _pack_parallel(x: Any, m: int, k: int, steps: int, out: Any, threads: int) -> None:
    blocks = (m + TILE_ROWS - 1) // TILE_ROWS
    for t in prange(threads):
        stop = min(m, blocks * (t + 1) // threads * TILE_ROWS)
        _pack_blocks(x, blocks * t // threads * TILE_ROWS, stop, m, k, steps, out)


@jit
def pack_rows(x: Any, m: int, k: int, steps: int, out: Any, threads: int) -> None:
    """The first m rows of x (., K) into blocks for the tiles; `steps` is K, or the number of pairs."""
    if m <= 2 * TILE_ROWS:  # less work than waking the threads
        _pack_blocks(x, 0, m, m, k, steps, out)
    else:
        _pack_parallel(x, m, k, steps, out, threads)


# --- the product ---------------------------------------------------------------------------------


@jit
def _add(row: Any, bias: Any) -> None:
    for j in range(row.size):
        row[j] += bias[j]


@jit
def _add_gelu(row: Any, bias: Any) -> None:
    for j in range(row.size):
        row[j] = gelu(row[j] + bias[j])


@jit
def _add_residual(row: Any, bias: Any, base: Any) -> None:
    for j in range(row.size):
        row[j] = base[j] + (row[j] + bias[j])


@jit
def round_row(row: Any, dtype: int) -> None:
    """Round to the compute dtype, kept as float32."""
    if dtype == BFLOAT16:
        for j in range(row.size):
            row[j] = bits_as_float(np.uint32(bfloat_bits(row[j])) << np.uint32(16))
    elif dtype == FLOAT16:
        for j in range(row.size):
            row[j] = half_as_float(float_as_half(row[j]))


@jit
def _finish(out: Any, row: int, rows: int, column: int, columns: int, bias: Any, after: int, base: Any,
            dtype: int) -> None:  # fmt: skip
    """Add the bias to a finished panel; then GELU, or the residual and the block's one rounding."""
    stop = column + columns
    for i in range(row, row + rows):
        if after == GELU:
            _add_gelu(out[i, column:stop], bias[column:stop])
        elif after == RESIDUAL:
            _add_residual(out[i, column:stop], bias[column:stop], base[i, column:stop])
            round_row(out[i, column:stop], dtype)
        else:
            _add(out[i, column:stop], bias[column:stop])


@jit
def _slice(a: Any, first: int, stop: int, m: int, b: Any, panel: int, steps: int, l: int, depth: int, width: int,
           out: Any, flat: Any) -> None:  # fmt: skip
    """One slice of one panel: every row block passes over it."""
    row, ldc = first, out.shape[1]
    while row < stop:
        rows = block_rows(m - row)
        tile(
            rows,
            a,
            row * steps + l * rows,
            b,
            (panel * steps + l) * width,
            flat,
            row * ldc + panel * PANEL,
            depth,
            ldc,
            l > 0,
        )
        row += rows


@jit_parallel
def product(a: Any, m: int, b: Any, n: int, steps: int, bias: Any, after: int, base: Any,
            dtype: int, out: Any, threads: int) -> None:  # fmt: skip
    """out[:m, :n] = after(rows a times panels b, plus bias); out's width is a whole number of panels.

    v1  slices outermost, panels next: the rows' slice is reused by every panel (prefill).
    v2  for few rows, panels outermost: the weights are one forward stream (decode). Same sums, same bits.
    """
    panels = (n + PANEL - 1) // PANEL
    width = PANEL * (b.size // (panels * steps * PANEL))
    flat = out.reshape(out.size)
    slices = (steps + DEPTH - 1) // DEPTH
    for t in prange(threads):
        first, last = panels * t // threads, panels * (t + 1) // threads
        for row in range(0, m, ROW_CHUNK):
            stop = min(m, row + ROW_CHUNK)
            few = stop - row <= 2 * TILE_ROWS
            for outer in range(last - first if few else slices):
                for inner in range(slices if few else last - first):
                    panel = first + (outer if few else inner)
                    l = (inner if few else outer) * DEPTH
                    _slice(a, row, stop, m, b, panel, steps, l, min(DEPTH, steps - l), width, out, flat)
                    if l + DEPTH >= steps:
                        columns = min(PANEL, n - panel * PANEL)
                        _finish(out, row, stop - row, panel * PANEL, columns, bias, after, base, dtype)
