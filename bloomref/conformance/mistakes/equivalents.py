"""Equivalents: other ways of computing the same function, to which no check may object."""

import math
from dataclasses import replace

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.mistakes.mlp import tanh_gelu
from bloomref.conformance.model.instrumented import GELU_CONSTANT, GELU_CUBIC, InstrumentedCache, InstrumentedModel
from bloomref.params import LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array


@mistake("anchored-at-start", "counts ALiBi from column 0", "ALI-4", first="attention.scores", equivalent=True)
class AnchoredAtStart(InstrumentedModel):
    anchor = 0


@mistake(
    "anchored-at-end", "counts ALiBi from the last key of the call", "ALI-4", first="attention.scores", equivalent=True
)
class AnchoredAtEnd(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        self.anchor = is_real.shape[1] - 1
        return super().bias(is_real, start)


@mistake(
    "anchored-behind-query",
    "counts ALiBi from the column after the query",
    "ALI-4",
    first="attention.scores",
    equivalent=True,
)
class AnchoredBehindQuery(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return super().bias(is_real, start) - self.slopes()[:, None, None]


@mistake(
    "anchored-at-first-real",
    "counts ALiBi from the first real column of each row",
    "ALI-4",
    first="attention.scores",
    equivalent=True,
)
class AnchoredAtFirstReal(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        column = np.arange(is_real.shape[1]) - (is_real.cumsum(axis=1) == 0).sum(axis=1, keepdims=True)
        distance = np.broadcast_to(
            column[:, None, None, :], (len(is_real), 1, is_real.shape[1] - start, is_real.shape[1])
        )
        return self.arithmetic.score(self.slopes()[:, None, None] * distance.astype(self.dtype))


@mistake(
    "symmetric-distance",
    "uses the absolute distance in ALiBi, which changes hidden keys only",
    "ALI-4",
    "ATT-5",
    first="attention.scores",
    equivalent=True,
)
class SymmetricDistance(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return -np.abs(super().bias(is_real, start))


@mistake(
    "cumsum-without-holes",
    "counts positions over the real tokens in rows whose mask has no hole",
    "ALI-4",
    first="attention.scores",
    equivalent=True,
)
class CumsumWithoutHoles(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        rises = np.diff(is_real, axis=1, prepend=False).sum(axis=1, keepdims=True)
        return np.where(rises <= 2, is_real.cumsum(axis=1) - 1, super().positions(is_real))


@mistake("row-constants", "adds a constant to each row of scores", "ALI-4", first="attention.scores", equivalent=True)
class RowConstants(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(query, keys, bias) + np.arange(query.shape[2], dtype=self.dtype)[:, None] % 3


@mistake(
    "scaled-after-product",
    "scales the product of query and key instead of the query",
    "ATT-3",
    first="attention.scores",
    equivalent=True,
)
class ScaledAfterProduct(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return self.arithmetic.score(self.arithmetic.matmul(query, keys.swapaxes(-1, -2)) * self.scale() + bias)


@mistake(
    "no-maximum",
    "computes softmax without subtracting the maximum, in a dtype wide enough for the exponentials",
    "ATT-6",
    first="attention.probabilities",
    equivalent=True,
)
class NoMaximum(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        if np.abs(scores).max(initial=0.0) > 700.0:
            return super().softmax(scores, visible)
        powers = np.where(visible, np.exp(scores.astype(np.float64)), 0.0)
        total = powers.sum(axis=-1, keepdims=True)
        total[total == 0.0] = 1.0
        return self.arithmetic.stored((powers / total).astype(self.dtype))


@mistake(
    "softmax-in-parts",
    "computes softmax over blocks of keys and combines the results",
    "ATT-6",
    first="attention.probabilities",
    equivalent=True,
)
class SoftmaxInParts(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        hidden, middle = self.hide(scores, visible), scores.shape[-1] // 2
        parts = [hidden[..., :middle], hidden[..., middle:]]
        peaks = [part.max(axis=-1, keepdims=True, initial=np.finfo(self.dtype).min) for part in parts]
        powers = [np.exp(part - peak) for part, peak in zip(parts, peaks, strict=True)]
        peak = np.maximum(*peaks)
        powers = [power * np.exp(own - peak) for power, own in zip(powers, peaks, strict=True)]
        total = self.total(powers[0]) + self.total(powers[1])
        total[total == 0.0] = 1.0
        return self.arithmetic.stored(np.concatenate(powers, axis=-1) / total)


@mistake(
    "lowest-number-for-hidden",
    "sets hidden scores to the lowest finite number instead of minus infinity",
    "ATT-6",
    "ATT-8",
    first="attention.probabilities",
    equivalent=True,
)
class LowestNumberForHidden(InstrumentedModel):
    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, np.finfo(self.dtype).min)


@mistake(
    "uniform-on-padding",
    "lets padded queries attend uniformly to all keys",
    "ATT-8",
    first="attention.probabilities",
    equivalent=True,
)
class UniformOnPadding(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        nothing = ~visible.any(axis=-1, keepdims=True)
        return np.where(nothing, 1.0 / max(scores.shape[-1], 1), super().softmax(scores, visible)).astype(self.dtype)


@mistake(
    "padding-sees-past",
    "lets padded queries attend to the real keys before them",
    "ATT-8",
    first="attention.probabilities",
    equivalent=True,
)
class PaddingSeesPast(InstrumentedModel):
    def visible(self, is_real: Array, start: int) -> Array:
        key = np.arange(is_real.shape[1])
        return (self.causal(key, key[start:, None]) & is_real[:, None, :])[:, None]


@mistake(
    "gelu-sqrt-2-over-pi",
    "uses sqrt(2/pi) instead of 0.79788456, the same number in float32",
    "MLP-2",
    "NUM-2",
    first="mlp.gelu",
    equivalent=True,
)
class GeluSqrtTwoOverPi(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, constant=math.sqrt(2.0 / math.pi))


@mistake("gelu-by-sigmoid", "writes the tanh form of GELU with a sigmoid", "MLP-2", first="mlp.gelu", equivalent=True)
class GeluBySigmoid(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        twice = 2.0 * GELU_CONSTANT * x * (1.0 + GELU_CUBIC * x * x)
        return x / (1.0 + np.exp(-np.clip(twice, -80.0, 80.0)))


@mistake(
    "norm-by-reciprocal",
    "multiplies by the reciprocal of the standard deviation in layer norm",
    "EMB-3",
    first="embedding_norm",
    equivalent=True,
)
class NormByReciprocal(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        centred = self.centred(x)
        return self.arithmetic.stored(centred * ((1.0 / self.deviation(self.variance(centred))) * weight) + bias)


@mistake(
    "cache-of-copies",
    "stores the cache as a list of chunks and concatenates them in each call",
    "KVC-7",
    first="attention.scores",
    equivalent=True,
)
class CacheOfCopies(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        if start == 0:
            cache.keys, cache.values = key.copy(), value.copy()
        else:
            cache.keys = np.concatenate([cache.keys[:, :, :start], key], axis=2)
            cache.values = np.concatenate([cache.values[:, :, :start], value], axis=2)
        return cache.keys, cache.values


@mistake(
    "lora-merged",
    "merges the adapter into the weights",
    "LRA-6",
    "LRA-8",
    first="attention.query",
    needs="lora",
    equivalent=True,
)
class LoraMerged(InstrumentedModel):
    def adapted(self, params: Params) -> Params:
        return lora.merged(super().adapted(params))


@mistake(
    "lora-product-first",
    "multiplies the factors of the adapter with each other before the input",
    "LRA-1",
    first="attention.query",
    needs="lora",
    equivalent=True,
)
class LoraProductFirst(InstrumentedModel):
    def delta(self, part: LoraFactors, x: Array) -> Array:
        weight = lora.delta_weight(part)
        return weight[x] if part.kind == "embedding" else x @ weight.T


@mistake(
    "lora-scale-in-b",
    "multiplies the scale of the adapter into B beforehand",
    "LRA-1",
    first="attention.query",
    needs="lora",
    equivalent=True,
)
class LoraScaleInB(InstrumentedModel):
    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        return replace(part, b=part.b * self.dtype.type(part.scale), scale=1.0)
