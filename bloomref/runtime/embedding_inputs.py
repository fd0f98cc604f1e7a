"""Embeddings in place of token ids: vectors that enter the model before the embedding's LayerNorm. Clause: EMB-7."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bloomref.dtypes import accumulation_dtype, cast, floating_dtype
from bloomref.errors import invalid
from bloomref.reference.ops import layer_norm
from bloomref.runtime.backend import Hidden, Step
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.runtime.inputs import check_padding_mask, own_names, to_array
from bloomref.shapes import Array, Bool, Float

EMBEDDINGS = "inputs_embeds"
_KEYS = (EMBEDDINGS, "padding_mask")


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Checked vectors (B, T, D) of any floating dtype, and their mask (B, T) of bool: True for a real position."""

    vectors: Float[Array, "B T D"]
    is_real: Bool[Array, "B T"]


def embedding_batch(inputs: object, hidden_dim: int) -> EmbeddingBatch | None:
    """Check a dictionary input with `inputs_embeds` (B, T, D), and optionally `padding_mask`; None for other inputs.

    Raises:
        InvalidInput: names the key, the expected and the actual value.
    """
    if not isinstance(inputs, Mapping) or inputs.get(EMBEDDINGS) is None:
        return None
    inputs = {key: value for key, value in own_names(inputs).items() if value is not None}
    if unknown := [key for key in inputs if key not in _KEYS]:
        raise invalid("inputs", f"the keys {EMBEDDINGS} and padding_mask", f"also {unknown}")
    vectors = to_array(EMBEDDINGS, inputs[EMBEDDINGS])
    if vectors.dtype.kind != "f" and vectors.dtype != floating_dtype("bfloat16"):
        raise invalid(EMBEDDINGS, "floating numbers", f"dtype {vectors.dtype}")
    if vectors.ndim != 3 or vectors.shape[2] != hidden_dim:
        raise invalid(EMBEDDINGS, f"shape (batch, time, {hidden_dim})", f"shape {vectors.shape}")
    if not np.isfinite(vectors.astype(accumulation_dtype(vectors.dtype), copy=False)).all():
        raise invalid(EMBEDDINGS, "finite numbers", "NaN or infinity")
    return EmbeddingBatch(vectors, check_padding_mask(inputs.get("padding_mask"), vectors.shape[:2]))


def hidden_of(engine: Engine, batch: EmbeddingBatch) -> Float[Array, "B T D"]:
    """Final hidden states of whole sequences of vectors, as `Engine.hidden` of token ids."""
    cache = engine.new_cache(*batch.is_real.shape)
    return engine.to_host(run_vectors(engine, cache, batch), batch.is_real.astype(np.int64))


def run_vectors(engine: Engine, cache: EngineCache, batch: EmbeddingBatch) -> Hidden:
    """Run vectors from the first position of a cache on, as `Engine.run` of token ids."""
    policy, params = engine.policy, engine.stored_params
    compute, wide = policy.compute_dtype, accumulation_dtype(policy.compute_dtype)
    weight, bias = (
        cast(cast(vector, policy.variable_dtype), compute)
        for vector in (params.ln_embedding_weight, params.ln_embedding_bias)
    )
    vectors = cast(batch.vectors, compute).astype(wide)
    normed = layer_norm(vectors, weight, bias, engine.config.layer_norm_epsilon).astype(compute)
    cache.is_real[:, : normed.shape[1]] = batch.is_real
    return engine.blocks(engine.prepared.from_host(normed), cache, Step.at(0, batch.is_real))
