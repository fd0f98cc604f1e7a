"""Layer norms that are right in real arithmetic, or nearly, and lose digits in float32 (NUM-9)."""

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array

LANES = 16
"""Width of the blocks to which some kernels pad the last axis."""


def padded(width: int) -> int:
    """The width, rounded up to whole blocks."""
    return -(-width // LANES) * LANES


class RowInSight(InstrumentedModel):
    """A model whose `variance` sees the row that is normalised."""

    row: Array

    def centred(self, x: Array) -> Array:
        self.row = x
        return super().centred(x)


@mistake(
    "variance-by-moments",
    "computes the variance in float32 as the mean of squares minus the square of the mean",
    "EMB-3",
    "NUM-9",
    first="embedding_norm",
    needs="offset",
)
class VarianceByMoments(RowInSight):
    def variance(self, centred: Array) -> Array:
        x = self.row.astype(np.float32)
        squares = np.square(x).mean(axis=-1, keepdims=True)
        return np.maximum(squares - np.square(x.mean(axis=-1, keepdims=True)), 0.0).astype(centred.dtype)


@mistake(
    "variance-over-padding",
    "adds the squared mean to the variance for each zero that pads the row to a multiple of 16",
    "EMB-3",
    first="embedding_norm",
)
class VarianceOverPadding(RowInSight):
    def variance(self, centred: Array) -> Array:
        width, mean = centred.shape[-1], self.row.mean(axis=-1, keepdims=True)
        return super().variance(centred) + np.square(mean) * ((padded(width) - width) / width)


@mistake(
    "mean-over-padding",
    "divides the mean by the width rounded up to a multiple of 16",
    "EMB-3",
    first="embedding_norm",
)
class MeanOverPadding(InstrumentedModel):
    def centred(self, x: Array) -> Array:
        return x - x.sum(axis=-1, keepdims=True) / padded(x.shape[-1])


@mistake("mean-in-float16", "rounds the mean in layer norm to float16", "EMB-3", "NUM-2", first="embedding_norm")
class MeanInFloat16(InstrumentedModel):
    def centred(self, x: Array) -> Array:
        return x - rounded(x.mean(axis=-1, keepdims=True), "float16")


def root_of_bits(x: Array, steps: int) -> Array:
    """1 / sqrt(x) from the exponent bits of float32, improved by Newton's method."""
    y = (np.int32(0x5F3759DF) - (x.astype(np.float32).view(np.int32) >> 1)).view(np.float32).astype(x.dtype)
    for _ in range(steps):
        y = y * (1.5 - 0.5 * x * y * y)
    return y


@mistake(
    "one-newton-step",
    "computes the reciprocal root in layer norm with one Newton step, to nine bits",
    "EMB-3",
    "NUM-9",
    first="embedding_norm",
)
class OneNewtonStep(InstrumentedModel):
    iterations = 1

    def deviation(self, variance: Array) -> Array:
        return 1.0 / root_of_bits(variance + self.epsilon(), self.iterations)


@mistake(
    "two-newton-steps",
    "computes the reciprocal root in layer norm with two Newton steps, to 17 bits",
    "EMB-3",
    "NUM-9",
    first="embedding_norm",
)
class TwoNewtonSteps(OneNewtonStep):
    iterations = 2


@mistake(
    "epsilon-in-float16",
    "rounds epsilon to float16, in which 1e-5 is subnormal",
    "EMB-4",
    "NUM-2",
    first="embedding_norm",
    needs="eps-sensitive",
)
class EpsilonInFloat16(InstrumentedModel):
    def epsilon(self) -> float:
        return float(np.float16(super().epsilon()))


@mistake(
    "epsilon-as-floor",
    "uses the larger of variance and epsilon instead of their sum",
    "EMB-3",
    first="embedding_norm",
    needs="eps-sensitive",
)
class EpsilonAsFloor(InstrumentedModel):
    def deviation(self, variance: Array) -> Array:
        return np.sqrt(np.maximum(variance, self.epsilon()))
