"""x W^T + b over packed weights: one layout, from a single row to a long prompt.

A weight (N, K) is stored as panels of NR output columns, `[N / NR][K][NR]`, or `[N / NR][K / 2][NR][2]` in pairs of
bfloat16. A product reads each panel once, front to back. One row streams the weights at memory speed; for many rows a
slice of the panel stays in the first-level cache while the rows pass over it.

Rows x (M, K) are stored in slices of KC steps, `[K / KC][M][LDA]`, as operand elements: float32, or bfloat16 in pairs.
A sum is the sum over slices in order, each summed in order: a row's bits do not depend on the other rows. The producer
of a product's rows (layer norm, attention, GELU) writes them in this form.

The loops are those of BLIS (Van Zee & van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality",
ACM TOMS 41(3), 2015, after Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3),
2008), with the weight as B. Because B is packed once for all products and read from memory, the loop over its panels is
outside of that over K:

    BLIS        here                                                               function
    5th, NC     a thread's share of the panels                                     product
    3rd, MC     passes of about MC rows, which share one reading of the panels     product
    2nd, NR     panels of NR columns, one or two at a time                         _multiply
    4th, KC     slices of KC steps: a slice of a panel fits the first-level cache  _multiply
    1st, MR     tiles of up to MR rows                                             _add_slice
    micro-kernel: MR x NR sums in registers over KC steps                          microkernel.tile, stream

    LDA         leading dimension: steps from one row of a slice to the next
    accumulate  beta: add to the sums instead of overwriting them
    Epilogue    the operation fused to the last slice: bias, GELU or residual
"""

from typing import NamedTuple

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.elementwise import bfloat_bits, bits_as_float, float_as_half, gelu, half_as_float, store
from accel.numba_cpu.isa import KC, LDA, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.microkernel import panels_at_once, stream, tile, tile_rows
from accel.numba_cpu.structs import Epilogue, PackedRows, Projection
from bloomref.shapes import Array, Float

# NumPy's integers, not Python's: Numba would compile a kernel again for each literal.
PLAIN, GELU, RESIDUAL = np.int64(0), np.int64(1), np.int64(2)
FLOAT32, BFLOAT16, FLOAT16 = np.int64(0), np.int64(1), np.int64(2)
STRIP = 64  # columns packed at a time: the panel's part fits the first-level cache
MC = 21 * 12  # rows of a pass over the weights, about
SUMS = 3 * MC // 2 * NR  # sums of a thread of `product`: the largest pass times one panel


# --- packing -------------------------------------------------------------------------------------


@jit
def _transpose(rows: Float[Array, "N K"], columns: int, first: int, stop: int, panel: Array) -> None:
    for j in range(columns):
        row = rows[j]
        for l in range(first, stop):
            panel[l * NR + j] = row[l]


@jit_parallel
def pack_weight(rows: Array, panels: Array) -> None:
    """Pack a weight.

    Args:
        rows: (N, steps); a pair of bfloat16 is one uint32.
        panels: flat, of the same dtype: `[N / NR][steps][NR]`; columns beyond N become zero.
    """
    n, steps = rows.shape
    for p in prange((n + NR - 1) // NR):
        panel = panels[p * steps * NR : (p + 1) * steps * NR]
        columns = min(NR, n - p * NR)
        if columns < NR:
            panel[:] = 0
        for first in range(0, steps, STRIP):
            _transpose(rows[p * NR : p * NR + columns], columns, first, min(steps, first + STRIP), panel)


def step_width(data: Array) -> int:
    """Elements of one step of packed rows: two in pairs of bfloat16, else one."""
    return 2 if data.dtype == np.uint16 else 1


@overload(step_width)
def _step_width(data):  # type: ignore[no-untyped-def]
    width = 2 if data.dtype == types.uint16 else 1
    return lambda data: width


@jit
def place(rows: PackedRows, row: int, column: int) -> int:
    """Element where column `column` of a row is; the columns after it follow, up to the end of the slice."""
    width = step_width(rows.data)
    return (column // (KC * width) * rows.m + row) * LDA * width + column % (KC * width)


@jit
def _put(values: Array, out: Array) -> None:
    for j in range(values.size):
        store(out, j, values[j])


@jit
def put(values: Float[Array, " N"], rows: PackedRows, row: int, first: int) -> None:
    """Write `values` to the columns of a row from `first` on."""
    span = KC * step_width(rows.data)
    done = 0
    while done < values.size:
        count = min(values.size - done, span - (first + done) % span)
        start = place(rows, row, first + done)
        _put(values[done : done + count], rows.data[start : start + count])
        done += count


@jit
def end_row(rows: PackedRows, row: int, k: int) -> None:
    """Pair the last of an odd number `k` of columns with zero, where columns come in pairs."""
    if k % step_width(rows.data):
        rows.data[place(rows, row, k)] = 0


@jit
def put_row(values: Float[Array, " K"], rows: PackedRows, row: int) -> None:
    """Write one row."""
    put(values, rows, row, np.int64(0))
    end_row(rows, row, values.size)


@jit
def put_rows(x: Float[Array, "M _"], k: int, rows: PackedRows) -> None:
    """Write every row: the first `k` columns of float32 `x`."""
    for i in range(rows.m):
        put_row(x[i, :k], rows, i)


# --- the product ---------------------------------------------------------------------------------


class Block(NamedTuple):
    """Sums of a product: rows from `row` to `stop`, times `panels` panels from `panel` on."""

    row: int
    stop: int
    panel: int
    panels: int


@jit
def round_row(row: Float[Array, " D"], rounding: int) -> None:
    """Round float32 numbers to what the compute dtype can hold, in place."""
    if rounding == BFLOAT16:
        for j in range(row.size):
            row[j] = bits_as_float(np.uint32(bfloat_bits(row[j])) << np.uint32(16))
    elif rounding == FLOAT16:
        for j in range(row.size):
            row[j] = half_as_float(float_as_half(row[j]))


@jit
def _add(sums: Array, bias: Array, out: Array) -> None:
    for j in range(NR):
        out[j] = sums[j] + bias[j]


@jit
def _add_gelu(sums: Array, bias: Array, out: Array) -> None:
    for j in range(NR):
        store(out, j, gelu(sums[j] + bias[j]))


@jit
def _add_residual(sums: Array, bias: Array, base: Array, out: Array) -> None:
    for j in range(NR):
        out[j] = base[j] + (sums[j] + bias[j])


@jit
def _finish(sums: Array, block: Block, bias: Array, epilogue: Epilogue, out: Array, following: PackedRows) -> None:
    """Apply the epilogue to the sums of a block, panel by panel."""
    for p in range(block.panels):
        column = (block.panel + p) * NR
        add = bias[column : column + NR]
        for i in range(block.row, block.stop):
            start = ((i - block.row) * block.panels + p) * NR
            total = sums[start : start + NR]
            if epilogue.kind == GELU:
                start = place(following, i, column)
                _add_gelu(total, add, following.data[start : start + NR])
            elif epilogue.kind == RESIDUAL:
                target = out[i, column : column + NR]
                _add_residual(total, add, epilogue.base[i, column : column + NR], target)
                round_row(target, epilogue.rounding)
            else:
                _add(total, add, out[i, column : column + NR])


@jit
def _add_slice(rows: PackedRows, weight: Projection, block: Block, first: int, sums: Array) -> None:
    """Add KC steps from `first` on to the sums of a block (BLIS's macro-kernel).

    The first tile reads its panels from memory, the tiles after it from a cache.
    """
    width, depth, count = step_width(rows.data), min(KC, weight.steps - first), block.stop - block.row
    a, b, lda, ldc = rows.data, weight.panels, LDA * width, block.panels * NR
    at_a, at_b = (first // KC * rows.m + block.row) * lda, (block.panel * weight.steps + first) * NR * width
    stride, accumulate = weight.steps * NR * width, first > 0
    done = tile_rows(count)
    if block.panels == panels_at_once(done):
        stream(done, a, at_a, b, at_b, stride, sums, np.int64(0), depth, ldc, accumulate)
    else:
        tile(done, a, at_a, b, at_b, sums, np.int64(0), depth, ldc, accumulate)
    while done < count:
        size = tile_rows(count - done)
        for p in range(block.panels):
            tile(size, a, at_a + done * lda, b, at_b + p * stride, sums, done * ldc + p * NR, depth, ldc, accumulate)
        done += size


@jit
def _multiply(rows: PackedRows, weight: Projection, part: Block, epilogue: Epilogue, out: Array, following: PackedRows,
              sums: Array) -> None:  # fmt: skip
    """Compute `part` of a product, reading each panel from front to back."""
    panel, last = part.panel, part.panel + part.panels if part.row < part.stop else part.panel
    while panel < last:
        count = min(panels_at_once(tile_rows(part.stop - part.row)), last - panel)
        block = Block(part.row, part.stop, panel, count)
        for first in range(0, weight.steps, KC):
            _add_slice(rows, weight, block, first, sums)
        _finish(sums, block, weight.bias, epilogue, out, following)
        panel += count


@jit
def _product_share(t: int, threads: int, rows: PackedRows, weight: Projection, epilogue: Epilogue, out: Array,
                   following: PackedRows, sums: Array) -> None:  # fmt: skip
    """Thread t's panels of a product."""
    panels = (weight.n + NR - 1) // NR
    first, last = panels * t // threads, panels * (t + 1) // threads
    passes = max(1, (rows.m + MC // 2) // MC)
    for i in range(passes):
        part = Block(rows.m * i // passes, rows.m * (i + 1) // passes, first, last - first)
        _multiply(rows, weight, part, epilogue, out, following, sums)


@jit_parallel
def _product_parallel(rows: PackedRows, weight: Projection, epilogue: Epilogue, out: Array, following: PackedRows,
                      sums: Array) -> None:  # fmt: skip
    for t in prange(len(sums)):
        _product_share(np.int64(t), np.int64(len(sums)), rows, weight, epilogue, out, following, sums[t])


@jit
def product(rows: PackedRows, weight: Projection, epilogue: Epilogue, out: Array, following: PackedRows,
            sums: Array) -> None:  # fmt: skip
    """Multiply `rows` (M, K) by a weight (N, K) and apply the epilogue.

    Args:
        out: float32 (M, N rounded up to a multiple of NR), written unless the epilogue is GELU.
        following: packed rows (M, N), written where it is GELU.
        sums: float32 (threads, SUMS), scratch space; as many threads share the panels. One thread is the caller's.

    v1  slices outermost, panels next: the rows' slice is reused by every panel (prefill).
    v2  for few rows, panels outermost: the weights are one forward stream (decode). Same sums, same bits.
    v3  rows in passes of equal size: 512 rows do not read the weights again for the last 8.
    v4  panels outermost always, their sums in `sums`: sums of a whole matrix do not fit a cache, and are read again for
        each slice. 512 rows of bloom-560m: the up-projection 371 to 412 GFLOP/s in bfloat16 and 191 to 212 in float32
        (its GELU in less time, too), a block's products 1.06 times as fast. Any MC from 64 to 504 is about as fast.
    v5  the first rows by tiles made for reading memory (`stream`).
    """
    if len(sums) == 1:
        _product_share(np.int64(0), np.int64(1), rows, weight, epilogue, out, following, sums[0])
    else:
        _product_parallel(rows, weight, epilogue, out, following, sums)
