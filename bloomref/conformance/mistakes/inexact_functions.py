"""GELU and matrix products that approximate, or round where float32 must not (NUM-2, NUM-9)."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded, tf32
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.mistakes.mlp import tanh_gelu
from bloomref.conformance.model.instrumented import GELU_CONSTANT, GELU_CUBIC, InstrumentedCache, InstrumentedModel
from bloomref.shapes import Array

# --- GELU -----------------------------------------------------------------------------------------------------------


@mistake(
    "gelu-exact-constant",
    "uses sqrt(2/pi) instead of 0.79788456 in GELU, which shows in float64 only",
    "MLP-2",
    "NUM-7",
    first="mlp.gelu",
    dtype="float64",
)
class GeluExactConstant(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, constant=math.sqrt(2.0 / math.pi))


class OtherTanh(InstrumentedModel):
    """GELU with another tanh."""

    def gelu(self, x: Array) -> Array:
        return 0.5 * x * (1.0 + self.tanh(GELU_CONSTANT * x * (1.0 + GELU_CUBIC * x * x)))

    def tanh(self, x: Array) -> Array:
        raise NotImplementedError


@mistake(
    "tanh-by-fraction",
    "computes tanh(x) in GELU as x (27 + x^2) / (27 + 9 x^2), clipped at -1 and 1",
    "MLP-2",
    "NUM-9",
    first="mlp.gelu",
)
class TanhByFraction(OtherTanh):
    def tanh(self, x: Array) -> Array:
        square = np.square(np.clip(x, -3.0, 3.0))
        return np.clip(x * (27.0 + square) / (27.0 + 9.0 * square), -1.0, 1.0)


@mistake(
    "tanh-of-11-bits",
    "rounds the tanh in GELU to eleven bits, as fast instructions do",
    "MLP-2",
    "NUM-9",
    first="mlp.gelu",
)
class TanhOf11Bits(OtherTanh):
    def tanh(self, x: Array) -> Array:
        return tf32(np.tanh(x))


@mistake(
    "gelu-by-interpolation",
    "interpolates GELU in a table with steps of 1/64",
    "MLP-2",
    "NUM-9",
    first="mlp.gelu",
)
class GeluByInterpolation(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        below = np.floor(x * 64.0) / 64.0
        left, right = super().gelu(below), super().gelu(below + 1.0 / 64.0)
        return left + (right - left) * ((x - below) * 64.0)


@mistake("gelu-saturated", "takes GELU as 0 below -3 and as x above 3", "MLP-2", "NUM-9", first="mlp.gelu")
class GeluSaturated(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return np.where(np.abs(x) > 3.0, np.maximum(x, 0.0), super().gelu(x))


# --- matrix products -----------------------------------------------------------------------------------------------


@mistake(
    "linear-in-tf32",
    "multiplies with weights in TF32, which has ten fraction bits",
    "NUM-2",
    first="attention.query",
)
class LinearInTf32(InstrumentedModel):
    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().linear(tf32(x), tf32(weight), bias)


def two_halves(x: Array) -> Array:
    """x as the sum of two bfloat16 numbers."""
    high = rounded(x, "bfloat16")
    return high + rounded(x - high, "bfloat16")


@mistake(
    "linear-in-two-bfloat16",
    "writes the input of each product as the sum of two bfloat16 numbers, which hold 16 bits",
    "NUM-2",
    "NUM-9",
    first="attention.query",
)
class LinearInTwoBfloat16(InstrumentedModel):
    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().linear(two_halves(x), two_halves(weight), bias)


@mistake(
    "accumulated-in-float16",
    "adds the products of a linear layer in float16",
    "NUM-2",
    first="attention.query",
)
class AccumulatedInFloat16(InstrumentedModel):
    accumulator = "float16"

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        total = np.zeros((*x.shape[:-1], len(weight)), x.dtype)
        for i in range(x.shape[-1]):
            total = rounded(total + x[..., i : i + 1] * weight[:, i], self.accumulator)
        return self.arithmetic.operand(total + bias)


@mistake(
    "accumulated-in-bfloat16",
    "adds the products of a linear layer in bfloat16",
    "NUM-2",
    first="attention.query",
)
class AccumulatedInBfloat16(AccumulatedInFloat16):
    accumulator = "bfloat16"


@mistake(
    "scaled-query-in-bfloat16",
    "rounds queries to bfloat16 after the scaling by 1/sqrt(K)",
    "ATT-3",
    "NUM-2",
    first="attention.scores",
)
class ScaledQueryInBfloat16(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return self.arithmetic.matmul(rounded(query * self.scale(), "bfloat16"), keys.swapaxes(-1, -2)) + bias


@mistake("cache-in-float16", "stores keys and values of a float32 model in float16", "NUM-2", first="attention.scores")
class CacheInFloat16(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        return super().update_cache(cache, start, rounded(key, "float16"), rounded(value, "float16"))


@mistake(
    "residual-in-float16",
    "stores the hidden states of a float32 model in float16 between blocks",
    "NUM-2",
    first="attention_block",
)
class ResidualInFloat16(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        return rounded(super().residual(x, normed, output), "float16")


@mistake("logits-in-float16", "rounds the logits of a float32 model to float16", "MOD-5", "NUM-3", first="logits")
class LogitsInFloat16(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return rounded(super().head(hidden), "float16")
