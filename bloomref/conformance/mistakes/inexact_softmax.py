"""Softmax that overflows, underflows, or approximates the exponential function (ATT-6, NUM-9)."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array

BLOCK = 4
"""Number of keys that the mistakes of an online softmax read at a time."""


class OtherSoftmax(InstrumentedModel):
    """Softmax in three steps, each of which a mistake may replace: what is subtracted, the exponential, the
    division."""

    def softmax(self, scores: Array, visible: Array) -> Array:
        powers = np.where(visible, self.exponential(scores - self.maximum(scores, visible)), 0.0).astype(scores.dtype)
        total = powers.sum(axis=-1, keepdims=True)
        total = np.where(visible.any(axis=-1, keepdims=True), total, 1.0)
        return self.arithmetic.operand(self.divided(powers, total).astype(scores.dtype))

    def maximum(self, scores: Array, visible: Array) -> Array:
        lowest = np.finfo(self.dtype).min
        return np.where(visible, scores, lowest).max(axis=-1, keepdims=True, initial=lowest)

    def exponential(self, x: Array) -> Array:
        return np.exp(np.minimum(x, 0.0))  # positive for hidden keys alone

    def divided(self, powers: Array, total: Array) -> Array:
        return powers / total


# --- another number instead of the maximum -------------------------------------------------------------------------


class OtherMaximum(OtherSoftmax):
    """Softmax in float32 that may overflow."""

    def exponential(self, x: Array) -> Array:
        return np.exp(x.astype(np.float32))


@mistake(
    "softmax-without-maximum",
    "computes softmax in float32 without subtracting the maximum, so scores above 88 overflow",
    "ATT-6",
    "NUM-5",
    first="attention.probabilities",
    needs="sharp",
)
class SoftmaxWithoutMaximum(OtherMaximum):
    def maximum(self, scores: Array, visible: Array) -> Array:  # noqa: ARG002
        return np.zeros_like(scores[..., :1])


@mistake(
    "max-over-hidden",
    "subtracts the maximum over all keys, hidden ones included, so all visible ones may underflow",
    "ATT-6",
    "NUM-5",
    first="attention.probabilities",
    needs="sharp",
)
class MaxOverHidden(OtherMaximum):
    def maximum(self, scores: Array, visible: Array) -> Array:
        return super().maximum(scores, np.ones_like(visible))


@mistake(
    "softmax-from-first-key",
    "subtracts the score of the first visible key instead of the maximum",
    "ATT-6",
    "NUM-5",
    first="attention.probabilities",
    needs="sharp",
)
class SoftmaxFromFirstKey(OtherMaximum):
    def maximum(self, scores: Array, visible: Array) -> Array:
        return np.take_along_axis(scores, np.broadcast_to(visible, scores.shape).argmax(-1)[..., None], axis=-1)


@mistake(
    "softmax-maximum-clipped",
    "subtracts at least 0, as if there were another key of score 0, so very low scores underflow",
    "ATT-6",
    "NUM-5",
    first="attention.probabilities",
    needs="sharp",
)
class SoftmaxMaximumClipped(OtherMaximum):
    def maximum(self, scores: Array, visible: Array) -> Array:
        return np.maximum(super().maximum(scores, visible), 0.0)


class RunningMaximum(OtherSoftmax):
    """An online softmax: each block of keys subtracts the maximum so far."""

    def so_far(self, scores: Array, visible: Array) -> Array:
        lowest = np.finfo(self.dtype).min
        running = np.maximum.accumulate(np.where(visible, scores, lowest), axis=-1)
        last = np.minimum(np.arange(scores.shape[-1]) // BLOCK * BLOCK + BLOCK, scores.shape[-1]) - 1
        return running[..., last]


@mistake(
    "online-softmax-not-rescaled",
    "does not rescale earlier blocks when an online softmax meets a larger score",
    "ATT-6",
    first="attention.probabilities",
)
class OnlineSoftmaxNotRescaled(RunningMaximum):
    def maximum(self, scores: Array, visible: Array) -> Array:
        return self.so_far(scores, visible)


@mistake(
    "online-sum-not-rescaled",
    "rescales the values, but not the sum, when an online softmax meets a larger score",
    "ATT-6",
    first="attention.probabilities",
)
class OnlineSumNotRescaled(RunningMaximum):
    def softmax(self, scores: Array, visible: Array) -> Array:
        stale = np.where(visible, self.exponential(scores - self.so_far(scores, visible)), 0.0)
        self.stale = stale.sum(axis=-1, keepdims=True)
        return super().softmax(scores, visible)

    def divided(self, powers: Array, total: Array) -> Array:  # noqa: ARG002
        return powers / np.where(self.stale == 0.0, 1.0, self.stale)


class SplitKeys(OtherSoftmax):
    """Attention to each block of keys by itself; the logarithms of the sums of exponentials join the blocks."""

    def softmax(self, scores: Array, visible: Array) -> Array:
        count, lowest = scores.shape[-1], np.finfo(self.dtype).min
        first, block = np.arange(0, count, BLOCK), np.arange(count) // BLOCK
        maxima = np.maximum.reduceat(np.where(visible, scores, lowest), first, axis=-1)
        powers = np.where(visible, self.exponential(scores - maxima[..., block]), 0.0)
        sums = np.add.reduceat(powers, first, axis=-1)
        shares = self.shares(maxima, sums)
        total = sums * shares.sum(axis=-1, keepdims=True)
        factors = shares / np.where(total == 0.0, 1.0, total)
        return self.arithmetic.operand((powers * factors[..., block]).astype(scores.dtype))

    def shares(self, maxima: Array, sums: Array) -> Array:
        """Weight of each block, not yet divided by their sum."""
        return sums * np.exp(maxima - maxima.max(axis=-1, keepdims=True))


@mistake(
    "split-keys-averaged",
    "attends to blocks of keys by themselves and averages the results, without the weights of log-sum-exp",
    "ATT-6",
    first="attention.probabilities",
)
class SplitKeysAveraged(SplitKeys):
    def shares(self, maxima: Array, sums: Array) -> Array:  # noqa: ARG002
        return (sums > 0.0).astype(sums.dtype)


@mistake(
    "split-keys-without-maxima",
    "joins blocks of keys by their sums of exponentials, each of which has another maximum",
    "ATT-6",
    first="attention.probabilities",
)
class SplitKeysWithoutMaxima(SplitKeys):
    def shares(self, maxima: Array, sums: Array) -> Array:  # noqa: ARG002
        return sums


@mistake(
    "log-sum-exp-of-another-base",
    "joins blocks of keys by the power e of a log-sum-exp in base 2",
    "ATT-6",
    first="attention.probabilities",
)
class LogSumExpOfAnotherBase(SplitKeys):
    def shares(self, maxima: Array, sums: Array) -> Array:
        return super().shares(maxima, sums) ** (1.0 / math.log(2.0))


# --- another exponential --------------------------------------------------------------------------------------------


@mistake(
    "exp-clipped",
    "clips the exponent in softmax at -10",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
    needs="sharp",
)
class ExpClipped(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        return np.exp(np.clip(x, -10.0, 0.0))


@mistake(
    "exp-in-float16",
    "rounds the exponentials in softmax to float16",
    "ATT-6",
    "NUM-2",
    first="attention.probabilities",
)
class ExpInFloat16(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        return rounded(super().exponential(x), "float16")


@mistake(
    "exp-of-bits",
    "writes the exponent of softmax into the bits of a float32 number, which is right to 3 %",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
)
class ExpOfBits(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        bits = np.clip(x.astype(np.float64), -87.0, 0.0) * (2.0**23 / math.log(2.0)) + 1064866805.0
        return bits.astype(np.int32).view(np.float32)


@mistake(
    "exp-by-cubic",
    "computes the exponentials in softmax by a cubic polynomial between powers of two",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
)
class ExpByCubic(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        power = np.clip(x, -87.0, 0.0) / math.log(2.0)
        whole = np.floor(power)
        part = power - whole
        return np.ldexp(1.0 + part * (0.695976 + part * (0.224494 + part * 0.079530)), whole.astype(np.int32))


@mistake(
    "log2e-of-five-digits",
    "computes exp(x) in softmax as 2^(1.4427 x)",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
)
class Log2eOfFiveDigits(OtherSoftmax):
    def exponential(self, x: Array) -> Array:
        return np.exp2(1.4427 * np.minimum(x, 0.0))


# --- another division -----------------------------------------------------------------------------------------------


@mistake(
    "reciprocal-of-12-bits",
    "multiplies by a reciprocal of twelve bits in softmax instead of dividing",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
)
class ReciprocalOf12Bits(OtherSoftmax):
    def divided(self, powers: Array, total: Array) -> Array:
        fraction, exponent = np.frexp(1.0 / total)
        return powers * np.ldexp(np.round(fraction * 2.0**12), exponent - 12)


@mistake(
    "log-sum-exp",
    "subtracts the logarithm of the sum of exponentials in float32 instead of dividing, so large scores lose digits",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
    needs="sharp left-pad",
)
class LogSumExp(OtherSoftmax):
    def softmax(self, scores: Array, visible: Array) -> Array:
        narrow = scores.astype(np.float32)
        maximum = self.maximum(narrow, visible).astype(np.float32)  # that of a float64 model is wider
        total = maximum + np.log(np.where(visible, self.exponential(narrow - maximum), 0.0).sum(axis=-1, keepdims=True))
        powers = np.where(visible, self.exponential(narrow - total), 0.0)
        return self.arithmetic.operand(powers.astype(scores.dtype))


@mistake(
    "epsilon-in-softmax",
    "adds 1e-6 to the sum of exponentials, against a division by zero",
    "ATT-6",
    first="attention.probabilities",
)
class EpsilonInSoftmax(OtherSoftmax):
    def divided(self, powers: Array, total: Array) -> Array:
        return powers / (total + 1e-6)


@mistake(
    "small-probabilities-dropped",
    "sets attention probabilities below 1e-4 to zero",
    "ATT-6",
    "NUM-9",
    first="attention.probabilities",
    needs="long",
)
class SmallProbabilitiesDropped(OtherSoftmax):
    def divided(self, powers: Array, total: Array) -> Array:
        probabilities = powers / total
        return np.where(probabilities < 1e-4, 0.0, probabilities)


@mistake(
    "scores-clipped",
    "clips scores at -50 and 50, against an overflow",
    "ATT-4",
    "ATT-6",
    first="attention.scores",
    needs="sharp",
)
class ScoresClipped(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return np.clip(super().scores(query, keys, bias), -50.0, 50.0)
