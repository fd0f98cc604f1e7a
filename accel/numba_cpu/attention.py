"""ALiBi attention over the cache: tiles of queries, blocks of keys, online softmax (Milakov & Gimelshein,
arXiv:1805.02867; Dao et al., FlashAttention, arXiv:2205.14135). No T x S matrix is stored.

The cache has the layout that `microkernel` reads, in the compute dtype (float32, bfloat16 or float16 bits):

    keys     [B][H][P / NR][K][NR]        a panel holds NR positions
    values   [B][H][K / NR][P][NR]        a panel holds NR of the head's columns

(in pairs of bfloat16 each [K / 2][NR][2], or [P / 2][NR][2]) so that scores and weighted sums are products of rows with
packed panels, like every other product here. Scores and sums are float32; where the processor multiplies pairs of
bfloat16, queries and weights are rounded to them. A block of keys starts at a multiple of BLOCK for any queries: a
row's result depends on its own query and its visible keys, not on how the sequence was cut into calls.

Versions, on two cores of a Zen 4, 512 positions of 16 heads of 64 in bfloat16:

v1  one query at a time, dot products: 6 GFLOP/s a core.
v2  tiles of MR queries over blocks of BLOCK keys, widened: 5.8 ms.
v3  pairs of bfloat16; the weights are multiplied by rows, where they are: 4.8 ms; arrays at the beginning of a cache
    line: 3.4 ms.
v4  256 keys a block instead of 128; each pass of the softmax over a whole row of scores, whose maximum and sum stay in
    registers (`fold_largest`, `fold_sum`); no mask where every key is visible; an exp for its range: 2.6 ms, and for
    2048 positions 33 ms instead of 45. Half of it is the two products.
v5  the next head's keys are prefetched: a step of 16 rows after 48 positions takes 0.20 instead of 0.25 ms.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.elementwise import decay, exp, fma, store
from accel.numba_cpu.isa import KC, LDA, LINE, MR, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.linear import end_row, put, step_width
from accel.numba_cpu.microkernel import prefetch, tile, tile_rows
from accel.numba_cpu.reductions import fold_largest, fold_sum, largest_of_lanes, sum_of_lanes
from accel.numba_cpu.structs import AttentionScratch, CacheView, CallShape, PackedRows
from bloomref.shapes import Array, Bool, Float

BLOCK = 256  # keys of one step of the online softmax
DISTANCES = np.arange(BLOCK, dtype=np.float32)  # float32 throughout: whole numbers would halve the lanes
LOWEST = np.float32(-3.0e38)  # stands for the maximum of no scores: exp(-inf - LOWEST) is 0, not NaN
TILE = np.int64(MR)  # rows of the packed queries


# --- the cache -----------------------------------------------------------------------------------


@jit
def panel_elements(width: int, operands: Array) -> int:
    """Elements of a panel of keys, whose heads have that width."""
    step = step_width(operands)
    return (width + step - 1) // step * step * NR


@jit
def panels_in(columns: int) -> int:
    """Number of panels that hold so many columns."""
    return (columns + NR - 1) // NR


@jit
def _append_key(key: Float[Array, " K"], keys: Array, start: int, lane: int, step: int) -> None:
    """Write one position's key into one lane of its panel, which begins at `start`."""
    if step == 2:
        for l in range(key.size):
            store(keys, start + (l // 2 * NR + lane) * 2 + l % 2, key[l])
    else:
        for l in range(key.size):
            store(keys, start + l * NR + lane, key[l])


@jit
def _append_value(value: Float[Array, " K"], values: Array, start: int, stride: int, position: int, step: int) -> None:
    """Write one position's value into one line of every panel of columns; the panels begin `stride` apart."""
    for first in range(0, value.size, NR):
        if step == 2:
            at = start + first // NR * stride + position // 2 * 2 * NR + position % 2
            for j in range(min(NR, value.size - first)):
                store(values, at + 2 * j, value[first + j])
        else:
            at = start + first // NR * stride + position * NR
            for j in range(min(NR, value.size - first)):
                store(values, at + j, value[first + j])


@jit
def _append_share(t: int, threads: int, fused: Array, shape: CallShape, cache: CacheView, operands: Array) -> None:
    """Thread t's heads of `append`."""
    width, step, panel = shape.width, step_width(operands), panel_elements(shape.width, operands)
    heads, items, stride = shape.heads, shape.batch * shape.heads, cache.capacity * NR
    for item in range(items * t // threads, items * (t + 1) // threads):
        row, head = item // heads, item % heads
        for i in range(shape.time):
            position = shape.start + i
            key, value = (3 * head + 1) * width, (3 * head + 2) * width
            source = fused[row * shape.time + i]
            first = (item * (cache.capacity // NR) + position // NR) * panel
            _append_key(source[key : key + width], cache.keys, first, position % NR, step)
            _append_value(source[value : value + width], cache.values, item * panels_in(width) * stride, stride,
                          position, step)  # fmt: skip


@jit_parallel
def _append_parallel(fused: Array, shape: CallShape, cache: CacheView, operands: Array, threads: int) -> None:
    for t in prange(threads):
        _append_share(np.int64(t), threads, fused, shape, cache, operands)


@jit
def append(fused: Float[Array, "M _"], shape: CallShape, cache: CacheView, operands: Array, threads: int) -> None:
    """Store the keys and values of a call's positions in the cache.

    Args:
        fused: float32 (B T, at least H 3 K): query, key and value, interleaved by head (ATT-2).
        operands: any array of operand elements; its dtype says whether keys and values are stored in pairs.
    """
    if threads == 1 or shape.batch * shape.time <= 2 * MR:  # less work than waking the threads
        _append_share(np.int64(0), np.int64(1), fused, shape, cache, operands)
    else:
        _append_parallel(fused, shape, cache, operands, threads)


# --- softmax over a block of scores --------------------------------------------------------------


@jit
def _bias_all(scores: Array, first: float, slope: float, scale: float) -> None:
    for j in range(scores.size):
        scores[j] = fma(scores[j], scale, slope * (first + DISTANCES[j]))


@jit
def _bias_visible(scores: Array, first: float, slope: float, scale: float, is_real: Array) -> None:
    for j in range(scores.size):
        distance = first + DISTANCES[j]
        biased = fma(scores[j], scale, slope * distance)
        scores[j] = biased if distance <= np.float32(0.0) and is_real[j] else np.float32(-np.inf)


@jit
def _bias(scores: Array, rows: int, offset: int, slope: float, scale: float, is_real: Bool[Array, " N"],
          is_whole: Bool[Array, " M"]) -> None:  # fmt: skip
    """Scale scores, add ALiBi and mask (ATT-4, ATT-5, ATT-7).

    Args:
        offset: position of the first key less that of row 0's query.
        is_real: which of the keys are tokens.
        is_whole: which of their panels hold nothing but tokens.
    """
    count = is_real.size
    all_visible = offset + count <= 1
    for p in range(is_whole.size):
        all_visible = all_visible and is_whole[p]
    for i in range(rows):
        row = scores[i * LDA : i * LDA + count]
        if all_visible:
            _bias_all(row, np.float32(offset - i), slope, scale)
        else:
            _bias_visible(row, np.float32(offset - i), slope, scale, is_real)


@jit
def _update_maxima(scores: Array, rows: int, count: int, maxima: Array, factors: Array, lanes: Array) -> None:
    """Raise each row's running maximum; `factors` becomes what rescales the sums of the earlier blocks."""
    for i in range(rows):
        lanes[:] = maxima[i]
        fold_largest(scores, i * LDA, count // NR, lanes)
        factors[i] = largest_of_lanes(lanes)
    for i in range(MR):  # of absent rows as well: one vector
        high = factors[i]
        factors[i] = exp(maxima[i] - high)
        maxima[i] = high


@jit
def _decay(scores: Array, maximum: float) -> None:
    for j in range(scores.size):
        scores[j] = decay(scores[j] - maximum)


@jit
def _exponentiate(scores: Array, rows: int, count: int, maxima: Array, factors: Array, totals: Array,
                  lanes: Array) -> None:  # fmt: skip
    """Turn scores into weights and add them to the totals, lane by lane, so that zeros at the end change no bit."""
    for i in range(rows):
        _decay(scores[i * LDA : i * LDA + count], maxima[i])
        lanes[:] = np.float32(0.0)
        fold_sum(scores, i * LDA, count // NR, lanes)
        totals[i] = fma(totals[i], factors[i], sum_of_lanes(lanes))


@jit
def _rescale(sums: Array, rows: int, factors: Array) -> None:
    for i in range(rows):
        for j in range(sums.shape[1]):
            sums[i, j] *= factors[i]


@jit
def _round_weights(scores: Array, rows: int, count: int, weights: Array) -> None:
    for i in range(rows):
        source, target = scores[i * LDA : i * LDA + count], weights[2 * i * LDA : 2 * i * LDA + count]
        for j in range(count):
            store(target, j, source[j])


def as_operands(scores: Array, rows: int, count: int, weights: Array) -> Array:
    """The first `count` attention weights of each row as operand elements: in place, or rounded into `weights`."""
    if weights.dtype == np.float32:
        return scores
    _round_weights(scores, rows, count, weights)
    return weights


@overload(as_operands)
def _as_operands(scores, rows, count, weights):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if weights.dtype == types.float32:
        return lambda scores, rows, count, weights: scores

    def implementation(scores, rows, count, weights):  # type: ignore[no-untyped-def]
        _round_weights(scores, rows, count, weights)
        return weights

    return implementation


# --- a tile of queries ---------------------------------------------------------------------------


class Queries(NamedTuple):
    """`rows` neighbouring queries of one head.

    Args:
        first: row of `fused` of the first one.
        position: its position in the cache.
        batch_row: row of the batch.
        head: head of that row.
    """

    first: int
    rows: int
    position: int
    batch_row: int
    head: int


class Softmax(NamedTuple):
    """State of the online softmax of a tile of queries: one thread's buffers, all float32.

    Args:
        scores: (MR LDA,); scores, then weights, of one block of keys.
        sums: (MR, K rounded up) weighted sums of values.
        lanes: (NR,) scratch space of a reduction.
        maxima: (MR,) running maximum of each row's scores.
        totals: (MR,) running sum of each row's weights.
        factors: (MR,) what rescales the earlier blocks' sums.
    """

    scores: Array
    sums: Array
    lanes: Array
    maxima: Array
    totals: Array
    factors: Array


def scratch_floats(width: int) -> int:
    """float32 numbers that one thread of `attend` needs, for heads of that width."""
    padded = (width + NR - 1) // NR * NR
    return MR * (LDA + padded) + 4 * NR


def scratch_operands(steps: int, step: int) -> int:
    """Operand elements of the weights and queries of one thread of `attend`, for heads of so many steps."""
    return MR * LDA * step * (1 + (steps + KC - 1) // KC)


@jit
def _softmax_of(floats: Array, padded: int) -> Softmax:
    """Divide one thread's `scratch_floats` into the arrays of the softmax."""
    sums = MR * LDA
    lanes = sums + MR * padded
    maxima, totals, factors = lanes + NR, lanes + 2 * NR, lanes + 3 * NR
    return Softmax(
        floats[:sums],
        floats[sums:lanes].reshape(MR, padded),
        floats[lanes:maxima],
        floats[maxima : maxima + MR],
        floats[totals : totals + MR],
        floats[factors : factors + MR],
    )


@jit
def _start(fused: Array, queries: Queries, width: int, packed: PackedRows, softmax: Softmax) -> None:
    """Pack the queries and reset the softmax."""
    column = 3 * queries.head * width
    for i in range(queries.rows):
        put(fused[queries.first + i, column : column + width], packed, i, np.int64(0))
        end_row(packed, i, width)
        for c in range(softmax.sums.shape[1]):
            softmax.sums[i, c] = np.float32(0.0)
        softmax.maxima[i], softmax.totals[i] = LOWEST, np.float32(0.0)


@jit
def _score(packed: PackedRows, rows: int, width: int, keys: Array, start: int, scores: Array, at: int) -> None:
    """scores[:, at : at + NR] = queries times one panel of keys, which begins at `start`."""
    step = step_width(packed.data)
    steps = (width + step - 1) // step
    for l in range(0, steps, KC):
        at_query, at_key, depth = l // KC * LDA * MR * step, start + l * NR * step, min(KC, steps - l)
        tile(rows, packed.data, at_query, keys, at_key, scores, at, depth, LDA, l > 0)


@jit
def _normalise(queries: Queries, is_real: Bool[Array, " P"], width: int, softmax: Softmax, out: PackedRows) -> None:
    """Divide the sums by the totals and write them as packed rows; a row without visible keys becomes zero."""
    for i in range(queries.rows):
        total, sums = softmax.totals[i], softmax.sums[i]
        is_visible = total > np.float32(0.0) and is_real[queries.position + i]
        factor = np.float32(1.0) / total if is_visible else np.float32(0.0)
        for c in range(width):
            sums[c] *= factor
        put(sums[:width], out, queries.first + i, queries.head * width)


@jit
def _attend_tile(fused: Array, queries: Queries, shape: CallShape, cache: CacheView, slope: float, out: PackedRows,
                 floats: Array, operands: Array) -> None:  # fmt: skip
    """Attention of one tile of queries, over all keys that are visible to the last of them."""
    width, rows, step = shape.width, queries.rows, step_width(operands)
    columns, panel, weights_end = panels_in(width), panel_elements(width, operands), MR * LDA * step
    item, is_real = queries.batch_row * shape.heads + queries.head, cache.is_real[queries.batch_row]
    is_whole, scale = cache.is_whole[queries.batch_row], np.float32(1.0 / math.sqrt(width))
    softmax = _softmax_of(floats, columns * NR)
    scores, flat_sums = softmax.scores, softmax.sums.reshape(MR * columns * NR)
    weights, packed = operands[:weights_end], PackedRows(operands[weights_end:], TILE)
    _start(fused, queries, width, packed, softmax)
    stop = queries.position + rows
    for block in range(0, stop, BLOCK):
        depth = min(BLOCK, stop - block)
        count, steps = panels_in(depth) * NR, (depth + step - 1) // step
        for p in range(0, count, NR):
            _score(packed, rows, width, cache.keys, (item * cache.capacity + block + p) // NR * panel, scores, p)
        _bias(scores, rows, block - queries.position, slope, scale, is_real[block : block + count],
              is_whole[block // NR : (block + count) // NR])  # fmt: skip
        _update_maxima(scores, rows, count, softmax.maxima, softmax.factors, softmax.lanes)
        _exponentiate(scores, rows, count, softmax.maxima, softmax.factors, softmax.totals, softmax.lanes)
        _rescale(softmax.sums, rows, softmax.factors)
        left = as_operands(scores, rows, count, weights)
        for column in range(columns):
            start = ((item * columns + column) * cache.capacity + block) * NR
            tile(rows, left, np.int64(0), cache.values, start, flat_sums, column * NR, steps, columns * NR, True)
    _normalise(queries, is_real, width, softmax, out)


@jit
def _prefetch_item(item: int, positions: int, width: int, cache: CacheView, operands: Array) -> None:
    """Prefetch the first keys and values of a row's head: after a short prompt, most time is waiting for these."""
    columns, panel, count = panels_in(width), panel_elements(width, operands), min(positions, 2 * NR)
    prefetch(cache.keys, item * cache.capacity // NR * panel, panels_in(count) * panel * cache.keys.itemsize // LINE)
    for column in range(columns):
        start = (item * columns + column) * cache.capacity * NR
        prefetch(cache.values, start, count * NR * cache.values.itemsize // LINE)


@jit
def _attend_share(t: int, threads: int, fused: Array, shape: CallShape, cache: CacheView, slopes: Array,
                  out: PackedRows, floats: Array, operands: Array) -> None:  # fmt: skip
    """Thread t's tiles of queries."""
    tiles, items = (shape.time + MR - 1) // MR, shape.batch * shape.heads
    # later queries see more keys: dealing the tiles out in turn evens the load
    for index in range(t, items * tiles, threads):
        item, first = index // tiles, index % tiles * MR
        row, head = item // shape.heads, item % shape.heads
        if tiles == 1 and item + threads < items:
            _prefetch_item(item + threads, shape.start + shape.time, shape.width, cache, operands)
        done, last = 0, min(MR, shape.time - first)
        while done < last:
            rows = tile_rows(last - done)
            queries = Queries(row * shape.time + first + done, rows, shape.start + first + done, row, head)
            _attend_tile(fused, queries, shape, cache, slopes[head], out, floats, operands)
            done += rows
    for i in range(out.m * t // threads, out.m * (t + 1) // threads):
        end_row(out, i, shape.heads * shape.width)


@jit_parallel
def _attend_parallel(fused: Array, shape: CallShape, cache: CacheView, slopes: Array, out: PackedRows,
                     scratch: AttentionScratch) -> None:  # fmt: skip
    threads = len(scratch.floats)
    for t in prange(threads):
        _attend_share(np.int64(t), threads, fused, shape, cache, slopes, out, scratch.floats[t], scratch.operands[t])


@jit
def attend(fused: Float[Array, "M _"], shape: CallShape, cache: CacheView, slopes: Float[Array, " H"], out: PackedRows,
           scratch: AttentionScratch) -> None:  # fmt: skip
    """Attend from every query to the cache, which holds the call's own keys and values already.

    Args:
        fused: float32 (B T, at least H 3 K): query, key and value, interleaved by head (ATT-2).
        slopes: float32 ALiBi slopes.
        out: packed rows (B T, H K): the context.
        scratch: buffers of the threads; as many threads share the tiles of queries. One thread is the caller's.
    """
    if len(scratch.floats) == 1:
        _attend_share(
            np.int64(0), np.int64(1), fused, shape, cache, slopes, out, scratch.floats[0], scratch.operands[0]
        )
    else:
        _attend_parallel(fused, shape, cache, slopes, out, scratch)
