"""x W^T + b over packed weights: one layout, from a single row to a long prompt.

A weight (N, K) is stored as panels of NR output columns: `[N / NR][K][NR]`, or `[N / NR][K / 2][NR][2]` for
pairs of bfloat16. A product reads each panel once, front to back: at one row that is a stream at memory speed, at many rows
the panel's slice stays in the first-level cache while the rows pass over it.

Rows x (M, K) are kept by slices of KC steps, `[K / KC][M][LDA]`, in what the tiles multiply: float32, or pairs of
bfloat16. A sum is the sum over slices in order, each summed in order: a row's result is the same bits whatever the other rows
are. Whoever makes rows for a product (layer norm, attention, GELU) writes them in this form.
"""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.elementwise import bfloat_bits, bits_as_float, float_as_half, gelu, half_as_float, store
from accel.numba_cpu.isa import KC, LDA, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.microkernel import panels_at_once, stream, tile, tile_rows

# Not Python's int: Numba would compile a kernel anew for each of its constants.
PLAIN, GELU, RESIDUAL = np.int64(0), np.int64(1), np.int64(2)
FLOAT32, BFLOAT16, FLOAT16 = np.int64(0), np.int64(1), np.int64(2)
STRIP = 64  # columns packed at a time: what is written to fits the first-level cache
MC = 21 * 12  # rows that share one pass over the weights, more or less
SUMS = 3 * MC // 2 * NR  # sums that a thread of `product` holds: a pass of most rows, a panel of columns


# --- packing -------------------------------------------------------------------------------------


@jit
def _transpose(rows: Any, columns: int, first: int, stop: int, out: Any) -> None:
    for j in range(columns):
        row = rows[j]
        for l in range(first, stop):
            out[l * NR + j] = row[l]


@jit_parallel
def pack_weight(rows: Any, out: Any) -> None:
    """rows (N, steps) into panels of the same dtype, a pair of bfloat16 as one uint32; columns beyond N are zero."""
    n, steps = rows.shape
    for p in prange((n + NR - 1) // NR):
        panel = out[p * steps * NR : (p + 1) * steps * NR]
        columns = min(NR, n - p * NR)
        if columns < NR:
            panel[:] = 0
        for first in range(0, steps, STRIP):
            _transpose(rows[p * NR :], columns, first, min(steps, first + STRIP), panel)


def step_width(rows: Any) -> int:
    """How many elements of these rows make one step of a tile: two in pairs of bfloat16."""
    return 2 if rows.dtype == np.uint16 else 1


@overload(step_width)
def _step_width(rows):  # type: ignore[no-untyped-def]
    width = 2 if rows.dtype == types.uint16 else 1
    return lambda rows: width


@jit
def place(rows: Any, m: int, row: int, column: int) -> int:
    """Where one number of m rows is; the next ones follow it up to the end of the slice."""
    width = step_width(rows)
    return (column // (KC * width) * m + row) * LDA * width + column % (KC * width)


@jit
def _put(values: Any, out: Any) -> None:
    for j in range(values.size):
        store(out, j, values[j])


@jit
def put(values: Any, out: Any, m: int, row: int, first: int) -> None:
    """values become the columns from `first` on of one of m rows."""
    span = KC * step_width(out)
    done = 0
    while done < values.size:
        count = min(values.size - done, span - (first + done) % span)
        start = place(out, m, row, first + done)
        _put(values[done : done + count], out[start : start + count])
        done += count


@jit
def end_row(out: Any, m: int, row: int, k: int) -> None:
    """A last number without a partner is paired with zero."""
    if k % step_width(out):
        out[place(out, m, row, k)] = 0


@jit
def put_row(values: Any, out: Any, m: int, row: int) -> None:
    """values (K,) become one of m rows."""
    put(values, out, m, row, np.int64(0))
    end_row(out, m, row, values.size)


@jit
def put_rows(x: Any, m: int, k: int, out: Any) -> None:
    """The first m rows of x (., K)."""
    for i in range(m):
        put_row(x[i, :k], out, m, i)


# --- the product ---------------------------------------------------------------------------------


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
def _add(sums: Any, bias: Any, out: Any) -> None:
    for j in range(NR):
        out[j] = sums[j] + bias[j]


@jit
def _add_gelu(sums: Any, bias: Any, out: Any) -> None:
    for j in range(NR):
        store(out, j, gelu(sums[j] + bias[j]))


@jit
def _add_residual(sums: Any, bias: Any, base: Any, out: Any) -> None:
    for j in range(NR):
        out[j] = base[j] + (sums[j] + bias[j])


@jit
def _finish(sums: Any, at: int, ldc: int, m: int, row: int, stop: int, column: int, bias: Any, after: int, base: Any,
            dtype: int, out: Any, following: Any) -> None:  # fmt: skip
    """What comes after the sums of one panel: the bias; GELU, or the residual and one rounding."""
    add = bias[column : column + NR]
    for i in range(row, stop):
        start = at + (i - row) * ldc
        total = sums[start : start + NR]
        if after == GELU:
            start = place(following, m, i, column)
            _add_gelu(total, add, following[start : start + NR])
        elif after == RESIDUAL:
            target = out[i, column : column + NR]
            _add_residual(total, add, base[i, column : column + NR], target)
            round_row(target, dtype)
        else:
            _add(total, add, out[i, column : column + NR])


@jit
def _slice(a: Any, from_a: int, rows: int, b: Any, from_b: int, stride: int, together: int, depth: int, sums: Any,
           accumulate: bool) -> None:  # fmt: skip
    """One slice of `together` panels: the first rows read it from memory, those after them from a cache."""
    step, ldc = LDA * step_width(a), together * NR
    done = tile_rows(rows)
    if together == panels_at_once(done):
        stream(done, a, from_a, b, from_b, stride, sums, np.int64(0), depth, ldc, accumulate)
    else:
        tile(done, a, from_a, b, from_b, sums, np.int64(0), depth, ldc, accumulate)
    while done < rows:
        count = tile_rows(rows - done)
        for p in range(together):
            tile(
                count,
                a,
                from_a + done * step,
                b,
                from_b + p * stride,
                sums,
                done * ldc + p * NR,
                depth,
                ldc,
                accumulate,
            )
        done += count


@jit
def _panels(a: Any, m: int, row: int, stop: int, b: Any, panel: int, together: int, steps: int, sums: Any) -> None:
    """sums[:stop - row] of `together` panels: slice after slice."""
    width = step_width(a)
    for l in range(0, steps, KC):
        from_a, from_b = (l // KC * m + row) * LDA * width, (panel * steps + l) * NR * width
        depth = min(KC, steps - l)
        _slice(a, from_a, stop - row, b, from_b, steps * NR * width, together, depth, sums, l > 0)


@jit
def _rows(a: Any, m: int, row: int, stop: int, first: int, last: int, b: Any, steps: int, bias: Any, after: int, base: Any,
          dtype: int, out: Any, following: Any, sums: Any) -> None:  # fmt: skip
    """`product` of some rows with some panels, each read from front to back."""
    panel = first if row < stop else last
    while panel < last:
        together = min(panels_at_once(tile_rows(stop - row)), last - panel)
        _panels(a, m, row, stop, b, panel, together, steps, sums)
        for p in range(together):
            _finish(sums, p * NR, together * NR, m, row, stop, (panel + p) * NR, bias, after, base, dtype, out,
                    following)  # fmt: skip
        panel += together


@jit_parallel
def product(a: Any, m: int, b: Any, n: int, steps: int, bias: Any, after: int, base: Any,
            dtype: int, out: Any, following: Any, work: Any, threads: int) -> None:  # fmt: skip
    """out[:m, :n] = after(rows a times panels b, plus bias); GELU goes to `following` instead, as rows of the next product.

    `bias`, and the columns of `out` and `base`, are whole panels; `work` is (threads, SUMS) float32 numbers.

    v1  slices outermost, panels next: the rows' slice is reused by every panel (prefill).
    v2  for few rows, panels outermost: the weights are one forward stream (decode). Same sums, same bits.
    v3  rows in passes of equal size: 512 rows do not read the weights again for the last 8.
    v4  panels outermost always, their sums in `work`: sums of a whole matrix do not fit a cache, and are read again for each
        slice. 512 rows of bloom-560m: the up-projection 371 to 412 GFLOP/s in bfloat16 and 191 to 212 in float32 (its GELU
        in less time, too), a block's products 1.06 times as fast. How many rows make a pass matters little, from 64 to 504.
    v5  the first rows by tiles made for reading memory (`stream`).
    """
    panels = (n + NR - 1) // NR
    passes = max(1, (m + MC // 2) // MC)
    for t in prange(threads):
        first, last = panels * t // threads, panels * (t + 1) // threads
        for part in range(passes):
            row, stop = m * part // passes, m * (part + 1) // passes
            _rows(a, m, row, stop, first, last, b, steps, bias, after, base, dtype, out, following, work[t])
