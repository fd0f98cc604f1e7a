"""Mistakes between the last block and the logits."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


@mistake("head-tied-though-untied", "the embedding used as head although the model has one of its own", "MOD-6", first="logits", needs="untied")  # fmt: skip
class HeadTied(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return self.arithmetic.matmul(hidden, self.params.word_embedding.T)


@mistake("head-fresh-though-tied", "a fresh head used although the embedding is the head", "MOD-6", first="logits")
class HeadFresh(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        if self.params.lm_head is not None:
            return super().head(hidden)
        fresh = np.random.default_rng(0).normal(0.0, 0.02, list(self.params.word_embedding.shape))
        return self.arithmetic.matmul(hidden, fresh.astype(self.dtype).T)


@mistake("scaled-logits", "logits multiplied by 1/sqrt(D)", "MOD-5", first="logits")
class ScaledLogits(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return super().head(hidden) / math.sqrt(self.config.hidden_dim)


@mistake("log-softmax", "log-probabilities returned as logits", "MOD-5", first="logits")
class LogSoftmax(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        centred = logits - logits.max(axis=-1, keepdims=True)
        return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))


@mistake("capped-logits", "logits capped as 30 tanh(x / 30)", "MOD-5", first="logits")
class CappedLogits(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return 30.0 * np.tanh(super().head(hidden) / 30.0)


@mistake("logits-shifted", "the logits of a position are those of the one before it", "MOD-5", first="logits")
class LogitsShifted(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return super().head(np.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1))


@mistake("logits-in-bfloat16", "logits of a float32 model rounded to bfloat16", "MOD-5", first="logits")
class LogitsInBfloat16(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return rounded(super().head(hidden), "bfloat16")


@mistake("head-rows-missing", "the last logit missing its row of the head: zero", "MOD-5", first="logits")
class HeadRowsMissing(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        return np.where(np.arange(logits.shape[-1]) < logits.shape[-1] - 1, logits, 0.0)
