"""Mistakes that only several calls over a cache show."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedCache, InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array


@mistake(
    "cache-slot-late", "writes keys and values one slot too late", "KVC-1", first="attention.scores", needs="pieces"
)
class CacheSlotLate(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        if start:
            cache.keys[:, :, start + 1 : start + 1 + key.shape[2]] = key[:, :, : cache.keys.shape[2] - start - 1]
            cache.values[:, :, start + 1 : start + 1 + key.shape[2]] = value[:, :, : cache.keys.shape[2] - start - 1]
            stop = start + key.shape[2]
            return cache.keys[:, :, :stop], cache.values[:, :, :stop]
        return super().update_cache(cache, start, key, value)


@mistake(
    "value-slot-early",
    "writes values, but not keys, one slot too early",
    "KVC-1",
    first="attention.context",
    needs="pieces",
)
class ValueSlotEarly(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = super().update_cache(cache, start, key, value)
        if start:
            stop = start + key.shape[2]
            cache.values[:, :, start - 1 : stop - 1] = value
            cache.values[:, :, stop - 1] = 0.0
        return keys, values


@mistake(
    "cache-overwritten",
    "writes the keys and values of every call at the front of the cache",
    "KVC-1",
    first="attention.scores",
    needs="pieces",
)
class CacheOverwritten(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = super().update_cache(cache, start, key, value)
        if start:
            count = min(start, key.shape[2])
            cache.keys[:, :, :count], cache.values[:, :, :count] = key[:, :, :count], value[:, :, :count]
        return keys, values


@mistake(
    "cache-stride",
    "reads the cache as if its capacity were the number of columns so far",
    "KVC-1",
    first="attention.scores",
    needs="pieces heads",
)
class CacheStride(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = super().update_cache(cache, start, key, value)
        return self.misread(cache.keys, keys.shape), self.misread(cache.values, values.shape)

    def misread(self, stored: Array, shape: tuple[int, ...]) -> Array:
        return stored.reshape(-1)[: math.prod(shape)].reshape(shape)


@mistake(
    "earlier-keys-unseen",
    "attends only to the keys of the current call",
    "KVC-2",
    first="attention.probabilities",
    needs="pieces",
)
class EarlierKeysUnseen(InstrumentedModel):
    def visible(self, is_real: Array, start: int) -> Array:
        return super().visible(is_real, start) & (np.arange(is_real.shape[1]) >= start)


@mistake(
    "first-column-forgotten",
    "drops the first column of the cache after the first call",
    "KVC-2",
    first="attention.probabilities",
    needs="pieces",
)
class FirstColumnForgotten(InstrumentedModel):
    def visible(self, is_real: Array, start: int) -> Array:
        return super().visible(is_real, start) & (np.arange(is_real.shape[1]) >= (start > 0))


@mistake(
    "prefix-mask-forgotten",
    "does not store the mask of earlier calls, so their padding is visible",
    "KVC-3",
    first="attention.probabilities",
    needs="pieces padding",
)
class PrefixMaskForgotten(InstrumentedModel):
    def key_is_real(self, is_real: Array, start: int) -> Array:
        return is_real | (np.arange(is_real.shape[1]) < start)


@mistake(
    "causal-offset-forgotten",
    "builds the causal mask of a later call as if it began at column 0",
    "KVC-2",
    "ATT-5",
    first="attention.probabilities",
    needs="pieces",
)
class CausalOffsetForgotten(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return key <= query - self.start


@mistake(
    "causal-forgotten-later",
    "applies no causal mask in calls after the first",
    "KVC-7",
    "ATT-5",
    first="attention.probabilities",
    needs="pieces",
)
class CausalForgottenLater(InstrumentedModel):
    def causal(self, key: Array, query: Array) -> Array:
        return super().causal(key, query) | (self.start > 0)


@mistake(
    "alibi-restarted",
    "counts the columns of ALiBi from 0 again in each call",
    "ALI-4",
    "KVC-7",
    first="attention.scores",
    needs="pieces",
)
class AlibiRestarted(InstrumentedModel):
    def positions(self, is_real: Array) -> Array:
        column = np.arange(is_real.shape[1])
        return np.where(column < self.start, column, column - self.start)[None]


@mistake(
    "alibi-lost-later",
    "adds no ALiBi bias in calls after the first",
    "ALI-4",
    "KVC-7",
    first="attention.scores",
    needs="pieces",
)
class AlibiLostLater(InstrumentedModel):
    def bias(self, is_real: Array, start: int) -> Array:
        return super().bias(is_real, start) * (start == 0)


@mistake(
    "alibi-table-short",
    "builds the ALiBi table for the first call, and uses its last entry beyond",
    "ALI-4",
    first="attention.scores",
    needs="pieces",
)
class AlibiTableShort(InstrumentedModel):
    length: int | None = None

    def positions(self, is_real: Array) -> Array:
        if self.length is None or self.start == 0:
            self.length = is_real.shape[1]
        return np.minimum(super().positions(is_real), self.length - 1)


@mistake(
    "embedding-norm-lost-later",
    "applies no layer norm after the embedding in calls after the first",
    "EMB-5",
    "KVC-7",
    first="embedding_norm",
    needs="pieces",
)
class EmbeddingNormLostLater(InstrumentedModel):
    def embedding_norm(self, x: Array) -> Array:
        return x if self.start else super().embedding_norm(x)


@mistake(
    "cache-rows-exchanged",
    "has the rows of the cache in another order than those of the batch",
    "MOD-9",
    "KVC-7",
    first="attention.scores",
    needs="pieces rows",
)
class CacheRowsExchanged(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        if start:
            cache.keys[:, :, :start] = cache.keys[::-1, :, :start].copy()
            cache.values[:, :, :start] = cache.values[::-1, :, :start].copy()
        return super().update_cache(cache, start, key, value)


@mistake(
    "one-cache-for-all-layers",
    "uses the cache of the first layer in every layer",
    "KVC-8",
    first="layers.0.attention.scores",
    needs="pieces deep",
)
class OneCacheForAllLayers(InstrumentedModel):
    def chunk(self, caches: list[InstrumentedCache], *arguments: object) -> dict[str, Array]:
        return super().chunk(caches[:1] * len(caches), *arguments)  # type: ignore[arg-type]


@mistake(
    "keys-unbiased-later",
    "omits the QKV bias in calls after the first",
    "ATT-2",
    "KVC-7",
    first="attention.query",
    needs="pieces",
)
class KeysUnbiasedLater(InstrumentedModel):
    def qkv(self, layer: LayerParams, x: Array) -> Array:
        bias = layer.qkv_bias.reshape(-1) * (self.start == 0)
        return self.linear(x, layer.qkv_weight.reshape(-1, self.config.hidden_dim), bias)


@mistake(
    "unwritten-seen",
    "attends to one slot after the last column, which was never written",
    "KVC-2",
    "KVC-6",
    first="attention.probabilities",
    needs="pieces",
)
class UnwrittenSeen(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = super().update_cache(cache, start, key, value)
        slot = np.zeros_like(key[:, :, :1])
        return (np.concatenate([keys, slot], 2), np.concatenate([values, slot], 2)) if start else (keys, values)

    def visible(self, is_real: Array, start: int) -> Array:
        visible = super().visible(is_real, start)
        return np.concatenate([visible, np.ones_like(visible[..., :1])], axis=-1) if start else visible

    def bias(self, is_real: Array, start: int) -> Array:
        bias = super().bias(is_real, start)
        return np.concatenate([bias, np.zeros_like(bias[..., :1])], axis=-1) if start else bias


@mistake(
    "cache-in-bfloat16", "stores keys and values of a float32 model in bfloat16", "NUM-2", first="attention.scores"
)
class CacheInBfloat16(InstrumentedModel):
    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        return super().update_cache(cache, start, rounded(key, "bfloat16"), rounded(value, "bfloat16"))
