"""Mistakes between a token id and the first block."""

import math

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


@mistake("no-embedding-norm", "applies no layer norm after the embedding, like GPT-2", "EMB-5", first="embedding_norm")
class NoEmbeddingNorm(InstrumentedModel):
    def embedding_norm(self, x: Array) -> Array:
        return self.arithmetic.stored(x)


@mistake("embedding-norm-twice", "applies the layer norm of the embedding twice", "EMB-5", first="embedding_norm")
class EmbeddingNormTwice(InstrumentedModel):
    def embedding_norm(self, x: Array) -> Array:
        return super().embedding_norm(super().embedding_norm(x))


@mistake(
    "scaled-embedding", "multiplies the embedding by sqrt(D)", "EMB-5", first="word_embedding", needs="eps-sensitive"
)
class ScaledEmbedding(InstrumentedModel):
    def embedding_lookup(self, token_ids: Array) -> Array:
        return super().embedding_lookup(token_ids) * math.sqrt(self.config.hidden_dim)


@mistake("position-vectors", "adds sinusoidal position vectors to the embedding", "EMB-5", first="embedding_norm")
class PositionVectors(InstrumentedModel):
    def embedding_norm(self, x: Array) -> Array:
        time, width = x.shape[1:]
        column = np.arange(self.start, self.start + time)[:, None]
        angle = column / 10000.0 ** (2 * (np.arange(width) // 2) / width)
        return super().embedding_norm(x) + np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(x.dtype)


@mistake(
    "pad-row-zeroed", "sets the embedding of the pad token to zero", "CFG-11", first="word_embedding", needs="pad-id"
)
class PadRowZeroed(InstrumentedModel):
    def embedding_lookup(self, token_ids: Array) -> Array:
        return np.where((token_ids == self.config.pad_token_id)[..., None], 0.0, super().embedding_lookup(token_ids))


@mistake(
    "last-id-clipped",
    "reads the highest token id as the one before it",
    "EMB-2",
    first="word_embedding",
    needs="last-id",
)
class LastIdClipped(InstrumentedModel):
    def embedding_lookup(self, token_ids: Array) -> Array:
        return super().embedding_lookup(np.minimum(token_ids, max(0, self.config.vocabulary_size - 2)))


@mistake("ids-off-by-one", "counts token ids from one", "EMB-1", first="word_embedding")
class IdsOffByOne(InstrumentedModel):
    def embedding_lookup(self, token_ids: Array) -> Array:
        return super().embedding_lookup((token_ids - 1) % self.config.vocabulary_size)
