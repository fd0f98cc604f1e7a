"""An adapter of a whole model: LoRA factors by the weight that they belong to. Clauses: LRA-4 ... LRA-12."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, cast
from bloomref.formats.keras_lora import kernel_shapes
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.params import LAYER_WEIGHTS, MODEL_WEIGHTS, Weight, layer_key
from bloomref.reference import lora
from bloomref.shapes import Array

if TYPE_CHECKING:
    pass

DENSE_LAYERS = {
    "query_dense": "qkv_weight",
    "key_dense": "qkv_weight",
    "value_dense": "qkv_weight",
    "output_dense": "attn_out_weight",
    "mlp_intermediate_dense": "mlp_up_weight",
    "mlp_output_dense": "mlp_down_weight",
}
"""KerasHub's name of a layer -> attribute of the weight that holds its kernel."""
KERAS_DEFAULT = ("query_dense", "value_dense")
ROWS = {weight.attribute: weight for weight in (*MODEL_WEIGHTS, *LAYER_WEIGHTS)}
Parts = dict[str, tuple[lora.Adapter, ...]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of a whole model.

    Args:
        parts: Hugging Face key of a weight -> what is added to its products.
        config: what PEFT says of it; None for one in KerasHub's form.
    """

    parts: Parts
    config: LoraConfig | None

    def count(self) -> int:
        """Numbers in its factors."""
        return sum(part.a.size + part.b.size for parts in self.parts.values() for part in parts)

    def summary(self) -> dict[str, Any]:
        names = {key.removesuffix(".weight").rpartition(".")[2] for key in self.parts}
        ranks = {rank(part) for parts in self.parts.values() for part in parts}
        return {"modules": sorted(names), "ranks": sorted(ranks), "parameters": self.count()}


def rank(part: lora.Adapter) -> int:
    """R, the narrow axis of its factors."""
    return part.b.shape[0] if isinstance(part, lora.HeadAdapter) else part.b.shape[1]


def from_peft(
    name: str, config: BloomConfig, settings: LoraConfig, pairs: Mapping[str, tuple[Array, Array]], dtype: DType
) -> Adapter:
    """An adapter in PEFT's form from A and B of each weight; `dtype` is the one in which the factors are kept."""
    rows = settings.targets(config)

    def part(key: str, a: Array, b: Array) -> lora.Adapter:
        scale, a, b = settings.scale(key), cast(a, dtype), cast(b, dtype)
        if key.startswith(EMBEDDING):
            return lora.EmbeddingAdapter(name, scale, 0.0, a, b)
        return lora.LinearAdapter(name, scale, settings.lora_dropout, a, b, rows[key].shape(config))

    return Adapter({key: (part(key, a, b),) for key, (a, b) in pairs.items()}, settings)


def from_keras(
    name: str, config: BloomConfig, kernels: Mapping[tuple[int, str], tuple[Array, Array]], dtype: DType
) -> Adapter:
    """An adapter from KerasHub's lora_kernel_a and lora_kernel_b of each dense layer. Its scale, alpha / rank, is 1."""
    parts: Parts = {}
    for (layer, dense), (kernel_a, kernel_b) in kernels.items():
        row = ROWS[DENSE_LAYERS[dense]]
        a, b = cast(kernel_a, dtype), cast(kernel_b, dtype)
        part: lora.Adapter
        if row.attribute == "qkv_weight":
            part = lora.HeadAdapter(name, 1.0, 0.0, a, b, lora.PROJECTIONS.index(dense.removesuffix("_dense")))
        else:
            part = lora.LinearAdapter(name, 1.0, 0.0, a.T.copy(), b.T.copy(), row.shape(config))
        key = layer_key(layer, row)
        parts[key] = (*parts.get(key, ()), part)
    return Adapter(parts, None)


def new_peft(name: str, config: BloomConfig, settings: LoraConfig, seed: int, dtype: DType) -> Adapter:
    """A fresh adapter, initialised as PEFT does: A uniform within 1 / sqrt(N), B zero; of the embedding, A zero, B normal."""
    rng = np.random.default_rng(seed)

    def pair(key: str, weight: Weight) -> tuple[Array, Array]:
        rows, columns = weight.hf_shape(config)
        r = settings.rank(key)
        if key.startswith(EMBEDDING):
            return np.zeros((r, rows), dtype), cast(rng.standard_normal((columns, r)), dtype)
        bound = 1.0 / math.sqrt(columns)
        return cast(rng.uniform(-bound, bound, (r, columns)), dtype), np.zeros((rows, r), dtype)

    pairs = {key: pair(key, weight) for key, weight in settings.targets(config).items()}
    return from_peft(name, config, settings, pairs, dtype)


def new_keras(name: str, config: BloomConfig, r: int, targets: tuple[str, ...], seed: int, dtype: DType) -> Adapter:
    """A fresh adapter, initialised as Keras does: A uniform within sqrt(6 / its inputs), B zero."""
    rng = np.random.default_rng(seed)

    def pair(dense: str) -> tuple[Array, Array]:
        a, b = kernel_shapes(config, dense, r)
        bound = math.sqrt(6.0 / math.prod(a[:-1]))
        return cast(rng.uniform(-bound, bound, a), dtype), np.zeros(b, dtype)

    layers = range(config.num_layers)
    return from_keras(name, config, {(i, dense): pair(dense) for i in layers for dense in targets}, dtype)
