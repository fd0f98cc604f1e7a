"""The micro-kernel of every product: a register tile of sums, written in LLVM IR.

`tile(rows, a, ao, b, bo, c, co, k, ldc, accumulate)` computes, for i < rows and j < NR,

    c[co + i ldc + j]  (+)=  sum over l < k of  a[ao + i LDA + l] * b[bo + l NR + j]

The parameters are those of a BLAS product:

    rows        rows of the tile, one of TILE_SIZES
    a, ao       flat array of the left operand, and the element where its first row begins
    b, bo       flat array of packed panels, and the element where this panel's slice begins
    c, co       flat float32 array of sums, and the element of the tile's first sum
    k           steps of the sum
    ldc         elements from one row of c to the next
    accumulate  add to c instead of overwriting it

The dtypes of a and b decide the arithmetic:

    a float32, b float32   float32 weights
    a float32, b uint16    bfloat16 weights, widened by a shift
    a float32, b int16     float16 weights, widened by the processor
    a uint16,  b uint16    bfloat16 operands (AVX512-BF16 only); a step is a pair of neighbours: two elements of each

Rows of a lie a fixed distance apart, LDA steps, so that one register and constants address them all.

`stream(rows, a, ao, b, bo, stride, c, co, k, ldc, accumulate)` computes the same sums from a b in main memory. It takes
`panels_at_once(rows)` panels, `stride` elements apart, and prefetches b.

Sums run over l in order, one fused multiply-add each, for any number of rows: a row's result does not depend on its
neighbours.

Versions, on two cores of a Zen 4, 512 rows, the up-projection of bloom-560m in pairs of bfloat16:

v1  a loop in plain Numba: scalar, 4 GFLOP/s a core.
v2  this tile, 12 x 32 on AVX-512: sums stay in registers, b is loaded once for all rows, a is broadcast from memory,
    packed by
    steps: 395 GFLOP/s.
v3  a by rows instead of by steps, so that its producer writes whole vectors: 308 GFLOP/s, because the rows of a tile
    map to the same cache sets; with rows LDA apart 388; with every array at the beginning of a cache line 417. A core's
    peak is about 235.

`stream`, weights of 335 MB, against `tile` in the same run: 1 row 1.15 times as fast (2 panels: more loads under way),
12 rows 1.2 times and 16 rows 1.12 times (prefetch into the second-level cache, 8 kB ahead; a shorter distance, or the
first-level cache, was slower than no prefetch).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from accel.numba_cpu.elementwise import bits_as_float, half_as_float
from accel.numba_cpu.isa import LDA, LINE, MR, NR, TILE_SIZES
from accel.numba_cpu.jit import jit
from accel.numba_cpu.reductions import I64, LANES, V16F

F16, I16, I32 = ir.HalfType(), ir.IntType(16), ir.IntType(32)
VECTORS = NR // LANES


class _BFloat(ir.Type):
    """LLVM's type bfloat, which llvmlite lacks."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_Operands: TypeAlias = "_Float32 | _BFloat16Pairs"
V32B = ir.VectorType(_BFloat(), 2 * LANES)


def _broadcast(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(empty, scalar, ir.Constant(I32, 0)), empty, zeros)


class _Float32:
    """float32 sums of float32 products; b may be narrower and is widened on load."""

    width = 1  # elements of a, and of b in each lane, that make one step

    def __init__(self, builder: ir.IRBuilder, b_type: types.Type) -> None:
        self.builder, self.b_type = builder, b_type
        kind = ir.FunctionType(V16F, [V16F, V16F, V16F])
        self.fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

    def load_b(self, pointer: ir.Value) -> ir.Value:
        builder = self.builder
        if self.b_type == types.float32:
            return builder.load(builder.bitcast(pointer, V16F.as_pointer()), align=4)
        if self.b_type == types.int16:
            half = ir.VectorType(F16, LANES)
            return builder.fpext(builder.load(builder.bitcast(pointer, half.as_pointer()), align=2), V16F)
        narrow, wide = ir.VectorType(I16, LANES), ir.VectorType(I32, LANES)
        bits = builder.zext(builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=2), wide)
        return builder.bitcast(builder.shl(bits, ir.Constant(wide, [16] * LANES)), V16F)

    def load_a(self, pointer: ir.Value) -> ir.Value:
        return _broadcast(self.builder, self.builder.load(pointer, align=4), LANES)

    def add(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.call(self.fma, [a, b, total])


class _BFloat16Pairs:
    """float32 sums of pairs of bfloat16 products: vdpbf16ps."""

    width = 2

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        kind = ir.FunctionType(V16F, [V16F, V32B, V32B])
        self.dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")

    def load_b(self, pointer: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(pointer, V32B.as_pointer()), align=2)

    def load_a(self, pointer: ir.Value) -> ir.Value:
        pair = self.builder.load(self.builder.bitcast(pointer, I32.as_pointer()), align=2)
        return self.builder.bitcast(_broadcast(self.builder, pair, LANES), V32B)

    def add(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.call(self.dot, [total, a, b])


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _emit_prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Prefetch a cache line into the second-level cache."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, second_level, data = ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)
    builder.call(prefetch, [builder.bitcast(pointer, ir.IntType(8).as_pointer()), read, second_level, data])


def _load_step(builder: ir.IRBuilder, operands: _Operands, panel: ir.Value, ahead: int) -> list[ir.Value]:
    """The vectors of one step of a panel; prefetches the lines `ahead` bytes after them."""
    pointers = [builder.gep(panel, [_constant(v * LANES * operands.width)]) for v in range(VECTORS)]
    if ahead:
        for pointer in pointers:
            byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
            _emit_prefetch(builder, builder.gep(byte, [_constant(ahead)]))
    return [operands.load_b(pointer) for pointer in pointers]


def _emit_tile(rows: int, builder: ir.IRBuilder, operands: _Operands, a: ir.Value, panels: list[ir.Value],
               c: ir.Value, k: ir.Value, ldc: ir.Value, accumulate: ir.Value, ahead: int = 0) -> None:  # fmt: skip
    """The loop over k with the sums of rows x panels in registers, then the store."""
    columns = VECTORS * len(panels)
    entry = builder.block
    loop, done = builder.append_basic_block("tile"), builder.append_basic_block("store")
    zero = ir.Constant(V16F, [0.0] * LANES)
    builder.cbranch(builder.icmp_signed(">", k, _constant(0)), loop, done)

    builder.position_at_end(loop)
    step = builder.phi(I64)
    step.add_incoming(_constant(0), entry)
    sums = [[builder.phi(V16F) for _ in range(columns)] for _ in range(rows)]
    line = builder.mul(step, _constant(NR * operands.width))
    vectors = [vector for b in panels for vector in _load_step(builder, operands, builder.gep(b, [line]), ahead)]
    a_here = builder.gep(a, [builder.mul(step, _constant(operands.width))])
    totals = []
    for i in range(rows):
        factor = operands.load_a(builder.gep(a_here, [_constant(i * LDA * operands.width)]))
        totals.append([operands.add(sums[i][v], factor, vectors[v]) for v in range(columns)])
    following = builder.add(step, _constant(1))
    step.add_incoming(following, loop)
    for i in range(rows):
        for v in range(columns):
            sums[i][v].add_incoming(zero, entry)
            sums[i][v].add_incoming(totals[i][v], loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, done)

    builder.position_at_end(done)
    for i in range(rows):
        for v in range(columns):
            total = builder.phi(V16F)
            total.add_incoming(zero, entry)
            total.add_incoming(totals[i][v], loop)
            totals[i][v] = total
    _emit_store(builder, totals, c, ldc, accumulate)


def _emit_store(
    builder: ir.IRBuilder, totals: list[list[ir.Value]], c: ir.Value, ldc: ir.Value, accumulate: ir.Value
) -> None:
    targets = [
        builder.bitcast(
            builder.gep(c, [builder.add(builder.mul(_constant(i), ldc), _constant(v * LANES))]), V16F.as_pointer()
        )
        for i, row in enumerate(totals)
        for v in range(len(row))
    ]
    flat = [total for row in totals for total in row]
    with builder.if_else(accumulate) as (adding, setting):
        with adding:
            for target, total in zip(targets, flat, strict=True):
                builder.store(builder.fadd(builder.load(target, align=4), total), target, align=4)
        with setting:
            for target, total in zip(targets, flat, strict=True):
                builder.store(total, target, align=4)


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _operands(builder: ir.IRBuilder, a: Any, b: Any) -> _Operands:
    return _BFloat16Pairs(builder) if a.dtype == types.uint16 else _Float32(builder, b.dtype)


def _dispatch(builder: ir.IRBuilder, rows: ir.Value, emit: Callable[[int], None]) -> None:
    """`emit(size)` for the one of TILE_SIZES that equals `rows`."""
    done = builder.append_basic_block("tiled")
    cases = [(size, builder.append_basic_block(f"rows_{size}")) for size in TILE_SIZES]
    branch = builder.switch(rows, cases[-1][1])
    for size, block in cases:
        branch.add_case(_constant(size), block)
        builder.position_at_end(block)
        emit(size)
        builder.branch(done)
    builder.position_at_end(done)


def _emit_any_tile(_context: Any, rows: Any, a: Any, ao: Any, b: Any, bo: Any, c: Any, co: Any, k: Any, ldc: Any,
                   accumulate: Any) -> Any:  # fmt: skip
    def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        left, right, sums = (_pointer(context, builder, sig.args[i], *values[i : i + 2]) for i in (1, 3, 5))
        operands, adding = _operands(builder, a, b), _bit(builder, values[9])

        def emit(size: int) -> None:
            _emit_tile(size, builder, operands, left, [right], sums, values[7], values[8], adding)

        _dispatch(builder, values[0], emit)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, a, i64, b, i64, c, i64, i64, i64, types.boolean), generate


def _emit_any_stream(_context: Any, rows: Any, a: Any, ao: Any, b: Any, bo: Any, stride: Any, c: Any, co: Any, k: Any,
                     ldc: Any, accumulate: Any) -> Any:  # fmt: skip
    def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        left, right, sums = (_pointer(context, builder, sig.args[i], *values[i : i + 2]) for i in (1, 3, 6))
        operands, adding = _operands(builder, a, b), _bit(builder, values[10])

        def emit(size: int) -> None:
            count = panels_at_once(size)
            panels = [builder.gep(right, [builder.mul(values[5], _constant(p))]) for p in range(count)]
            ahead = 1024 if count == 2 else 8192
            _emit_tile(size, builder, operands, left, panels, sums, values[8], values[9], adding, ahead)

        _dispatch(builder, values[0], emit)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, a, i64, b, i64, i64, c, i64, i64, i64, types.boolean), generate


def _bit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.trunc(value, ir.IntType(1)) if value.type != ir.IntType(1) else value


@jit
def tile_rows(left: int) -> int:
    """Rows of the next tile where `left` rows remain: the largest of TILE_SIZES that is not larger."""
    for size in TILE_SIZES:
        if left >= size:
            return size
    return 1


@register_jitable  # type: ignore[misc]
def panels_at_once(rows: int) -> int:
    """Number of panels that `stream` takes: two where the registers hold the sums of both."""
    return 2 if 2 * rows <= MR else 1


def widen(bits: Any) -> Any:
    """Elements of a packed array as float32, for the interpreted kernels and the tests."""
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if bits.dtype == np.int16 else bits


def _tile_in_numpy(rows: int, a: Any, ao: int, b: Any, bo: int, c: Any, co: int, k: int, ldc: int,
                   accumulate: bool) -> None:  # fmt: skip
    """`tile` with NumPy's bounds checks, for NUMBA_DISABLE_JIT."""
    width = 2 if a.dtype == np.uint16 else 1
    last = ao + (rows - 1) * LDA * width + k * width
    if not 0 <= ao <= last <= a.size or bo + k * NR * width > b.size:
        raise IndexError(f"tile of {rows} rows and {k} steps at {ao} of {a.size}, {bo} of {b.size}")
    left = widen(np.stack([a[ao + i * LDA * width :][: k * width] for i in range(rows)]))
    right = widen(b[bo : bo + k * NR * width]).reshape(k, NR, width).transpose(0, 2, 1)
    total = left @ right.reshape(k * width, NR)
    for i in range(rows):
        start = co + i * ldc
        if not 0 <= start <= c.size - NR:
            raise IndexError(f"tile row {i} at {start} of {c.size}")
        c[start : start + NR] = total[i] + (c[start : start + NR] if accumulate else 0.0)


def _stream_in_numpy(rows: int, a: Any, ao: int, b: Any, bo: int, stride: int, c: Any, co: int, k: int, ldc: int,
                     accumulate: bool) -> None:  # fmt: skip
    """`stream` for NUMBA_DISABLE_JIT."""
    for p in range(panels_at_once(rows)):
        _tile_in_numpy(rows, a, ao, b, bo + p * stride, c, co + p * NR, k, ldc, accumulate)


def _prefetch_in_numpy(array: Any, at: int, lines: int) -> None:
    """`prefetch` for NUMBA_DISABLE_JIT: nothing."""


def _emit_prefetch_lines(_context: Any, array: Any, at: Any, lines: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        first = _pointer(context, builder, sig.args[0], values[0], values[1])
        byte = builder.bitcast(first, ir.IntType(8).as_pointer())
        with cgutils.for_range(builder, values[2]) as loop:
            _emit_prefetch(builder, builder.gep(byte, [builder.mul(loop.index, _constant(LINE))]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


def _intrinsic(emit: Any, name: str, in_numpy: Any) -> Any:
    """The intrinsic of that name, or its stand-in where nothing is compiled."""
    emit.__name__ = emit.__qualname__ = name
    return in_numpy if numba_config.DISABLE_JIT else intrinsic(emit)


_tile = _intrinsic(_emit_any_tile, "_tile", _tile_in_numpy)
_stream = _intrinsic(_emit_any_stream, "_stream", _stream_in_numpy)
prefetch = _intrinsic(_emit_prefetch_lines, "prefetch", _prefetch_in_numpy)
"""`prefetch(array, at, lines)`: read so many cache lines, from element `at` on, into the second-level cache. Addresses
past the end of the array are harmless."""


@jit
def tile(rows: int, a: Any, ao: int, b: Any, bo: int, c: Any, co: int, k: int, ldc: int, accumulate: bool) -> None:
    """Sums of `rows` rows with one panel that a cache holds."""
    _tile(rows, a, ao, b, bo, c, co, k, ldc, accumulate)


@jit
def stream(rows: int, a: Any, ao: int, b: Any, bo: int, stride: int, c: Any, co: int, k: int, ldc: int,
           accumulate: bool) -> None:  # fmt: skip
    """Sums of `rows` rows with `panels_at_once(rows)` panels that are in main memory."""
    _stream(rows, a, ao, b, bo, stride, c, co, k, ldc, accumulate)


def widen_element(element: Any) -> Any:
    """One element of a packed array as float32."""
    return widen(np.asarray(element))[()]


@overload(widen_element)
def _widen_element(element):  # type: ignore[no-untyped-def]
    if element == types.uint16:
        return lambda element: bits_as_float(np.uint32(element) << np.uint32(16))
    if element == types.int16:
        return lambda element: half_as_float(element)
    return lambda element: element
