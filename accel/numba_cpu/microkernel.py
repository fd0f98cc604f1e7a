"""The innermost loop of every product: a register tile of sums, written in LLVM IR.

`tile_M(a, ao, b, bo, c, co, k, ldc, keep)` computes, for i < M and j < PANEL,

    c[co + i ldc + j]  (+)=  sum over l < k of  a[ao + i PITCH + l] * b[bo + l PANEL + j]

on flat arrays, adding to c when `keep` is true. The dtypes of a and b say what they hold:

    a float32, b float32   float32 weights
    a float32, b uint16    bfloat16 weights, widened by a shift
    a float32, b int16     float16 weights, widened by the processor
    a uint16,  b uint16    bfloat16 on both sides (AVX512-BF16 only); one l is a pair of neighbours: two elements of each

The rows of a lie a fixed distance apart, PITCH steps, so that one register and constants address them all.

`stream_M(a, ao, b, bo, stride, c, co, k, ldc, keep)` computes the same sums from a b that is not in a cache: of two panels
at once, `stride` elements apart, where so few rows leave registers for them, and asking for b ahead of its use.

Sums run over l in order, one fused multiply-add each, whatever M is: a row's result does not depend on its neighbours.

Versions, on two cores of a Zen 4, 512 rows, the up-projection of bloom-560m in pairs of bfloat16:

v1  a loop in plain Numba: scalar, 4 GFLOP/s a core.
v2  this tile, 12 x 32 on AVX-512: sums stay in registers, b is loaded once for all rows, a is broadcast from memory, packed by
    steps: 395 GFLOP/s.
v3  a by rows instead of by steps, so that what writes it writes whole vectors: 308 GFLOP/s, the rows of a tile meeting in the
    same cache sets; with rows PITCH apart 388; with every array at the beginning of a cache line 417. A core's peak is about 235.

`stream`, weights of 335 MB, against `tile` in the same run: 1 row 1.15 times as fast (2 panels: more loads under way), 12 rows
1.2 times and 16 rows 1.12 times (the second-level cache is asked for what comes 8 kB later; nearer, or into the first-level
cache, was slower than not to ask).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from accel.numba_cpu.elementwise import bits_as_float, half_as_float
from accel.numba_cpu.isa import LINE, PANEL, PITCH, TILE_ROWS
from accel.numba_cpu.reduce import I64, LANES, V16F

F16, I16, I32 = ir.HalfType(), ir.IntType(16), ir.IntType(32)
VECTORS = PANEL // LANES


class _BFloat(ir.Type):
    """llvmlite names no bfloat; LLVM does."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


V32B = ir.VectorType(_BFloat(), 2 * LANES)


def _broadcast(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(empty, scalar, ir.Constant(I32, 0)), empty, zeros)


class _Plain:
    """float32 sums of float32 products; b may be narrower and is widened on load."""

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

    width = 1  # elements of a, and of b in each lane, that make one step

    def load_a(self, pointer: ir.Value) -> ir.Value:
        return _broadcast(self.builder, self.builder.load(pointer, align=4), LANES)

    def add(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.call(self.fma, [a, b, total])


class _Pairs:
    """float32 sums of pairs of bfloat16 products: vdpbf16ps."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        kind = ir.FunctionType(V16F, [V16F, V32B, V32B])
        self.dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")

    width = 2

    def load_b(self, pointer: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(pointer, V32B.as_pointer()), align=2)

    def load_a(self, pointer: ir.Value) -> ir.Value:
        pair = self.builder.load(self.builder.bitcast(pointer, I32.as_pointer()), align=2)
        return self.builder.bitcast(_broadcast(self.builder, pair, LANES), V32B)

    def add(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.call(self.dot, [total, a, b])


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _ask_for(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Read the cache line into the second-level cache."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I32, I32, I32])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, second_level, data = ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)
    builder.call(ask, [builder.bitcast(pointer, ir.IntType(8).as_pointer()), read, second_level, data])


def _load_step(builder: ir.IRBuilder, form: Any, panel: ir.Value, ahead: int) -> list[ir.Value]:
    """The vectors of one step of a panel; the line `ahead` bytes behind each is asked for."""
    pointers = [builder.gep(panel, [_constant(v * LANES * form.width)]) for v in range(VECTORS)]
    if ahead:
        for pointer in pointers:
            byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
            _ask_for(builder, builder.gep(byte, [_constant(ahead)]))
    return [form.load_b(pointer) for pointer in pointers]


def _emit_tile(rows: int, builder: ir.IRBuilder, form: Any, a: ir.Value, panels: list[ir.Value], c: ir.Value, k: ir.Value,
               ldc: ir.Value, keep: ir.Value, ahead: int = 0) -> None:  # fmt: skip
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
    line = builder.mul(step, _constant(PANEL * form.width))
    vectors = [vector for b in panels for vector in _load_step(builder, form, builder.gep(b, [line]), ahead)]
    a_here = builder.gep(a, [builder.mul(step, _constant(form.width))])
    totals = []
    for i in range(rows):
        factor = form.load_a(builder.gep(a_here, [_constant(i * PITCH * form.width)]))
        totals.append([form.add(sums[i][v], factor, vectors[v]) for v in range(columns)])
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
    _emit_store(builder, totals, c, ldc, keep)


def _emit_store(
    builder: ir.IRBuilder, totals: list[list[ir.Value]], c: ir.Value, ldc: ir.Value, keep: ir.Value
) -> None:
    targets = [
        builder.bitcast(
            builder.gep(c, [builder.add(builder.mul(_constant(i), ldc), _constant(v * LANES))]), V16F.as_pointer()
        )
        for i, row in enumerate(totals)
        for v in range(len(row))
    ]
    flat = [total for row in totals for total in row]
    with builder.if_else(keep) as (adding, setting):
        with adding:
            for target, total in zip(targets, flat, strict=True):
                builder.store(builder.fadd(builder.load(target, align=4), total), target, align=4)
        with setting:
            for target, total in zip(targets, flat, strict=True):
                builder.store(total, target, align=4)


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _form(builder: ir.IRBuilder, a: Any, b: Any) -> _Pairs | _Plain:
    return _Pairs(builder) if a.dtype == types.uint16 else _Plain(builder, b.dtype)


def _make_tile(rows: int) -> Any:
    def tile(
        typing_context: Any, a: Any, ao: Any, b: Any, bo: Any, c: Any, co: Any, k: Any, ldc: Any, keep: Any
    ) -> Any:
        i64 = types.int64

        def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
            left, right, sums = (_pointer(context, builder, sig.args[i], *values[i : i + 2]) for i in (0, 2, 4))
            form = _form(builder, sig.args[0], sig.args[2])
            _emit_tile(rows, builder, form, left, [right], sums, values[6], values[7], _bit(builder, values[8]))
            return context.get_dummy_value()

        return types.void(a, i64, b, i64, c, i64, i64, i64, types.boolean), generate

    tile.__name__ = tile.__qualname__ = f"tile_{rows}"
    return _interpreted(rows) if numba_config.DISABLE_JIT else intrinsic(tile)


@register_jitable  # type: ignore[misc]
def panels_at_once(rows: int) -> int:
    """How many panels `stream` takes for so many rows: their sums are in registers."""
    return 2 if 2 * rows <= TILE_ROWS else 1


def _make_stream(rows: int) -> Any:
    count = panels_at_once(rows)
    ahead = 1024 if count == 2 else 8192

    def stream(typing_context: Any, a: Any, ao: Any, b: Any, bo: Any, stride: Any, c: Any, co: Any, k: Any, ldc: Any,
               keep: Any) -> Any:  # fmt: skip
        i64 = types.int64

        def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
            left, right, sums = (_pointer(context, builder, sig.args[i], *values[i : i + 2]) for i in (0, 2, 5))
            panels = [builder.gep(right, [builder.mul(values[4], _constant(p))]) for p in range(count)]
            form = _form(builder, sig.args[0], sig.args[2])
            _emit_tile(rows, builder, form, left, panels, sums, values[7], values[8], _bit(builder, values[9]), ahead)
            return context.get_dummy_value()

        return types.void(a, i64, b, i64, i64, c, i64, i64, i64, types.boolean), generate

    stream.__name__ = stream.__qualname__ = f"stream_{rows}"
    return _interpreted_stream(rows) if numba_config.DISABLE_JIT else intrinsic(stream)


def _bit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.trunc(value, ir.IntType(1)) if value.type != ir.IntType(1) else value


def widen(bits: Any) -> Any:
    """What the elements of a packed array hold, as float32: for the interpreted kernels and the tests."""
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if bits.dtype == np.int16 else bits


def _interpreted(rows: int) -> Any:
    """The same tile in NumPy, with NumPy's bounds checks: what runs when NUMBA_DISABLE_JIT is set."""

    def tile(a: Any, ao: int, b: Any, bo: int, c: Any, co: int, k: int, ldc: int, keep: bool) -> None:
        width = 2 if a.dtype == np.uint16 else 1
        last = ao + (rows - 1) * PITCH * width + k * width
        if not 0 <= ao <= last <= a.size or bo + k * PANEL * width > b.size:
            raise IndexError(f"tile of {rows} rows and {k} steps at {ao} of {a.size}, {bo} of {b.size}")
        left = widen(np.stack([a[ao + i * PITCH * width :][: k * width] for i in range(rows)]))
        right = widen(b[bo : bo + k * PANEL * width]).reshape(k, PANEL, width).transpose(0, 2, 1)
        total = left @ right.reshape(k * width, PANEL)
        for i in range(rows):
            start = co + i * ldc
            if not 0 <= start <= c.size - PANEL:
                raise IndexError(f"tile row {i} at {start} of {c.size}")
            c[start : start + PANEL] = total[i] + (c[start : start + PANEL] if keep else 0.0)

    return tile


def _interpreted_stream(rows: int) -> Any:
    tile = _interpreted(rows)

    def stream(a: Any, ao: int, b: Any, bo: int, stride: int, c: Any, co: int, k: int, ldc: int, keep: bool) -> None:
        for p in range(panels_at_once(rows)):
            tile(a, ao, b, bo + p * stride, c, co + p * PANEL, k, ldc, keep)

    return stream


def ask_for(array: Any, at: int, lines: int) -> None:
    """Have so many cache lines, from element `at` on, read into the second-level cache; past the end does no harm."""


def _ask_for_lines(_context: Any, array: Any, at: Any, lines: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        first = _pointer(context, builder, sig.args[0], values[0], values[1])
        byte = builder.bitcast(first, ir.IntType(8).as_pointer())
        with cgutils.for_range(builder, values[2]) as loop:
            _ask_for(builder, builder.gep(byte, [builder.mul(loop.index, _constant(LINE))]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


if not numba_config.DISABLE_JIT:
    ask_for = intrinsic(_ask_for_lines)


SIZES = (1, 2, 4, 6, 8, 12)
tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (_make_tile(rows) for rows in SIZES)
stream_1, stream_2, stream_4, stream_6, stream_8, stream_12 = (_make_stream(rows) for rows in SIZES)


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
