"""An adapter of a whole model: the LoRA factors of each adapted weight. Clauses: LRA-4 ... LRA-12."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, cast
from bloomref.formats.keras_lora import kernel_shapes
from bloomref.formats.peft_config import EMBEDDING, LoraConfig
from bloomref.params import LAYER_WEIGHTS, MODEL_WEIGHTS, PROJECTIONS, LoraFactors, Weight, layer_key
from bloomref.shapes import Array

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
Parts = dict[str, tuple[LoraFactors, ...]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of a whole model.

    Args:
        parts: Hugging Face key of a weight -> the factors added to its products.
        config: PEFT's settings; None for an adapter in KerasHub's form.
    """

    parts: Parts
    config: LoraConfig | None

    def count(self) -> int:
        """Number of scalars in the factors."""
        return sum(part.a.size + part.b.size for parts in self.parts.values() for part in parts)

    def summary(self) -> dict[str, Any]:
        """Names of the adapted modules, ranks, number of parameters."""
        names = {key.removesuffix(".weight").rpartition(".")[2] for key in self.parts}
        ranks = {part.rank for parts in self.parts.values() for part in parts}
        return {"modules": sorted(names), "ranks": sorted(ranks), "parameters": self.count()}


def from_peft(name: str, settings: LoraConfig, pairs: Mapping[str, tuple[Array, Array]], dtype: DType) -> Adapter:
    """An adapter in PEFT's form.

    Args:
        pairs: Hugging Face key of a weight -> (A, B), of shapes (R, N) and (M, R).
        dtype: in which the factors are stored.
    """

    def part(key: str, a: Array, b: Array) -> LoraFactors:
        scale, a, b = settings.scale(key), cast(a, dtype), cast(b, dtype)
        if key.startswith(EMBEDDING):
            return LoraFactors("embedding", name, scale, 0.0, a, b)
        return LoraFactors("matrix", name, scale, settings.lora_dropout, a, b)

    return Adapter({key: (part(key, a, b),) for key, (a, b) in pairs.items()}, settings)


def from_keras(name: str, kernels: Mapping[tuple[int, str], tuple[Array, Array]], dtype: DType) -> Adapter:
    """An adapter in KerasHub's form. Its scale, alpha / rank, is 1.

    Args:
        kernels: (layer, name of its dense layer) -> (lora_kernel_a, lora_kernel_b).
        dtype: in which the factors are stored.
    """
    parts: Parts = {}
    for (layer, dense), (kernel_a, kernel_b) in kernels.items():
        row = ROWS[DENSE_LAYERS[dense]]
        a, b = cast(kernel_a, dtype), cast(kernel_b, dtype)
        if row.attribute == "qkv_weight":
            part = LoraFactors("heads", name, 1.0, 0.0, a, b, PROJECTIONS.index(dense.removesuffix("_dense")))
        else:
            part = LoraFactors("matrix", name, 1.0, 0.0, a.T.copy(), b.T.copy())
        key = layer_key(layer, row)
        parts[key] = (*parts.get(key, ()), part)
    return Adapter(parts, None)


def new_peft(name: str, config: BloomConfig, settings: LoraConfig, seed: int, dtype: DType) -> Adapter:
    """A fresh adapter with PEFT's initialisation: A uniform within 1 / sqrt(N), B zero;
    of the embedding, A zero, B normal.
    """
    rng = np.random.default_rng(seed)

    def pair(key: str, weight: Weight) -> tuple[Array, Array]:
        rows, columns = weight.hf_shape(config)
        r = settings.rank(key)
        if key.startswith(EMBEDDING):
            return np.zeros((r, rows), dtype), cast(rng.standard_normal((columns, r)), dtype)
        bound = 1.0 / math.sqrt(columns)
        return cast(rng.uniform(-bound, bound, (r, columns)), dtype), np.zeros((rows, r), dtype)

    pairs = {key: pair(key, weight) for key, weight in settings.targets(config).items()}
    return from_peft(name, settings, pairs, dtype)


def new_keras(name: str, config: BloomConfig, r: int, targets: tuple[str, ...], seed: int, dtype: DType) -> Adapter:
    """A fresh adapter with Keras's initialisation: A uniform within sqrt(6 / inputs), B zero.

    Args:
        targets: keys of `DENSE_LAYERS`, adapted in every layer.
    """
    rng = np.random.default_rng(seed)

    def pair(dense: str) -> tuple[Array, Array]:
        a, b = kernel_shapes(config, dense, r)
        bound = math.sqrt(6.0 / math.prod(a[:-1]))
        return cast(rng.uniform(-bound, bound, a), dtype), np.zeros(b, dtype)

    layers = range(config.num_layers)
    return from_keras(name, {(i, dense): pair(dense) for i in layers for dense in targets}, dtype)
