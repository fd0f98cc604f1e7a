"""Sums and maxima whose bits do not depend on how the compiler vectorised them.

A sum runs in NR lanes, each in order, and the lanes are added in halves. It becomes vector instructions although the
compiler must not regroup additions.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from accel.numba_cpu.elementwise import fma
from accel.numba_cpu.isa import NR
from accel.numba_cpu.jit import jit
from bloomref.shapes import Array, Float

I64, LANES = ir.IntType(64), 16
V16F = ir.VectorType(ir.FloatType(), LANES)


def _halves(builder: ir.IRBuilder, vector: ir.Value, combine: Any) -> ir.Value:
    """Combine the upper half with the lower half until one lane is left."""
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
    """A compiled reduction of an array of NR float32 numbers; `plain` is `combine` for NumPy arrays."""

    def reduce(_context: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
            data = context.make_array(sig.args[0])(context, builder, values[0]).data
            vector = ir.VectorType(ir.FloatType(), NR)
            return _halves(builder, builder.load(builder.bitcast(data, vector.as_pointer()), align=4), combine)

        return types.float32(lanes), generate

    def interpreted(lanes: Any) -> Any:
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = plain(lanes[:half], lanes[half:])
        return lanes[0]

    reduce.__name__ = reduce.__qualname__ = name
    return interpreted if numba_config.DISABLE_JIT else intrinsic(reduce)


def _larger(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", other, one), other, one)


sum_of_lanes = _reduction("sum_of_lanes", lambda builder, low, high: builder.fadd(low, high), np.add)
largest_of_lanes = _reduction("largest_of_lanes", _larger, np.maximum)


# --- into lanes ----------------------------------------------------------------------------------


def _vectors_at(builder: ir.IRBuilder, data: ir.Value, at: ir.Value) -> list[ir.Value]:
    """Pointers to the vectors of one panel."""
    offsets = [builder.add(at, ir.Constant(I64, v * LANES)) for v in range(NR // LANES)]
    return [builder.bitcast(builder.gep(data, [offset]), V16F.as_pointer()) for offset in offsets]


def _load(builder: ir.IRBuilder, pointers: list[ir.Value]) -> list[ir.Value]:
    return [builder.load(pointer, align=4) for pointer in pointers]


def _emit_fold(
    builder: ir.IRBuilder, row: ir.Value, at: ir.Value, panels: ir.Value, lanes: ir.Value, combine: Any
) -> None:
    """The loop over panels, with the lanes in registers."""
    targets = _vectors_at(builder, lanes, ir.Constant(I64, 0))
    initial, entry = _load(builder, targets), builder.block
    loop, done = builder.append_basic_block("fold"), builder.append_basic_block("folded")
    builder.cbranch(builder.icmp_signed(">", panels, ir.Constant(I64, 0)), loop, done)
    builder.position_at_end(loop)
    panel, sums = builder.phi(I64), [builder.phi(V16F) for _ in initial]
    values = _load(builder, _vectors_at(builder, row, builder.add(at, builder.mul(panel, ir.Constant(I64, NR)))))
    folded = [combine(builder, before, value) for before, value in zip(sums, values, strict=True)]
    following = builder.add(panel, ir.Constant(I64, 1))
    for phi, first, then in zip([panel, *sums], [ir.Constant(I64, 0), *initial], [following, *folded], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", following, panels), loop, done)
    builder.position_at_end(done)
    totals = [builder.phi(V16F) for _ in targets]
    for target, total, first, then in zip(targets, totals, initial, folded, strict=True):
        total.add_incoming(first, entry)
        total.add_incoming(then, loop)
        builder.store(total, target, align=4)


def _fold(name: str, combine: Any, plain: Any) -> Any:
    """lanes[j] = combine(lanes[j], row[at + p NR + j]) for p < `panels`; `plain`: `combine` in NumPy."""

    def fold(_context: Any, row: Any, at: Any, panels: Any, lanes: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
            data = [context.make_array(sig.args[i])(context, builder, values[i]).data for i in (0, 3)]
            _emit_fold(builder, data[0], values[1], values[2], data[1], combine)
            return context.get_dummy_value()

        return types.void(row, types.int64, types.int64, lanes), generate

    def interpreted(row: Any, at: int, panels: int, lanes: Any) -> None:
        for p in range(panels):
            start = at + p * NR
            lanes[:] = plain(lanes, row[start : start + NR])

    fold.__name__ = fold.__qualname__ = name
    return interpreted if numba_config.DISABLE_JIT else intrinsic(fold)


def _fused(builder: ir.IRBuilder, total: ir.Value, value: ir.Value) -> ir.Value:
    kind = ir.FunctionType(V16F, [V16F] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [value, value, total])


fold_sum = _fold("fold_sum", lambda builder, total, value: builder.fadd(total, value), np.add)
fold_squares = _fold("fold_squares", _fused, lambda total, value: value * value + total)
fold_largest = _fold("fold_largest", _larger, np.fmax)


@jit
def _add_to(lanes: Array, row: Array) -> None:
    for j in range(row.size):
        lanes[j] += row[j]


@jit
def _add_squares(lanes: Array, row: Array) -> None:
    for j in range(row.size):
        lanes[j] = fma(row[j], row[j], lanes[j])


@jit
def total_of(row: Float[Array, " N"], lanes: Float[Array, " M"]) -> np.float32:
    """Sum of a float32 row; trailing zeros change no bit. `lanes` is scratch space of NR numbers."""
    panels = row.size // NR
    lanes[:] = np.float32(0.0)
    fold_sum(row, np.int64(0), panels, lanes)
    _add_to(lanes, row[panels * NR :])
    return sum_of_lanes(lanes)


@jit
def squares_of(row: Float[Array, " N"], lanes: Float[Array, " M"]) -> np.float32:
    """Sum of the squares of a float32 row; trailing zeros change no bit. `lanes` is scratch space of NR numbers."""
    panels = row.size // NR
    lanes[:] = np.float32(0.0)
    fold_squares(row, np.int64(0), panels, lanes)
    _add_squares(lanes, row[panels * NR :])
    return sum_of_lanes(lanes)
