"""LoRA adapters of a whole model: attached to its weights, listed, replaced, merged. Clauses: LRA-1 ... LRA-8.

An adapter is added where the model runs (`lora_ops`), never merged, unless `merged` is called.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bloomref.dtypes import DType, accumulation_dtype, cast
from bloomref.params import LAYER_WEIGHTS, MODEL_WEIGHTS, LayerParams, LoraFactors, Params, layer_key
from bloomref.shapes import Array, Float

_MODEL_KEYS = {weight.attribute: weight.hf_key for weight in MODEL_WEIGHTS}


def attach(params: Params, adapters: Mapping[str, tuple[LoraFactors, ...]]) -> Params:
    """Return the weights with these adapters instead of their present ones.

    Args:
        adapters: Hugging Face key of a weight -> the factors added to its products.
    """

    def adapted(keys: Mapping[str, str]) -> dict[str, tuple[LoraFactors, ...]]:
        return {attribute: adapters[key] for attribute, key in keys.items() if adapters.get(key)}

    layers = tuple(replace(p, adapters=adapted(_layer_keys(i))) for i, p in enumerate(params.layers))
    return replace(params, layers=layers, adapters=adapted(_MODEL_KEYS))


def attached(params: Params) -> Iterator[tuple[str, LoraFactors]]:
    """(Hugging Face key of the weight, factors), in the order of the forward pass."""
    for attribute, pairs in params.adapters.items():
        yield from ((_MODEL_KEYS[attribute], factors) for factors in pairs)
    for i, layer in enumerate(params.layers):
        for attribute, key in _layer_keys(i).items():
            yield from ((key, factors) for factors in layer.adapters.get(attribute, ()))


def is_adapted(params: Params) -> bool:
    """True if any weight has an adapter."""
    return next(attached(params), None) is not None


def factors(params: Params) -> dict[str, Array]:
    """Name of a factor (`LoraFactors.key`) -> array, for every attached adapter."""
    return {pair.key(key, name): getattr(pair, name) for key, pair in attached(params) for name in ("a", "b")}


def with_factors(params: Params, arrays: Mapping[str, Array]) -> Params:
    """Return the weights with new factors under the names of `factors`; other factors stay."""
    changed: dict[str, tuple[LoraFactors, ...]] = {}
    for key, pair in attached(params):
        a, b = (arrays.get(pair.key(key, name), getattr(pair, name)) for name in ("a", "b"))
        changed[key] = (*changed.get(key, ()), replace(pair, a=a, b=b))
    return attach(params, changed)


def delta_weight(factors: LoraFactors) -> Float[Array, "M N"]:
    """The matrix that merging adds: scale B A, in the shape in which Hugging Face stores the weight."""
    a, b = factors.a, factors.b
    if factors.kind == "matrix":
        return factors.scale * (b @ a)
    if factors.kind == "embedding":
        return factors.scale * (b @ a).T
    width, heads, _ = a.shape
    delta = np.zeros((heads, 3, b.shape[1], width), a.dtype)  # (H, C, K, D), the rows of the fused weight (ATT-2)
    delta[:, factors.projection] = factors.scale * np.einsum("DHR,RK->HKD", a, b)
    return delta.reshape(-1, width)


def dora_gain(weight: Float[Array, "M N"], factors: LoraFactors, magnitude: Float[Array, " M"]) -> Float[Array, " M"]:
    """DoRA's gains (arXiv:2402.09353): magnitude / norm of the rows of W + scale B A. Clause: LRA-21.

    Args:
        weight: the stored matrix in the accumulation dtype; the transpose of the embedding (V, D), as PEFT treats it.
    """
    delta = delta_weight(factors)
    return magnitude / row_norms(weight + (delta.T if factors.kind == "embedding" else delta))


def row_norms(matrix: Float[Array, "M N"]) -> Float[Array, " M"]:
    """Euclidean norms of rows, the same to the last bit in any layout of the memory."""
    return np.linalg.norm(np.ascontiguousarray(matrix), axis=1)


def merged(params: Params, dtype: DType | None = None) -> Params:
    """Weights without adapters that give the results of `params` with its adapters:
    W + the sum of scale B A, rounded once. Clause: LRA-6.

    An adapted embedding serves the lookup alone, so a head that was tied to it becomes a separate matrix.

    Args:
        dtype: of the adapted weights, which are rounded to it before the sum; None: that of `params`. Weights without
            an adapter are shared, not copied.
    """
    dtype = dtype or params.word_embedding.dtype
    head = params.word_embedding if params.lm_head is None and params.adapters else params.lm_head
    layers = tuple(replace(p, adapters={}, **_merged(p, dtype)) for p in params.layers)
    return replace(params, layers=layers, lm_head=head, source=None, adapters={}, **_merged(params, dtype))


def _merged(owner: LayerParams | Params, dtype: DType) -> dict[str, Any]:
    return {name: _sum(cast(getattr(owner, name), dtype), pairs) for name, pairs in owner.adapters.items()}


def _sum(weight: Array, pairs: tuple[LoraFactors, ...]) -> Array:
    total = weight.astype(accumulation_dtype(weight.dtype))
    for pair in pairs:
        total += delta_weight(pair).reshape(weight.shape)
    return cast(total, weight.dtype)


def _layer_keys(index: int) -> dict[str, str]:
    return {weight.attribute: layer_key(index, weight) for weight in LAYER_WEIGHTS}
