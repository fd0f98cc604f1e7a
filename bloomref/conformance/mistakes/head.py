"""Mistakes between the last block and the logits."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array


@mistake(
    "head-tied-though-untied",
    "uses the embedding as LM head although the model has an untied one",
    "MOD-6",
    first="logits",
    needs="untied",
)
class HeadTied(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return self.arithmetic.matmul(hidden, self.params.word_embedding.T)


@mistake(
    "head-fresh-though-tied",
    "uses a freshly initialised LM head although the embedding is the LM head",
    "MOD-6",
    first="logits",
)
class HeadFresh(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        if self.params.lm_head is not None:
            return super().head(hidden)
        fresh = np.random.default_rng(0).normal(0.0, 0.02, list(self.params.word_embedding.shape))
        return self.arithmetic.matmul(hidden, fresh.astype(self.dtype).T)


@mistake("scaled-logits", "multiplies the logits by 1/sqrt(D)", "MOD-5", first="logits")
class ScaledLogits(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return super().head(hidden) / math.sqrt(self.config.hidden_dim)


@mistake("log-softmax", "returns log-probabilities as logits", "MOD-5", first="logits")
class LogSoftmax(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        centred = logits - logits.max(axis=-1, keepdims=True)
        return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))


@mistake("capped-logits", "caps the logits as 30 tanh(x / 30)", "MOD-5", first="logits")
class CappedLogits(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return 30.0 * np.tanh(super().head(hidden) / 30.0)


@mistake("logits-shifted", "returns at each position the logits of the position before it", "MOD-5", first="logits")
class LogitsShifted(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return super().head(np.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1))


@mistake("logits-in-bfloat16", "rounds the logits of a float32 model to bfloat16", "MOD-5", first="logits")
class LogitsInBfloat16(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        return rounded(super().head(hidden), "bfloat16")


@mistake("head-rows-missing", "omits the last row of the LM head, so the last logit is zero", "MOD-5", first="logits")
class HeadRowsMissing(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        return np.where(np.arange(logits.shape[-1]) < logits.shape[-1] - 1, logits, 0.0)
