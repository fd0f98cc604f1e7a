"""ALiBi attention over the cache: tiles of queries, blocks of keys, online softmax; no T x S matrix anywhere.

The cache is laid out for the tiles of `microkernel`, in the compute dtype (float32, bfloat16 or float16 bits):

    keys     [B][H][P / PANEL][K][PANEL]        a panel holds PANEL positions
    values   [B][H][K / PANEL][P][PANEL]        a panel holds PANEL of the head's columns

so that scores and weighted sums are products of packed rows with packed panels, like every other product here. Scores and
sums are float32. A block of keys starts at a multiple of BLOCK whatever the queries are: a row's result depends on its own
query and the keys it sees, not on how the sequence was cut into calls.

v1  one query at a time, dot products: 6 GFLOP/s a core.
v2  tiles of TILE_ROWS queries over blocks of BLOCK keys.
"""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.cpu import PANEL, TILE_ROWS
from accel.numba_cpu.elementwise import bfloat_bits, exp, float_as_half, fma
from accel.numba_cpu.linear import block_rows, tile
from accel.numba_cpu.reduce import jit, jit_parallel, largest_of_lanes, sum_of_lanes

BLOCK = 128  # keys of one step of the online softmax
LOWEST = np.float32(-3.0e38)  # stands for the maximum of no scores: exp(-inf - LOWEST) is 0, not NaN


@jit
def _store_float(out: Any, at: int, value: Any) -> None:
    out[at] = value


@jit
def _store_bfloat(out: Any, at: int, value: Any) -> None:
    out[at] = bfloat_bits(value)


@jit
def _store_half(out: Any, at: int, value: Any) -> None:
    out[at] = float_as_half(value)


_STORES = {types.float32: _store_float, types.uint16: _store_bfloat, types.int16: _store_half}


def store(out: Any, at: int, value: Any) -> None:
    """Round to what `out` holds: float32, bfloat16 bits (uint16) or float16 bits (int16)."""
    _STORES[types.__dict__[out.dtype.name]](out, at, value)


@overload(store)
def _store(out, at, value):  # type: ignore[no-untyped-def]  # noqa: ARG001
    chosen = _STORES[out.dtype]
    return lambda out, at, value: chosen(out, at, value)


@jit_parallel
def append(qkv: Any, batch: int, time: int, heads: int, width: int, start: int, capacity: int, keys: Any, values: Any,
           threads: int) -> None:  # fmt: skip
    """Store the keys and values of `time` positions from `start` on; qkv is (B T, H 3 K), interleaved by head."""
    columns = (width + PANEL - 1) // PANEL
    for t in prange(threads):
        for item in range(batch * heads * t // threads, batch * heads * (t + 1) // threads):
            row, head = item // heads, item % heads
            for i in range(time):
                position = start + i
                source = qkv[row * time + i]
                key = (item * capacity + position // PANEL * PANEL) * width + position % PANEL
                for l in range(width):
                    store(keys, key + l * PANEL, source[(3 * head + 1) * width + l])
                    value = ((item * columns + l // PANEL) * capacity + position) * PANEL + l % PANEL
                    store(values, value, source[(3 * head + 2) * width + l])


# The next four run over scores as [row][panel][lane], the lane innermost: the form that becomes vector instructions.


@jit
def _bias(scores: Any, rows: int, panels: int, offset: int, slope: Any, scale: Any, real: Any, count: Any) -> None:
    """Biased scores; lane j of panel p is the key `offset + p PANEL + j` columns after row 0's query (ATT-4, ATT-5, ATT-7).

    `count` is 0, 1, 2, ...: float32 throughout, where whole numbers would halve the lanes.
    """
    for i in range(rows):
        for p in range(panels):
            first = np.float32(offset + p * PANEL - i)
            for j in range(scores.shape[2]):
                distance = first + count[j]  # whole numbers below 2**24: exact
                biased = fma(scores[i, p, j], scale, slope * distance)
                scores[i, p, j] = biased if distance <= np.float32(0.0) and real[p, j] else np.float32(-np.inf)


@jit
def _raise_peaks(scores: Any, rows: int, panels: int, peak: Any, shrink: Any, lanes: Any) -> None:
    """peak = the largest score so far; shrink = what the sums of the earlier blocks are to be multiplied with."""
    for i in range(rows):
        for j in range(lanes.size):
            lanes[j] = peak[i]
        for p in range(panels):
            for j in range(lanes.size):
                lanes[j] = scores[i, p, j] if scores[i, p, j] > lanes[j] else lanes[j]
        high = largest_of_lanes(lanes)
        shrink[i] = exp(peak[i] - high)
        peak[i] = high


@jit
def _weigh(scores: Any, rows: int, panels: int, peak: Any, shrink: Any, total: Any, lanes: Any) -> None:
    """Scores to weights; their sum, lane by lane, so that zeros at the end do not change a bit."""
    for i in range(rows):
        high = peak[i]
        for j in range(lanes.size):
            lanes[j] = np.float32(0.0)
        for p in range(panels):
            for j in range(lanes.size):
                scores[i, p, j] = exp(scores[i, p, j] - high)
            for j in range(lanes.size):
                lanes[j] += scores[i, p, j]
        total[i] = fma(total[i], shrink[i], sum_of_lanes(lanes))


@jit
def _rescale(sums: Any, rows: int, shrink: Any) -> None:
    for i in range(rows):
        for j in range(sums.shape[1]):
            sums[i, j] *= shrink[i]


@jit
def _pack(scores: Any, rows: int, panels: int, packed: Any) -> None:
    """[row][key] to [key][row], what a tile reads."""
    for i in range(rows):
        for p in range(panels):
            for j in range(scores.shape[2]):
                packed[(p * PANEL + j) * rows + i] = scores[i, p, j]


@jit
def _tile_of_queries(qkv: Any, first: int, rows: int, head: int, width: int, query: int, item: int, capacity: int, keys: Any,
                     values: Any, real: Any, slope: Any, scale: Any, out: Any, work: Any) -> None:  # fmt: skip
    """`rows` neighbouring queries of one head, over all the keys that the last of them sees."""
    columns = (width + PANEL - 1) // PANEL
    padded = columns * PANEL
    packed_q, at = work[: TILE_ROWS * width], TILE_ROWS * width
    flat_scores, at = work[at : at + TILE_ROWS * BLOCK], at + TILE_ROWS * BLOCK
    packed_p, at = work[at : at + TILE_ROWS * BLOCK], at + TILE_ROWS * BLOCK
    flat_sums, at = work[at : at + TILE_ROWS * padded], at + TILE_ROWS * padded
    peak, at = work[at : at + TILE_ROWS], at + TILE_ROWS
    total, at = work[at : at + TILE_ROWS], at + TILE_ROWS
    shrink, at = work[at : at + TILE_ROWS], at + TILE_ROWS
    lanes, at = work[at : at + PANEL], at + PANEL
    count = work[at : at + PANEL]
    for j in range(PANEL):
        count[j] = np.float32(j)
    scores, sums = flat_scores.reshape(TILE_ROWS, BLOCK // PANEL, PANEL), flat_sums.reshape(TILE_ROWS, padded)
    for i in range(rows):
        for l in range(width):
            packed_q[l * rows + i] = qkv[first + i, 3 * head * width + l]
        for c in range(padded):
            sums[i, c] = np.float32(0.0)
        peak[i], total[i] = LOWEST, np.float32(0.0)

    stop = query + rows
    for block in range(0, stop, BLOCK):
        depth = min(BLOCK, stop - block)
        panels = (depth + PANEL - 1) // PANEL
        for p in range(panels):
            start = (item * capacity + block + p * PANEL) * width
            tile(rows, packed_q, 0, keys, start, flat_scores, p * PANEL, width, BLOCK, False)
        _bias(scores, rows, panels, block - query, slope, scale, real[block // PANEL :], count)
        _raise_peaks(scores, rows, panels, peak, shrink, lanes)
        _weigh(scores, rows, panels, peak, shrink, total, lanes)
        _rescale(sums, rows, shrink)
        _pack(scores, rows, panels, packed_p)
        for column in range(columns):
            start = ((item * columns + column) * capacity + block) * PANEL
            tile(rows, packed_p, 0, values, start, flat_sums, column * PANEL, depth, padded, True)
    for i in range(rows):
        share = (
            np.float32(1.0) / total[i]
            if total[i] > np.float32(0.0) and real[(query + i) // PANEL, (query + i) % PANEL]
            else np.float32(0.0)
        )
        for c in range(width):
            out[first + i, head * width + c] = sums[i, c] * share


def workspace(width: int) -> int:
    """float32 numbers that one thread of `attend` needs."""
    padded = (width + PANEL - 1) // PANEL * PANEL
    return TILE_ROWS * (width + 2 * BLOCK + padded + 3) + 2 * PANEL


@jit_parallel
def attend(qkv: Any, batch: int, time: int, heads: int, width: int, start: int, capacity: int, keys: Any, values: Any,
           real: Any, slopes: Any, scale: Any, out: Any, work: Any, threads: int) -> None:  # fmt: skip
    """out (B T, H K): every query against the cache. `real` is (B, P / PANEL, PANEL): which columns are tokens."""
    tiles = (time + TILE_ROWS - 1) // TILE_ROWS
    for t in prange(threads):
        # later queries see more keys: dealing the tiles out in turn evens the load
        for index in range(t, batch * heads * tiles, threads):
            item, first = index // tiles, index % tiles * TILE_ROWS
            row, head = item // heads, item % heads
            done = 0
            last = min(TILE_ROWS, time - first)
            while done < last:
                rows = block_rows(last - done)
                _tile_of_queries(qkv, row * time + first + done, rows, head, width, start + first + done, item, capacity,
                                 keys, values, real[row], slopes[head], scale, out, work[t])  # fmt: skip
                done += rows
