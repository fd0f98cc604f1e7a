"""Kernels between the matrix products of a training step, forwards and backwards, in float32 over rows.

`dx` is the gradient of the loss by x. A kernel that overwrites one of its arguments says so.
"""

import math
from typing import Any

import numpy as np
from numba import prange

from accel.numba_cpu.elementwise import exp, fma, gelu, tanh
from accel.numba_cpu.isa import NR
from accel.numba_cpu.jit import jit, jit_parallel
from accel.numba_cpu.linear import FLOAT32
from accel.numba_cpu.norm import norm_row
from accel.numba_cpu.reductions import largest_of_lanes, squares_of, sum_of_lanes, total_of

f32 = np.float32


# --- layer norm ----------------------------------------------------------------------------------


@jit_parallel
def norm(x: Any, weight: Any, bias: Any, epsilon: Any, out: Any, threads: int) -> None:
    """Layer norm of every row (EMB-3)."""
    for t in prange(threads):
        lanes = np.empty(NR, np.float32)
        for i in range(len(x) * t // threads, len(x) * (t + 1) // threads):
            norm_row(x[i], weight, bias, epsilon, out[i], FLOAT32, lanes)


@jit
def _norm_back_row(x: Any, weight: Any, epsilon: Any, dz: Any, n: Any, g: Any, lanes: Any) -> None:
    """Write n = (x - mean) / s and the gradient by x into n and g:
    with g = dz weight, (g - mean(g) - n mean(g n)) / s.
    """
    width = f32(x.size)
    mean = total_of(x, lanes) / width
    for j in range(x.size):
        n[j] = x[j] - mean
    scale = f32(1.0) / np.sqrt(squares_of(n, lanes) / width + epsilon)
    for j in range(x.size):
        n[j] *= scale
        g[j] = dz[j] * weight[j]
    level = total_of(g, lanes) / width
    along = _dot(g, n, lanes) / width
    for j in range(x.size):
        g[j] = (g[j] - level - n[j] * along) * scale


@jit_parallel
def norm_back(
    x: Any, weight: Any, epsilon: Any, dz: Any, base: Any, dx: Any, dweight: Any, dbias: Any, threads: int
) -> None:
    """dx = base + the gradient by x; dweight and dbias (threads, D) take each thread's sums unless they are empty.

    `dz` may be `base` or `dx`.
    """
    for t in prange(threads):
        lanes, n, g = np.empty(NR, np.float32), np.empty(x.shape[1], np.float32), np.empty(x.shape[1], np.float32)
        for i in range(len(x) * t // threads, len(x) * (t + 1) // threads):
            _norm_back_row(x[i], weight, epsilon, dz[i], n, g, lanes)
            if dweight.size:
                _add_norm_sums(dz[i], n, dweight[t], dbias[t])
            _add(base[i], g, dx[i])


@jit
def _add_norm_sums(dz: Any, n: Any, dweight: Any, dbias: Any) -> None:
    for j in range(dz.size):
        dweight[j] = fma(dz[j], n[j], dweight[j])
        dbias[j] += dz[j]


@jit
def _add(a: Any, b: Any, out: Any) -> None:
    for j in range(a.size):
        out[j] = a[j] + b[j]


# --- sums in lanes -------------------------------------------------------------------------------


@jit
def _fma_lanes(a: Any, b: Any, lanes: Any) -> None:
    for j in range(a.size):
        lanes[j] = fma(a[j], b[j], lanes[j])


@jit
def _dot(a: Any, b: Any, lanes: Any) -> Any:
    lanes[:] = f32(0.0)
    for start in range(0, a.size, NR):
        _fma_lanes(a[start : start + NR], b[start : start + NR], lanes)
    return sum_of_lanes(lanes)


@jit
def _max_lanes(row: Any, lanes: Any) -> None:
    for j in range(row.size):
        lanes[j] = max(lanes[j], row[j])


@jit
def _largest(row: Any, lanes: Any) -> Any:
    lanes[:] = f32(-math.inf)
    for start in range(0, row.size, NR):
        _max_lanes(row[start : start + NR], lanes)
    return largest_of_lanes(lanes)


@jit
def _powers(row: Any, peak: Any) -> None:
    for j in range(row.size):
        row[j] = exp(row[j] - peak)


@jit
def _times(row: Any, factor: Any) -> None:
    for j in range(row.size):
        row[j] *= factor


# --- MLP and residual ----------------------------------------------------------------------------


@jit
def _gelu_row(up: Any, out: Any) -> None:
    for j in range(up.size):
        out[j] = gelu(up[j])


@jit_parallel
def gelu_rows(up: Any, out: Any) -> None:
    """GELU of every row (MLP-2)."""
    for i in prange(len(up)):
        _gelu_row(up[i], out[i])


@jit
def _gelu_back_row(up: Any, d: Any) -> None:
    """d (1/2 (1 + t) + x/2 (1 - t^2) c (1 + 3 a x^2)), t = tanh(c x (1 + a x^2))."""
    for j in range(up.size):
        x = up[j]
        square = f32(0.044715) * x * x
        t = tanh(f32(0.79788456) * x * (square + f32(1.0)))
        slope = (f32(1.0) - t * t) * f32(0.79788456) * fma(f32(3.0), square, f32(1.0))
        d[j] *= f32(0.5) * (f32(1.0) + t + x * slope)


@jit_parallel
def gelu_back(up: Any, d: Any) -> None:
    """Overwrite d, the gradient by gelu(up), with the gradient by up."""
    for i in prange(len(up)):
        _gelu_back_row(up[i], d[i])


@jit_parallel
def add_bias(y: Any, bias: Any) -> None:
    """y += bias, in place."""
    for i in prange(len(y)):
        _add(y[i], bias, y[i])


@jit_parallel
def add_rows(y: Any, x: Any) -> None:
    """y += x, in place."""
    for i in prange(len(y)):
        _add(y[i], x[i], y[i])


@jit_parallel
def column_sums(d: Any, out: Any, threads: int) -> None:
    """out (threads, M) += each thread's sums: the gradient of a bias."""
    for t in prange(threads):
        for i in range(len(d) * t // threads, len(d) * (t + 1) // threads):
            _add(out[t], d[i], out[t])


# --- attention -----------------------------------------------------------------------------------


@jit
def _bias_row(row: Any, scale: Any, slope: Any, t: int, shown: Any) -> None:
    for s in range(row.size):
        value = fma(row[s], scale, slope * f32(s - t))
        row[s] = value if shown[s] else f32(-math.inf)


@jit
def _softmax_row(row: Any, lanes: Any) -> None:
    """Softmax of one row; zeros where no key is visible (ATT-8)."""
    peak = _largest(row, lanes)
    if peak == f32(-math.inf):
        row[:] = f32(0.0)
        return
    _powers(row, peak)
    _times(row, f32(1.0) / total_of(row, lanes))


@jit_parallel
def softmax(scores: Any, scale: Any, slopes: Any, document: Any) -> None:
    """Overwrite scores (B, H, T, T), products of queries and keys,
    with attention probabilities. Clauses: ALI-4, ATT-4 ... ATT-8.

    `document` (B, T) is negative for padding; positions of one number see each other.
    """
    batch, heads, time, _ = scores.shape
    for item in prange(batch * heads):
        b, h = item // heads, item % heads
        lanes, shown = np.empty(NR, np.float32), np.empty(time, np.bool_)
        for t in range(time):
            row, own = scores[b, h, t], document[b, t]
            for s in range(t + 1):
                shown[s] = own >= 0 and document[b, s] == own
            _bias_row(row[: t + 1], scale, slopes[h], t, shown)
            _softmax_row(row[: t + 1], lanes)
            row[t + 1 :] = f32(0.0)


@jit
def _softmax_back_row(p: Any, d: Any, inner: Any, scale: Any) -> None:
    for s in range(p.size):
        d[s] = p[s] * (d[s] - inner) * scale


@jit_parallel
def softmax_back(probabilities: Any, d: Any, scale: Any) -> None:
    """Overwrite d, the gradient by the probabilities, with the gradient by the products of queries and keys."""
    batch, heads, time, _ = d.shape
    for item in prange(batch * heads):
        b, h = item // heads, item % heads
        lanes = np.empty(NR, np.float32)
        for t in range(time):
            p, row = probabilities[b, h, t], d[b, h, t]
            _softmax_back_row(p[: t + 1], row[: t + 1], _dot(p[: t + 1], row[: t + 1], lanes), scale)
            row[t + 1 :] = f32(0.0)


# --- loss ----------------------------------------------------------------------------------------


@jit_parallel
def add_powers(logits: Any, targets: Any, first: int, peaks: Any, totals: Any, chosen: Any, sums: Any) -> None:
    """Overwrite logits (N, W), those of the tokens from `first` on, with exp(logits - peak), and keep the state of an
    online softmax.

    Args:
        targets: (N,) token of each row.
        peaks: (N,) float32, the running maximum of each row.
        totals: (N,) float64, the running sum of the powers.
        chosen: (N,) float32, receives the target's logit, if it is among these.
        sums: (N, D) float32, sums weighted by the earlier powers: rescaled to the new maximum.
    """
    for i in prange(len(logits)):
        lanes, row, at = np.empty(NR, np.float32), logits[i], targets[i] - first
        peak = max(peaks[i], _largest(row, lanes))
        if 0 <= at < row.size:
            chosen[i] = row[at]
        _powers(row, peak)
        factor = exp(peaks[i] - peak)
        if factor != f32(1.0):
            _times(sums[i], factor)
        totals[i] = totals[i] * factor + total_of(row, lanes)
        peaks[i] = peak


@jit_parallel
def softmax_slopes(logits: Any, targets: Any, first: int, peaks: Any, factors: Any, weight: Any) -> None:
    """Overwrite logits (N, W), those of the tokens from `first` on, with their gradient:
    factor exp(logits - peak) - weight one_hot(target).
    """
    for i in prange(len(logits)):
        row, at = logits[i], targets[i] - first
        _powers(row, peaks[i])
        _times(row, factors[i])
        if 0 <= at < row.size:
            row[at] -= weight
