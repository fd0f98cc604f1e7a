"""How every kernel is compiled, and sums whose bits do not depend on how the compiler vectorised them.

A sum runs in PANEL lanes, each in order, and the lanes are added in halves: it becomes vector instructions although the
compiler may regroup nothing.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import njit, types
from numba.extending import intrinsic

from accel.numba_cpu.cpu import FASTMATH, PANEL
from accel.numba_cpu.elementwise import fma

jit = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=True)
jit_parallel = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, cache=True, parallel=True)


def _halves(builder: ir.IRBuilder, vector: ir.Value, combine: Any) -> ir.Value:
    """Upper half with lower half, until one lane is left."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        empty = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                vector, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(at, at + lanes)))
            )
            for at in (0, lanes)
        )
        vector = combine(builder, low, high)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _reduction(name: str, combine: Any, plain: Any) -> Any:
    """A compiled reduction of an array of PANEL float32 numbers; `plain` does the same in Python."""

    def reduce(_context: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
            data = context.make_array(sig.args[0])(context, builder, values[0]).data
            vector = ir.VectorType(ir.FloatType(), PANEL)
            return _halves(builder, builder.load(builder.bitcast(data, vector.as_pointer()), align=4), combine)

        return types.float32(lanes), generate

    def interpreted(lanes: Any) -> Any:
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = plain(lanes[:half], lanes[half:])
        return lanes[0]

    reduce.__name__ = reduce.__qualname__ = name
    return interpreted if numba_config.DISABLE_JIT else intrinsic(reduce)


def _larger(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", low, high), low, high)


sum_of_lanes = _reduction("sum_of_lanes", lambda builder, low, high: builder.fadd(low, high), np.add)
largest_of_lanes = _reduction("largest_of_lanes", _larger, np.maximum)


@jit
def _add_to(lanes: Any, row: Any) -> None:
    for j in range(row.size):
        lanes[j] += row[j]


@jit
def _add_squares(lanes: Any, row: Any) -> None:
    for j in range(row.size):
        lanes[j] = fma(row[j], row[j], lanes[j])


@jit
def total_of(row: Any, lanes: Any) -> Any:
    """The sum of a row; zeros behind it do not change a bit. `lanes` is scratch space of PANEL numbers."""
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, PANEL):
        _add_to(lanes, row[start : start + PANEL])
    return sum_of_lanes(lanes)


@jit
def squares_of(row: Any, lanes: Any) -> Any:
    """The sum of the squares of a row."""
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, PANEL):
        _add_squares(lanes, row[start : start + PANEL])
    return sum_of_lanes(lanes)
