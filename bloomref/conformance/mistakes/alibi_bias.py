"""Mistakes in the position bias."""

import math

import numpy as np

from bloomref import alibi
from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


def geometric(count: int, start: int = 1, largest: float = 8.0) -> list[float]:
    """2 ** (-8 i / count), the slopes of ALI-1."""
    return [2.0 ** (-largest * i / count) for i in range(start, count + start)]


def power_of_two(heads: int) -> int:
    return 2 ** math.floor(math.log2(heads))


class OtherSlopes(InstrumentedModel):
    """A lab with slopes of its own."""

    def numbers(self, heads: int) -> list[float]:
        raise NotImplementedError

    def slopes(self) -> Array:
        return np.array(self.numbers(self.config.num_heads)).astype(self.dtype)


@mistake("no-alibi", "no ALiBi bias (or one that depends on the query alone, which softmax removes)", "ALI-4", first="attention.scores")  # fmt: skip
class NoAlibi(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return [0.0] * heads


@mistake("naive-slopes", "slopes 2^(-8 i/H) also where H is no power of two", "ALI-1", "ALI-2", first="attention.scores", needs="odd-heads")  # fmt: skip
class NaiveSlopes(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return geometric(heads)


@mistake("extra-slopes-without-stride", "the slopes beyond the power of two taken one by one instead of every second", "ALI-2", first="attention.scores", needs="odd-heads")  # fmt: skip
class ExtraSlopesWithoutStride(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        n = power_of_two(heads)
        return geometric(n) + geometric(2 * n)[: heads - n]


@mistake("extra-slopes-even", "the slopes beyond the power of two taken from the even places of the longer series", "ALI-2", first="attention.scores", needs="odd-heads")  # fmt: skip
class ExtraSlopesEven(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        n = power_of_two(heads)
        return geometric(n) + geometric(2 * n)[1::2][: heads - n]


@mistake("extra-slopes-first", "the slopes beyond the power of two put before the others", "ALI-2", first="attention.scores", needs="odd-heads")  # fmt: skip
class ExtraSlopesFirst(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        right, n = alibi.slopes(heads, np.dtype(np.float64)).tolist(), power_of_two(heads)
        return right[n:] + right[:n]


@mistake("slopes-of-next-power", "the slopes of the next power of two, cut off", "ALI-1", "ALI-2", first="attention.scores", needs="odd-heads")  # fmt: skip
class SlopesOfNextPower(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return geometric(2 ** math.ceil(math.log2(heads)))[:heads]


@mistake("slopes-from-one", "slopes that start at 1 instead of 2^(-8/n)", "ALI-1", first="attention.scores")
class SlopesFromOne(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        right = alibi.slopes(heads, np.dtype(np.float64))
        return (right * 2.0 ** (8.0 / power_of_two(heads))).tolist()


@mistake(
    "slopes-reversed", "slopes in the reverse order of the heads", "ALI-1", first="attention.scores", needs="heads"
)
class SlopesReversed(InstrumentedModel):
    def slopes(self) -> Array:
        return super().slopes()[::-1]


@mistake("one-slope", "the slope of the first head for every head", "ALI-1", first="attention.scores", needs="heads")
class OneSlope(InstrumentedModel):
    def slopes(self) -> Array:
        return np.repeat(super().slopes()[:1], self.config.num_heads)


@mistake("max-bias-16", "slopes 2^(-16 i/n): another largest bias than 8", "ALI-1", first="attention.scores")
class MaxBias16(InstrumentedModel):
    def slopes(self) -> Array:
        return np.square(super().slopes())


@mistake("slopes-by-row", "slopes of the flattened (row, head) axis taken as (head, row)", "ALI-1", "MOD-9", first="attention.scores", needs="rows heads")  # fmt: skip
class SlopesByRow(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        batch, heads = len(is_real), self.config.num_heads
        chosen = np.arange(batch * heads).reshape(batch, heads) // batch
        distance = np.arange(is_real.shape[1]) - np.arange(is_real.shape[1])[start:, None]
        return self.arithmetic.score(self.slopes()[chosen][:, :, None, None] * distance.astype(self.dtype))


@mistake("alibi-sign", "the bias with the wrong sign: far keys are favoured", "ALI-4", first="attention.scores")
class AlibiSign(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return -super().bias(is_real, start)


@mistake("alibi-twice", "the bias added twice", "ALI-4", first="attention.scores")
class AlibiTwice(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return 2.0 * super().bias(is_real, start)


@mistake("alibi-before-scaling", "the bias added before the scaling by 1/sqrt(K), and so scaled too", "ATT-4", first="attention.scores")  # fmt: skip
class AlibiBeforeScaling(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(query, keys, bias * self.scale())


@mistake("alibi-by-layer", "scores and bias divided by the number of the layer, and not multiplied back", "ATT-3", first="layers.1.attention.scores", needs="deep")  # fmt: skip
class AlibiByLayer(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(query, keys, bias) / (self.index + 1.0)


@mistake("positions-by-cumsum", "positions counted over the real tokens alone: a hole in the mask shifts what follows", "ALI-4", first="attention.scores", needs="mask-hole")  # fmt: skip
class PositionsByCumsum(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return (is_real.cumsum(axis=1) - 1) * is_real


@mistake("positions-wrap", "positions in 8 bits: after 127 they start again", "ALI-4", first="attention.scores", needs="long")  # fmt: skip
class PositionsWrap(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return super().positions(is_real) % 128


@mistake("positions-clipped", "positions beyond 127 counted as 127: the bias table was too short", "ALI-4", first="attention.scores", needs="long")  # fmt: skip
class PositionsClipped(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return np.minimum(super().positions(is_real), 127)


@mistake("alibi-in-bfloat16", "the bias, slope times position, rounded to bfloat16", "ALI-5", first="attention.scores", needs="odd-heads long")  # fmt: skip
class AlibiInBfloat16(InstrumentedModel):
    anchor = 0

    def bias(self, is_real: Array, start: int) -> Array:
        return rounded(super().bias(is_real, start), "bfloat16")


@mistake("alibi-in-float16", "the bias, slope times position, rounded to float16", "ALI-5", first="attention.scores", needs="odd-heads long")  # fmt: skip
class AlibiInFloat16(InstrumentedModel):
    anchor = 0

    def bias(self, is_real: Array, start: int) -> Array:
        return rounded(super().bias(is_real, start), "float16")


@mistake("slopes-in-bfloat16", "slopes rounded to bfloat16", "ALI-3", "ALI-5", first="attention.scores", needs="odd-heads")  # fmt: skip
class SlopesInBfloat16(InstrumentedModel):
    def slopes(self) -> Array:
        return rounded(super().slopes(), "bfloat16")


@mistake("positions-in-bfloat16", "positions rounded to bfloat16, which skips integers beyond 256", "ALI-5", first="attention.scores", needs="long")  # fmt: skip
class PositionsInBfloat16(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return rounded(super().positions(is_real).astype(self.dtype), "bfloat16")
