"""Mistakes with LoRA adapters: their scale, their factors, where they act, and merging."""

import math
from dataclasses import replace

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.dtypes import floating_dtype
from bloomref.formats.adapters.peft_config import LoraConfig
from bloomref.lora.adapter import Adapter, Parts
from bloomref.params import LayerParams, LoraFactors, Params
from bloomref.reference import lora
from bloomref.shapes import Array

# --- scale -----------------------------------------------------------------------------------------------------------


class Rescaled(InstrumentedModel):
    """PEFT's adapters with another scale; KerasHub's have none."""

    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        settings = self.adapter.config if self.adapter else None
        return part if settings is None else replace(part, scale=self.rescaled(settings, key, part))

    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:
        raise NotImplementedError


def alpha(settings: LoraConfig, key: str) -> float:
    own = settings.rank(key)
    return settings.scale(key) * (math.sqrt(own) if settings.use_rslora else own)


@mistake(
    "lora-alpha-not-divided",
    "scales the adapter by alpha instead of alpha / r",
    "LRA-12",
    first="attention.query",
    needs="lora",
)
class LoraAlphaNotDivided(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        return alpha(settings, key)


@mistake(
    "lora-scale-by-root",
    "scales the adapter by alpha / sqrt(r) without use_rslora",
    "LRA-12",
    first="attention.query",
    needs="lora",
)
class LoraScaleByRoot(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:
        return alpha(settings, key) / math.sqrt(part.rank)


@mistake(
    "lora-rslora-ignored",
    "scales the adapter by alpha / r in spite of use_rslora",
    "LRA-12",
    first="attention.query",
    needs="lora rslora",
)
class LoraRsloraIgnored(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:
        return alpha(settings, key) / part.rank


@mistake("lora-scale-forgotten", "does not scale the adapter", "LRA-1", first="attention.query", needs="lora")
class LoraScaleForgotten(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        return 1.0


@mistake(
    "lora-scaled-twice",
    "scales the factors of the adapter, and its output again",
    "LRA-1",
    first="attention.query",
    needs="lora",
)
class LoraScaledTwice(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        return part.scale**2


@mistake("lora-alpha-pattern-ignored", "ignores alpha_pattern", "LRA-12", first="mlp.up", needs="lora")
class LoraAlphaPatternIgnored(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        return replace(settings, alpha_pattern={}).scale(key)


@mistake(
    "lora-alpha-of-another",
    "uses the first alpha of alpha_pattern for every module",
    "LRA-12",
    first="attention.query",
    needs="lora",
)
class LoraAlphaOfAnother(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        first = next(iter(settings.alpha_pattern.values()), settings.lora_alpha)
        return replace(settings, lora_alpha=first, alpha_pattern={}).scale(key)


@mistake(
    "lora-rank-pattern-ignored",
    "divides alpha by r where rank_pattern gives another rank",
    "LRA-12",
    first="attention.output",
    needs="lora",
)
class LoraRankPatternIgnored(Rescaled):
    def rescaled(self, settings: LoraConfig, key: str, part: LoraFactors) -> float:  # noqa: ARG002
        return replace(settings, rank_pattern={}).scale(key)


# --- factors ---------------------------------------------------------------------------------------------------------


@mistake(
    "lora-a-transposed",
    "reads the numbers of A as (N, R) instead of (R, N)",
    "LRA-1",
    first="attention.query",
    needs="lora",
)
class LoraATransposed(InstrumentedModel):
    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        return part if part.kind == "heads" else replace(part, a=part.a.reshape(part.a.T.shape).T)


@mistake(
    "lora-b-transposed",
    "reads the numbers of B as (R, M) instead of (M, R)",
    "LRA-1",
    first="attention.query",
    needs="lora",
)
class LoraBTransposed(InstrumentedModel):
    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        return part if part.kind == "heads" else replace(part, b=part.b.reshape(part.b.T.shape).T)


class RowsOfB(InstrumentedModel):
    """Other rows of the B of the fused projection."""

    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        if part.kind == "matrix" and key.endswith("query_key_value.weight"):
            return replace(part, b=self.rows(part.b).reshape(part.b.shape))
        return part

    def rows(self, b: Array) -> Array:
        raise NotImplementedError


@mistake(
    "lora-b-in-blocks",
    "reads the rows of B of the fused projection in three blocks instead of per head",
    "LRA-3",
    first="attention.query",
    needs="lora heads",
)
class LoraBInBlocks(RowsOfB):
    def rows(self, b: Array) -> Array:
        return b.reshape(3, self.config.num_heads, self.config.head_dim, -1).swapaxes(0, 1)


@mistake(
    "lora-not-on-key",
    "adds the adapter of the fused projection to query and value only",
    "LRA-1",
    first="attention.key",
    needs="lora",
)
class LoraNotOnKey(RowsOfB):
    def rows(self, b: Array) -> Array:
        kept = b.reshape(self.config.num_heads, 3, self.config.head_dim, -1).copy()
        kept[:, 1] = 0.0
        return kept


class Heads(InstrumentedModel):
    """KerasHub's factors of each head, changed."""

    def part(self, key: str, part: LoraFactors) -> LoraFactors:
        part = super().part(key, part)
        return self.of_heads(part) if part.kind == "heads" else part

    def of_heads(self, part: LoraFactors) -> LoraFactors:
        raise NotImplementedError


@mistake(
    "lora-value-at-key",
    "adds KerasHub's factors of the value to the key",
    "LRA-11",
    first="attention.key",
    needs="lora lora-heads",
)
class LoraValueAtKey(Heads):
    def of_heads(self, part: LoraFactors) -> LoraFactors:
        return replace(part, projection=1) if part.projection == 2 else part


@mistake(
    "lora-one-head",
    "uses KerasHub's A of the first head for every head",
    "LRA-1",
    first="attention.query",
    needs="lora lora-heads heads",
)
class LoraOneHead(Heads):
    def of_heads(self, part: LoraFactors) -> LoraFactors:
        return replace(part, a=np.broadcast_to(part.a[:, :1], part.a.shape))


@mistake(
    "lora-heads-behind-rank",
    "reads KerasHub's A as (D, R, H) instead of (D, H, R)",
    "LRA-1",
    first="attention.query",
    needs="lora lora-heads heads",
)
class LoraHeadsBehindRank(Heads):
    def of_heads(self, part: LoraFactors) -> LoraFactors:
        width, heads, r = part.a.shape
        return replace(part, a=part.a.reshape(width, r, heads).swapaxes(1, 2))


# --- where it acts ---------------------------------------------------------------------------------------------------


@mistake(
    "lora-before-norm",
    "feeds the QKV adapter with the hidden state before the layer norm",
    "LRA-1",
    first="attention.query",
    needs="lora",
)
class LoraBeforeNorm(InstrumentedModel):
    def attention_norm(self, layer: LayerParams, x: Array) -> Array:
        self.before = x
        return super().attention_norm(layer, x)

    def adapt(self, owner: LayerParams | Params, attribute: str, x: Array, y: Array) -> Array:
        return super().adapt(owner, attribute, self.before if attribute == "qkv_weight" else x, y)


@mistake(
    "lora-before-gelu",
    "feeds the adapter of dense_4h_to_h with the input of GELU instead of its output",
    "LRA-1",
    first="mlp.output",
    needs="lora",
)
class LoraBeforeGelu(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        self.before = x
        return super().gelu(x)

    def adapt(self, owner: LayerParams | Params, attribute: str, x: Array, y: Array) -> Array:
        return super().adapt(owner, attribute, self.before if attribute == "mlp_down_weight" else x, y)


@mistake("lora-bias-dropped", "omits the bias of adapted layers", "LRA-1", first="attention.query", needs="lora")
class LoraBiasDropped(InstrumentedModel):
    def adapt(self, owner: LayerParams | Params, attribute: str, x: Array, y: Array) -> Array:
        if attribute in owner.adapters and isinstance(owner, LayerParams):
            y = y - getattr(owner, attribute.replace("weight", "bias")).reshape(-1)
        return super().adapt(owner, attribute, x, y)


@mistake(
    "lora-first-layer-only",
    "applies the adapter in the first layer only",
    "LRA-12",
    first="layers.1.attention.query",
    needs="lora deep",
)
class LoraFirstLayerOnly(InstrumentedModel):
    def parts(self, adapter: Adapter) -> Parts:
        return {key: parts for key, parts in super().parts(adapter).items() if key.startswith(("h.0.", "word"))}


@mistake(
    "lora-embedding-ignored",
    "ignores the adapter of the embedding",
    "LRA-4",
    first="word_embedding",
    needs="lora lora-embedding",
)
class LoraEmbeddingIgnored(InstrumentedModel):
    def parts(self, adapter: Adapter) -> Parts:
        return {key: parts for key, parts in super().parts(adapter).items() if not key.startswith("word")}


@mistake(
    "lora-embedding-behind-norm",
    "adds the adapter of the embedding after the embedding's layer norm",
    "LRA-1",
    first="word_embedding",
    needs="lora lora-embedding",
)
class LoraEmbeddingBehindNorm(InstrumentedModel):
    def embed(self, token_ids: Array) -> Array:
        x = self.embedding_norm(self.record("word_embedding", self.embedding_lookup(token_ids)))
        return self.record("embedding_norm", self.adapt(self.params, "word_embedding", token_ids, x))


@mistake(
    "lora-embedding-in-head",
    "applies the adapter of the embedding to the tied LM head too",
    "LRA-4",
    first="logits",
    needs="lora lora-embedding",
)
class LoraEmbeddingInHead(InstrumentedModel):
    def head(self, hidden: Array) -> Array:
        logits = super().head(hidden)
        tied = self.params.adapters.get("word_embedding", ()) if self.params.lm_head is None else ()
        return logits + sum(hidden @ lora.delta_weight(part).T for part in tied)


@mistake(
    "lora-dropped-out", "applies the adapter's dropout outside training", "LRA-9", first="attention.query", needs="lora"
)
class LoraDroppedOut(InstrumentedModel):
    def narrow(self, part: LoraFactors, x: Array) -> Array:
        if part.dropout:
            x = x * (np.random.default_rng(0).random(x.shape) >= part.dropout) / (1.0 - part.dropout)
        return super().narrow(part, x.astype(self.dtype) if part.dropout else x)


@mistake(
    "lora-forgotten-over-cache",
    "applies the adapter only in the first call over a cache",
    "LRA-16",
    first="attention.query",
    needs="lora pieces",
)
class LoraForgottenOverCache(InstrumentedModel):
    def adapt(self, owner: LayerParams | Params, attribute: str, x: Array, y: Array) -> Array:
        return y if self.start else super().adapt(owner, attribute, x, y)


# --- merging and rounding --------------------------------------------------------------------------------------------


@mistake(
    "lora-merged-in-bfloat16",
    "merges the adapter of a float32 model into bfloat16 weights",
    "LRA-6",
    first="attention.query",
    needs="lora",
)
class LoraMergedInBfloat16(InstrumentedModel):
    def adapted(self, params: Params) -> Params:
        return lora.merged(super().adapted(params), floating_dtype("bfloat16")).astype(self.dtype)


@mistake(
    "lora-merged-and-added",
    "merges the adapter into the weights and adds it as well",
    "LRA-6",
    first="attention.query",
    needs="lora",
)
class LoraMergedAndAdded(InstrumentedModel):
    def delta(self, part: LoraFactors, x: Array) -> Array:
        return 2.0 * super().delta(part, x)


@mistake(
    "lora-in-bfloat16", "rounds the adapter's inner product to bfloat16", "LRA-2", first="attention.query", needs="lora"
)
class LoraInBfloat16(InstrumentedModel):
    def narrow(self, part: LoraFactors, x: Array) -> Array:
        return rounded(super().narrow(part, x), "bfloat16")
