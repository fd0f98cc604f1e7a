"""Equivalents that compute in another order or form: their rounding differs, and stays within the budget (NUM-9)."""

import math

import numpy as np

from bloomref.conformance.mistakes.inexact_norms import RowInSight
from bloomref.conformance.mistakes.inexact_softmax import OtherSoftmax
from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import GELU_CONSTANT, GELU_CUBIC, InstrumentedModel
from bloomref.shapes import Array

# --- layer norm -----------------------------------------------------------------------------------------------------


@mistake(
    "variance-updated",
    "updates mean and variance number by number, as Welford does",
    "EMB-3",
    first="embedding_norm",
    equivalent=True,
)
class VarianceUpdated(RowInSight):
    def variance(self, centred: Array) -> Array:
        mean, squares = self.row[..., :1], np.zeros_like(centred[..., :1])
        for i in range(1, centred.shape[-1]):
            step = self.row[..., i : i + 1] - mean
            mean = mean + step / (i + 1)
            squares = squares + step * (self.row[..., i : i + 1] - mean)
        return squares / centred.shape[-1]


@mistake(
    "norm-as-one-product",
    "computes layer norm as x a + c with one a and c for each row and channel",
    "EMB-3",
    first="embedding_norm",
    equivalent=True,
)
class NormAsOneProduct(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        mean, deviation = x.mean(axis=-1, keepdims=True), self.deviation(self.variance(self.centred(x)))
        factor = weight / deviation
        return self.arithmetic.operand(x * factor + (bias - mean * factor))


# --- softmax --------------------------------------------------------------------------------------------------------


@mistake(
    "powers-of-two",
    "computes exp(x) in softmax as a power of two, with log2(e) rounded to float32",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
    equivalent=True,
)
class PowersOfTwo(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        return np.exp2(np.minimum(x, 0.0) * x.dtype.type(math.log2(math.e)))


@mistake(
    "tiny-probabilities-dropped",
    "sets exponentials below 2^-40 to zero",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
    equivalent=True,
)
class TinyProbabilitiesDropped(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        powers = super().exponential(x)
        return np.where(powers < 2.0**-40, 0.0, powers)


@mistake(
    "normalised-last",
    "divides by the sum of exponentials after the product with the values, not before",
    "ATT-6",
    "ATT-9",
    first="attention.context",
    equivalent=True,
)
class NormalisedLast(OtherSoftmax):
    def divided(self, powers: Array, total: Array) -> Array:
        self.powers, self.sums = powers, total
        return super().divided(powers, total)

    def context(self, probabilities: Array, values: Array) -> Array:  # noqa: ARG002
        return self.arithmetic.operand(self.arithmetic.matmul(self.powers, values) / self.sums)


# --- GELU and sums --------------------------------------------------------------------------------------------------


@mistake(
    "tanh-by-exponential",
    "computes tanh(x) in GELU as 1 - 2 / (1 + exp(2 x))",
    "MLP-2",
    first="mlp.gelu",
    equivalent=True,
)
class TanhByExponential(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        twice = np.minimum(2.0 * GELU_CONSTANT * x * (1.0 + GELU_CUBIC * x * x), 80.0)
        return 0.5 * x * (1.0 + (1.0 - 2.0 / (1.0 + np.exp(twice))))


@mistake(
    "sums-in-turn",
    "adds the products of a linear layer one by one in float32",
    "NUM-9",
    first="attention.query",
    equivalent=True,
)
class SumsInTurn(InstrumentedModel):
    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        total = np.zeros((*x.shape[:-1], len(weight)), x.dtype)
        for i in range(x.shape[-1]):
            total += x[..., i : i + 1] * weight[:, i]
        return self.arithmetic.operand(total + bias)


@mistake(
    "linear-in-three-bfloat16",
    "writes the input of a float32 product as the sum of three bfloat16 numbers, which hold 24 bits",
    "NUM-9",
    first="attention.query",
    equivalent=True,
)
class LinearInThreeBfloat16(InstrumentedModel):
    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        if self.dtype != np.float32:  # 24 bits are not enough
            return super().linear(x, weight, bias)
        (a, b, c), (d, e, f) = self.thirds(x), self.thirds(weight)
        product = self.arithmetic.matmul
        small = product(a, f.T) + product(b, e.T) + product(c, d.T)
        return self.arithmetic.operand(product(a, d.T) + (product(a, e.T) + product(b, d.T) + small) + bias)

    def thirds(self, x: Array) -> tuple[Array, Array, Array]:
        high = rounded(x, "bfloat16")
        middle = rounded(x - high, "bfloat16")
        return high, middle, rounded(x - high - middle, "bfloat16")


@mistake(
    "residual-unrounded",
    "stores the hidden states of a 16-bit model in float32 between blocks, which its budget does not show",
    "NUM-9",
    first="attention_block",
    equivalent=True,
)
class ResidualUnrounded(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        return (normed if self.config.apply_residual_connection_post_layernorm else x) + output


@mistake(
    "subnormals-flushed",
    "sets numbers below the normal range of float32 to zero",
    "NUM-9",
    first="attention.probabilities",
    equivalent=True,
)
class SubnormalsFlushed(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        return self.flushed(super().exponential(x))

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return self.flushed(super().linear(x, self.flushed(weight), bias))

    def flushed(self, x: Array) -> Array:
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, 0.0, x).astype(x.dtype)
