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
    """A model with other slopes, which `numbers` returns."""

    def numbers(self, heads: int) -> list[float]:
        raise NotImplementedError

    def slopes(self) -> Array:
        return np.array(self.numbers(self.config.num_heads)).astype(self.dtype)


@mistake(
    "no-alibi",
    "adds no ALiBi bias, or one that depends on the query alone and that softmax cancels",
    "ALI-4",
    first="attention.scores",
)
class NoAlibi(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return [0.0] * heads


@mistake(
    "naive-slopes",
    "uses slopes 2^(-8 i/H) even if H is not a power of two",
    "ALI-1",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class NaiveSlopes(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return geometric(heads)


@mistake(
    "slopes-continued",
    "continues the series 2^(-8 i/n) beyond the power of two n",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class SlopesContinued(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return [2.0 ** (-8.0 * i / power_of_two(heads)) for i in range(1, heads + 1)]


@mistake(
    "extra-slopes-without-stride",
    "takes the slopes beyond the power of two one by one instead of every second one",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class ExtraSlopesWithoutStride(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        n = power_of_two(heads)
        return geometric(n) + geometric(2 * n)[: heads - n]


@mistake(
    "extra-slopes-even",
    "takes the slopes beyond the power of two from the even instead of the odd terms of the longer series",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class ExtraSlopesEven(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        n = power_of_two(heads)
        return geometric(n) + geometric(2 * n)[1::2][: heads - n]


@mistake(
    "extra-slopes-first",
    "puts the slopes beyond the power of two before the others",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class ExtraSlopesFirst(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        right, n = alibi.slopes(heads, np.dtype(np.float64)).tolist(), power_of_two(heads)
        return right[n:] + right[:n]


@mistake(
    "slopes-of-next-power",
    "computes the slopes for the next power of two and uses the first H",
    "ALI-1",
    "ALI-2",
    first="attention.scores",
    needs="odd-heads",
)
class SlopesOfNextPower(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        return geometric(2 ** math.ceil(math.log2(heads)))[:heads]


@mistake("slopes-from-one", "starts the slopes at 1 instead of 2^(-8/n)", "ALI-1", first="attention.scores")
class SlopesFromOne(OtherSlopes):
    def numbers(self, heads: int) -> list[float]:
        right = alibi.slopes(heads, np.dtype(np.float64))
        return (right * 2.0 ** (8.0 / power_of_two(heads))).tolist()


@mistake(
    "slopes-reversed",
    "assigns the slopes to the heads in reverse order",
    "ALI-1",
    first="attention.scores",
    needs="heads",
)
class SlopesReversed(InstrumentedModel):
    def slopes(self) -> Array:
        return super().slopes()[::-1]


@mistake(
    "one-slope", "uses the slope of the first head for every head", "ALI-1", first="attention.scores", needs="heads"
)
class OneSlope(InstrumentedModel):
    def slopes(self) -> Array:
        return np.repeat(super().slopes()[:1], self.config.num_heads)


@mistake("max-bias-16", "uses slopes 2^(-16 i/n) instead of 2^(-8 i/n)", "ALI-1", first="attention.scores")
class MaxBias16(InstrumentedModel):
    def slopes(self) -> Array:
        return np.square(super().slopes())


@mistake(
    "slopes-by-row",
    "reads the flattened (row, head) axis of the slopes as (head, row)",
    "ALI-1",
    "MOD-9",
    first="attention.scores",
    needs="rows heads",
)
class SlopesByRow(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        batch, heads = len(is_real), self.config.num_heads
        chosen = np.arange(batch * heads).reshape(batch, heads) // batch
        distance = np.arange(is_real.shape[1]) - np.arange(is_real.shape[1])[start:, None]
        return self.arithmetic.score(self.slopes()[chosen][:, :, None, None] * distance.astype(self.dtype))


@mistake(
    "alibi-sign", "adds the bias with the wrong sign, which favours distant keys", "ALI-4", first="attention.scores"
)
class AlibiSign(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return -super().bias(is_real, start)


@mistake("alibi-twice", "adds the bias twice", "ALI-4", first="attention.scores")
class AlibiTwice(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return 2.0 * super().bias(is_real, start)


@mistake(
    "alibi-before-scaling",
    "adds the bias before the scaling by 1/sqrt(K), which scales it too",
    "ATT-4",
    first="attention.scores",
)
class AlibiBeforeScaling(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(query, keys, bias * self.scale())


@mistake(
    "alibi-by-layer",
    "divides scores and bias by the layer number, and does not multiply back",
    "ATT-3",
    first="layers.1.attention.scores",
    needs="deep",
)
class AlibiByLayer(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(query, keys, bias) / (self.index + 1.0)


@mistake(
    "positions-by-cumsum",
    "counts positions over the real tokens only, so a hole in the mask shifts all later positions",
    "ALI-4",
    first="attention.scores",
    needs="mask-hole",
)
class PositionsByCumsum(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return (is_real.cumsum(axis=1) - 1) * is_real


@mistake(
    "positions-wrap",
    "stores positions in 7 bits, so they restart at 0 after 127",
    "ALI-4",
    first="attention.scores",
    needs="long",
)
class PositionsWrap(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return super().positions(is_real) % 128


@mistake(
    "positions-clipped",
    "clips positions at 127, as with a bias table that is too short",
    "ALI-4",
    first="attention.scores",
    needs="long",
)
class PositionsClipped(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return np.minimum(super().positions(is_real), 127)


@mistake(
    "alibi-in-bfloat16",
    "rounds the bias, slope times position, to bfloat16",
    "ALI-5",
    first="attention.scores",
    needs="odd-heads long",
)
class AlibiInBfloat16(InstrumentedModel):
    anchor = 0

    def bias(self, is_real: Array, start: int) -> Array:
        return rounded(super().bias(is_real, start), "bfloat16")


@mistake(
    "alibi-in-float16",
    "rounds the bias, slope times position, to float16",
    "ALI-5",
    first="attention.scores",
    needs="odd-heads long",
)
class AlibiInFloat16(InstrumentedModel):
    anchor = 0

    def bias(self, is_real: Array, start: int) -> Array:
        return rounded(super().bias(is_real, start), "float16")


@mistake(
    "slopes-in-bfloat16", "rounds the slopes to bfloat16", "ALI-3", "ALI-5", first="attention.scores", needs="odd-heads"
)
class SlopesInBfloat16(InstrumentedModel):
    def slopes(self) -> Array:
        return rounded(super().slopes(), "bfloat16")


@mistake(
    "slopes-in-float16", "rounds the slopes to float16", "ALI-3", "ALI-5", first="attention.scores", needs="odd-heads"
)
class SlopesInFloat16(InstrumentedModel):
    def slopes(self) -> Array:
        return rounded(super().slopes(), "float16")


@mistake(
    "positions-in-8-bits",
    "stores positions in 8 bits, so they restart at 0 after 255",
    "ALI-4",
    first="attention.scores",
    needs="long",
)
class PositionsIn8Bits(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return super().positions(is_real) % 256


@mistake(
    "positions-in-bfloat16",
    "rounds positions to bfloat16, which cannot represent every integer above 256",
    "ALI-5",
    first="attention.scores",
    needs="long",
)
class PositionsInBfloat16(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        return rounded(super().positions(is_real).astype(self.dtype), "bfloat16")
