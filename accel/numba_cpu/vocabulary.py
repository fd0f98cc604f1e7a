"""Sums of exponentials over a row of the vocabulary, in float64 although the row is float32.

A draw and a log-probability need the sum of 250,880 exponentials. NumPy needs four passes and arrays of float64.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from accel.numba_cpu.jit import jit, jit_inline, jit_parallel
from bloomref.runtime.backend import VOCABULARY_BLOCK
from bloomref.shapes import Array, Float

f64 = np.float64
LOWEST = f64(-700.0)  # exp of it is 1e-304: nothing beside the largest weight, which is 1
SHARED_FROM = 128
"""Blocks of a row from which threads share it: 0.1 ms of one thread, a few times what the threads' start takes."""
SHIFT = f64(6755399441055744.0)
"""1.5 * 2**52: a sum with it rounds to a whole number, which the lowest bits then hold. A conversion is no vector
instruction everywhere."""

if numba_config.DISABLE_JIT:

    def fma64(a: Any, b: Any, c: Any) -> Any:
        return a * b + c
else:

    @intrinsic  # type: ignore[misc]
    def fma64(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:
        """a b + c, rounded once where the processor has a fused multiply-add."""

        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType()] * 3)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f64"), args)

        return types.float64(types.float64, types.float64, types.float64), generate


@jit_inline
def decay64(x: np.float64) -> np.float64:
    """e**x of x <= 0, and about 0 below LOWEST: a Taylor polynomial on [-ln 2 / 2, ln 2 / 2], to 2e-14."""
    x = max(x, LOWEST)
    shifted = fma64(x, f64(1.4426950408889634), SHIFT)
    n = shifted - SHIFT
    r = fma64(n, f64(-1.90821492927058770002e-10), fma64(n, f64(-0.693147180369123816490), x))
    p = fma64(f64(1.0 / 39916800.0), r, f64(1.0 / 3628800.0))
    p = fma64(p, r, f64(1.0 / 362880.0))
    p = fma64(p, r, f64(1.0 / 40320.0))
    p = fma64(p, r, f64(1.0 / 5040.0))
    p = fma64(p, r, f64(1.0 / 720.0))
    p = fma64(p, r, f64(1.0 / 120.0))
    p = fma64(p, r, f64(1.0 / 24.0))
    p = fma64(p, r, f64(1.0 / 6.0))
    p = fma64(p, r, f64(0.5))
    p = fma64(p, r, f64(1.0))
    p = fma64(p, r, f64(1.0))
    return p * np.int64((np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)


@jit
def _weigh(row: Array, scale: float, largest: float, weights: Array) -> None:
    for j in range(row.size):
        weights[j] = decay64((f64(row[j]) - largest) * scale)


@jit
def _add_halves(weights: Array) -> float:
    """The sum, by additions of one half to the other: each is a loop of vector instructions."""
    half = weights.size // 2
    while half > 0:
        for j in range(half):
            weights[j] += weights[half + j]
        half //= 2
    total: float = weights[0]
    return total


@jit
def _sum_range(row: Array, scale: float, largest: float, out: Array, first: int, stop: int) -> None:
    weights = np.zeros(VOCABULARY_BLOCK, np.float64)
    for block in range(first, stop):
        part = row[block * VOCABULARY_BLOCK : (block + 1) * VOCABULARY_BLOCK]
        _weigh(part, scale, largest, weights)
        for j in range(part.size, VOCABULARY_BLOCK):
            weights[j] = 0.0
        out[block] = _add_halves(weights)


@jit_parallel
def _block_sums(row: Array, scale: float, largest: float, out: Array, threads: int) -> None:
    for t in prange(threads):
        _sum_range(row, scale, largest, out, out.size * t // threads, out.size * (t + 1) // threads)


def exponential_sums(row: Float[Array, " V"], temperature: float, threads: int) -> Float[Array, " N"]:
    """BKD-26 for a float32 row."""
    out = np.empty(-(-row.size // VOCABULARY_BLOCK))
    scale, largest = 1.0 / temperature, float(row.max())
    if threads > 1 and out.size >= SHARED_FROM:
        _block_sums(row, scale, largest, out, threads)
    else:
        _sum_range(row, scale, largest, out, 0, out.size)
    return out
