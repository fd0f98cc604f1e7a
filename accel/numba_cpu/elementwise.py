"""exp, tanh, GELU and rounding, as code that the compiler turns into vector instructions.

PyPI's llvmlite has no vector mathematics library: `math.exp` is a scalar call. These polynomials are inlined and
vectorised. Errors, measured over dense float32 of the stated range by tests/numba_cpu/test_elementwise.py:
    exp    below 1.05 ulp on [-87, 88]; 0 below -104, inf above 88.72
    tanh   below 1.4 ulp
    gelu   below 3.5 ulp of x / 2 (its tail is a difference that float32 does not keep)
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from accel.numba_cpu.jit import jit_inline
from bloomref.shapes import Array

f32 = np.float32

if numba_config.DISABLE_JIT:

    def bits_as_float(bits: Any) -> Any:
        return np.uint32(bits).view(np.float32)

    def float_as_bits(value: Any) -> Any:
        return np.float32(value).view(np.uint32)

    def half_as_float(bits: Any) -> Any:
        return np.float32(np.int16(bits).view(np.float16))

    def float_as_half(value: Any) -> Any:
        return np.float16(value).view(np.int16)

    def fma(a: Any, b: Any, c: Any) -> Any:
        return a * b + c
else:

    @intrinsic  # type: ignore[misc]
    def bits_as_float(_context: Any, _bits: Any) -> Any:
        return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())

    @intrinsic  # type: ignore[misc]
    def float_as_bits(_context: Any, _value: Any) -> Any:
        return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))

    @intrinsic  # type: ignore[misc]
    def half_as_float(_context: Any, _bits: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.int16), generate

    @intrinsic  # type: ignore[misc]
    def float_as_half(_context: Any, _value: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

        return types.int16(types.float32), generate

    @intrinsic  # type: ignore[misc]
    def fma(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:
        """a b + c, rounded once where the processor has a fused multiply-add."""

        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), args)

        return types.float32(types.float32, types.float32, types.float32), generate


@jit_inline
def bfloat_bits(x: np.float32) -> np.uint16:
    """Bits of the bfloat16 nearest to float32 x, ties to even; NaN stays NaN."""
    bits = float_as_bits(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if x != x else rounded)


@jit_inline
def _same(x: np.float32) -> np.float32:
    return x


_NARROW: dict[Any, Any] = {types.float32: _same, types.uint16: bfloat_bits, types.int16: float_as_half}


def store(out: Array, at: int, value: np.float32) -> None:
    """out[at] = float32 value, rounded to float32, bfloat16 (bits, uint16) or float16 (bits, int16) as `out` has."""
    out[at] = _NARROW[types.__dict__[out.dtype.name]](value)


@overload(store)
def _store(out, at, value):  # type: ignore[no-untyped-def]  # noqa: ARG001
    narrow = _NARROW[out.dtype]

    def implementation(out, at, value):  # type: ignore[no-untyped-def]
        out[at] = narrow(value)

    return implementation


@jit_inline
def _reduced(y: np.float32) -> tuple[np.int32, np.float32]:
    """n, and e**y / 2**n by a polynomial on [-ln 2 / 2, ln 2 / 2], with the coefficients of expf in Cephes."""
    n = np.floor(fma(y, f32(1.44269504), f32(0.5)))
    r = fma(n, f32(2.12194440e-4), fma(n, f32(-0.693359375), y))
    p = f32(1.9875691500e-4)
    p = fma(p, r, f32(1.3981999507e-3))
    p = fma(p, r, f32(8.3334519073e-3))
    p = fma(p, r, f32(4.1665795894e-2))
    p = fma(p, r, f32(1.6666665459e-1))
    p = fma(p, r, f32(5.0000001201e-1))
    return np.int32(n), fma(p, r * r, r) + f32(1.0)


@jit_inline
def exp(x: np.float32) -> np.float32:
    """e**x of a float32."""
    n, value = _reduced(min(max(x, f32(-104.0)), f32(89.0)))
    half = n >> np.int32(1)  # two factors: 2**n alone leaves the range of normal numbers at both ends
    rest = n - half
    scaled = value * bits_as_float(np.uint32((half + np.int32(127)) << np.int32(23)))
    return scaled * bits_as_float(np.uint32((rest + np.int32(127)) << np.int32(23)))


@jit_inline
def decay(x: np.float32) -> np.float32:
    """e**x of x <= 0, for attention weights: the bits of `exp` down to -87, where it is 1e-38, and 0 below."""
    n, value = _reduced(max(x, f32(-87.0)))
    scaled = value * bits_as_float(np.uint32((n + np.int32(127)) << np.int32(23)))
    return f32(0.0) if x < f32(-87.0) else scaled


@jit_inline
def tanh(x: np.float32) -> np.float32:
    """tanh of a float32: 1 - 2 / (e**2|x| + 1), and a polynomial near 0, where that form loses digits; odd."""
    a = abs(x)
    s = a * a
    p = f32(-5.70498872745e-3)
    p = fma(p, s, f32(2.06390887954e-2))
    p = fma(p, s, f32(-5.37397155531e-2))
    p = fma(p, s, f32(1.33314422036e-1))
    p = fma(p, s, f32(-3.33332819422e-1))
    near = fma(p * s, a, a)
    far = f32(1.0) - f32(2.0) / (exp(f32(2.0) * min(a, f32(44.0))) + f32(1.0))
    y = near if a < f32(0.625) else far
    return y if x >= f32(0.0) else -y


@jit_inline
def gelu(x: np.float32) -> np.float32:
    """MLP-2 of a float32, as (1 + tanh(u)) / 2 = 1 / (1 + e**-2u): one exp instead of both branches of `tanh`."""
    inner = f32(0.79788456) * x * fma(f32(0.044715) * x, x, f32(1.0))
    return x / (f32(1.0) + exp(f32(-2.0) * inner))
