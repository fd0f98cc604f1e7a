"""ALiBi attention over the cache: tiles of queries, blocks of keys, online softmax; no T x S matrix anywhere.

The cache is laid out for the tiles of `microkernel`, in the compute dtype (float32, bfloat16 or float16 bits):

    keys     [B][H][P / NR][K][NR]        a panel holds NR positions
    values   [B][H][K / NR][P][NR]        a panel holds NR of the head's columns

(in pairs of bfloat16 each [K / 2][NR][2], or [P / 2][NR][2]) so that scores and weighted sums are products of rows with
packed panels, like every other product here. Scores and sums are float32; where the processor multiplies pairs of bfloat16,
queries and weights are rounded to them. A block of keys starts at a multiple of BLOCK whatever the queries are: a row's result
depends on its own query and the keys it sees, not on how the sequence was cut into calls.

Versions, on two cores of a Zen 4, 512 positions of 16 heads of 64 in bfloat16:

v1  one query at a time, dot products: 6 GFLOP/s a core.
v2  tiles of MR queries over blocks of BLOCK keys, widened: 5.8 ms.
v3  pairs of bfloat16; the weights are multiplied by rows, where they are: 4.8 ms; arrays at the beginning of a cache line: 3.4 ms.
v4  256 keys a block instead of 128; each pass of the softmax over a whole row of scores, whose largest and sum stay in registers
    (`fold_largest`, `fold_sum`); no mask where every key is visible; an exp for its range: 2.6 ms, and for 2048 positions 33 ms
    instead of 45. Half of it is the two products.
v5  the next head's keys are asked for: a step of 16 rows behind 48 positions takes 0.20 instead of 0.25 ms.
"""

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from accel.numba_cpu.elementwise import decay, exp, fma, store
from accel.numba_cpu.isa import KC, LDA, LINE, MR, NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.linear import end_row, put, step_width
from accel.numba_cpu.microkernel import prefetch, tile, tile_rows
from accel.numba_cpu.reductions import fold_largest, fold_sum, largest_of_lanes, sum_of_lanes

BLOCK = 256  # keys of one step of the online softmax
DISTANCES = np.arange(BLOCK, dtype=np.float32)  # float32 throughout: whole numbers would halve the lanes
LOWEST = np.float32(-3.0e38)  # stands for the maximum of no scores: exp(-inf - LOWEST) is 0, not NaN


@jit
def panel_elements(width: int, rows: Any) -> int:
    """Elements of a panel of keys."""
    step = step_width(rows)
    return (width + step - 1) // step * step * NR


@jit
def _append_key(key: Any, keys: Any, start: int, lane: int, step: int) -> None:
    """One position's key becomes one lane of its panel, which begins at `start`."""
    if step == 2:
        for l in range(key.size):
            store(keys, start + (l // 2 * NR + lane) * 2 + l % 2, key[l])
    else:
        for l in range(key.size):
            store(keys, start + l * NR + lane, key[l])


@jit
def _append_value(value: Any, values: Any, start: int, stride: int, position: int, step: int) -> None:
    """One position's value becomes one line of every panel of columns; the panels begin `stride` apart."""
    for first in range(0, value.size, NR):
        if step == 2:
            at = start + first // NR * stride + position // 2 * 2 * NR + position % 2
            for j in range(min(NR, value.size - first)):
                store(values, at + 2 * j, value[first + j])
        else:
            at = start + first // NR * stride + position * NR
            for j in range(min(NR, value.size - first)):
                store(values, at + j, value[first + j])


@jit_parallel
def append(
    qkv: Any, batch: int, time: int, heads: int, width: int, start: int, cache: Any, rows: Any, threads: int
) -> None:
    """Store the keys and values of `time` positions from `start` on; qkv is (B T, H 3 K), interleaved by head.

    `cache` is (keys, values, capacity); `rows` says by its dtype whether they are kept in pairs.
    """
    keys, values, capacity = cache
    columns, step, panel = (width + NR - 1) // NR, step_width(rows), panel_elements(width, rows)
    for t in prange(threads):
        for item in range(batch * heads * t // threads, batch * heads * (t + 1) // threads):
            row, head = item // heads, item % heads
            for i in range(time):
                position = start + i
                key, value = (3 * head + 1) * width, (3 * head + 2) * width
                source = qkv[row * time + i]
                first = (item * (capacity // NR) + position // NR) * panel
                _append_key(source[key : key + width], keys, first, position % NR, step)
                _append_value(source[value : value + width], values, item * columns * capacity * NR,
                              capacity * NR, position, step)  # fmt: skip


# --- softmax over a block of scores --------------------------------------------------------------


@jit
def _bias_all(scores: Any, first: Any, slope: Any, scale: Any) -> None:
    for j in range(scores.size):
        scores[j] = fma(scores[j], scale, slope * (first + DISTANCES[j]))


@jit
def _bias_visible(scores: Any, first: Any, slope: Any, scale: Any, real: Any) -> None:
    for j in range(scores.size):
        distance = first + DISTANCES[j]
        biased = fma(scores[j], scale, slope * distance)
        scores[j] = biased if distance <= np.float32(0.0) and real[j] else np.float32(-np.inf)


@jit
def _bias(scores: Any, rows: int, count: int, offset: int, slope: Any, scale: Any, real: Any, whole: Any) -> None:
    """Biased scores of keys of which the first is `offset` columns after row 0's query (ATT-4, ATT-5, ATT-7).

    `real` says which of them are tokens, `whole` of which panels all are.
    """
    all_visible = offset + count <= 1
    for p in range(count // NR):
        all_visible = all_visible and whole[p]
    for i in range(rows):
        row = scores[i * LDA : i * LDA + count]
        if all_visible:
            _bias_all(row, np.float32(offset - i), slope, scale)
        else:
            _bias_visible(row, np.float32(offset - i), slope, scale, real)


@jit
def _raise_peaks(scores: Any, rows: int, count: int, peak: Any, shrink: Any, lanes: Any) -> None:
    """peak = the largest score so far; shrink = what the sums of the earlier blocks are to be multiplied with."""
    for i in range(rows):
        lanes[:] = peak[i]
        fold_largest(scores, i * LDA, count // NR, lanes)
        shrink[i] = largest_of_lanes(lanes)
    for i in range(MR):  # of rows that are not there as well: one vector
        high = shrink[i]
        shrink[i] = exp(peak[i] - high)
        peak[i] = high


@jit
def _decay(scores: Any, peak: Any) -> None:
    for j in range(scores.size):
        scores[j] = decay(scores[j] - peak)


@jit
def _weigh(scores: Any, rows: int, count: int, peak: Any, shrink: Any, total: Any, lanes: Any) -> None:
    """Scores to weights; their sum, lane by lane, so that zeros at the end do not change a bit."""
    for i in range(rows):
        _decay(scores[i * LDA : i * LDA + count], peak[i])
        lanes[:] = np.float32(0.0)
        fold_sum(scores, i * LDA, count // NR, lanes)
        total[i] = fma(total[i], shrink[i], sum_of_lanes(lanes))


@jit
def _rescale(sums: Any, rows: int, shrink: Any) -> None:
    for i in range(rows):
        for j in range(sums.shape[1]):
            sums[i, j] *= shrink[i]


@jit
def _round_weights(scores: Any, rows: int, count: int, weights: Any) -> None:
    for i in range(rows):
        source, target = scores[i * LDA : i * LDA + count], weights[2 * i * LDA : 2 * i * LDA + count]
        for j in range(count):
            store(target, j, source[j])


def as_rows(scores: Any, rows: int, count: int, weights: Any) -> Any:
    """The first `count` weights of each row as a tile reads them: where they are, or rounded into `weights`."""
    if weights.dtype == np.float32:
        return scores
    _round_weights(scores, rows, count, weights)
    return weights


@overload(as_rows)
def _as_rows(scores, rows, count, weights):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if weights.dtype == types.float32:
        return lambda scores, rows, count, weights: scores

    def implementation(scores, rows, count, weights):  # type: ignore[no-untyped-def]
        _round_weights(scores, rows, count, weights)
        return weights

    return implementation


@jit
def _score(query: Any, rows: int, width: int, keys: Any, start: int, scores: Any, at: int) -> None:
    """scores[:, at : at + NR] = queries times one panel of keys, which begins at `start`."""
    step = step_width(query)
    steps = (width + step - 1) // step
    for l in range(0, steps, KC):
        tile(rows, query, l // KC * LDA * MR * step, keys, start + l * NR * step, scores, at, min(KC, steps - l), LDA,
             l > 0)  # fmt: skip


@jit
def _tile_of_queries(qkv: Any, first: int, rows: int, head: int, width: int, query: int, item: int, cache: Any,
                     real: Any, whole: Any, slope: Any, scale: Any, out: Any, m: int, work: Any,
                     tiles: Any) -> None:  # fmt: skip
    """`rows` neighbouring queries of one head, over all the keys that the last of them sees."""
    keys, values, capacity = cache
    columns, step, panel = (width + NR - 1) // NR, step_width(tiles), panel_elements(width, tiles)
    padded = columns * NR
    scores, at = work[: MR * LDA], MR * LDA
    flat_sums, at = work[at : at + MR * padded], at + MR * padded
    lanes, at = work[at : at + NR], at + NR
    peak, total, shrink = work[at : at + MR], work[at + NR :], work[at + 2 * NR :]
    weights, queries = tiles[: MR * LDA * step], tiles[MR * LDA * step :]
    sums = flat_sums.reshape(MR, padded)
    for i in range(rows):
        put(qkv[first + i, 3 * head * width : (3 * head + 1) * width], queries, MR, i, np.int64(0))
        end_row(queries, MR, i, width)
        for c in range(padded):
            sums[i, c] = np.float32(0.0)
        peak[i], total[i] = LOWEST, np.float32(0.0)

    stop = query + rows
    for block in range(0, stop, BLOCK):
        depth = min(BLOCK, stop - block)
        count = (depth + NR - 1) // NR * NR
        for p in range(0, count, NR):
            start = (item * capacity + block + p) // NR * panel
            _score(queries, rows, width, keys, start, scores, p)
        _bias(scores, rows, count, block - query, slope, scale, real[block:], whole[block // NR :])
        _raise_peaks(scores, rows, count, peak, shrink, lanes)
        _weigh(scores, rows, count, peak, shrink, total, lanes)
        _rescale(sums, rows, shrink)
        probabilities = as_rows(scores, rows, count, weights)
        for column in range(columns):
            start = ((item * columns + column) * capacity + block) * NR
            tile(
                rows,
                probabilities,
                0,
                values,
                start,
                flat_sums,
                column * NR,
                (depth + step - 1) // step,
                padded,
                True,
            )
    for i in range(rows):
        share = np.float32(1.0) / total[i] if total[i] > np.float32(0.0) and real[query + i] else np.float32(0.0)
        for c in range(width):
            sums[i, c] *= share
        put(sums[i, :width], out, m, first + i, head * width)


def workspace(width: int) -> int:
    """float32 numbers that one thread of `attend` needs."""
    padded = (width + NR - 1) // NR * NR
    return MR * (LDA + padded) + 4 * NR


def tile_elements(steps: int, step: int) -> int:
    """Elements of the weights and queries that one thread of `attend` multiplies; `steps` of a head."""
    return MR * LDA * step * (1 + (steps + KC - 1) // KC)


@jit
def _prefetch_item(item: int, positions: int, width: int, cache: Any, tiles: Any) -> None:
    """The first keys and values of a head of a row, which is next: where it has few, the time goes to waiting for the first."""
    keys, values, capacity = cache
    columns, panel, count = (width + NR - 1) // NR, panel_elements(width, tiles), min(positions, 2 * NR)
    panels = (count + NR - 1) // NR
    prefetch(keys, item * capacity // NR * panel, panels * panel * keys.itemsize // LINE)
    for column in range(columns):
        prefetch(values, (item * columns + column) * capacity * NR, count * NR * values.itemsize // LINE)


@jit_parallel
def attend(qkv: Any, batch: int, time: int, heads: int, width: int, start: int, cache: Any, real: Any, slopes: Any,
           scale: Any, out: Any, work: Any, tiles: Any, threads: int) -> None:  # fmt: skip
    """out: every query against the cache, as rows (B T, H K) of a product.

    `real` is (B, P), which columns are tokens, and (B, P / NR), which panels of them all are.
    """
    groups, m = (time + MR - 1) // MR, batch * time
    for t in prange(threads):
        # later queries see more keys: dealing the groups out in turn evens the load
        for index in range(t, batch * heads * groups, threads):
            item, first = index // groups, index % groups * MR
            row, head = item // heads, item % heads
            if groups == 1 and item + threads < batch * heads:
                _prefetch_item(item + threads, start + time, width, cache, tiles)
            done = 0
            last = min(MR, time - first)
            while done < last:
                rows = tile_rows(last - done)
                _tile_of_queries(qkv, row * time + first + done, rows, head, width, start + first + done, item, cache,
                                 real[0][row], real[1][row], slopes[head], scale, out, m, work[t], tiles[t])  # fmt: skip
                done += rows
        for i in range(m * t // threads, m * (t + 1) // threads):
            end_row(out, m, i, heads * width)
