"""An adapter of a whole model: LoRA factors, and what else PEFT trains. Clauses: LRA-4 ... LRA-24."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bloomref.dtypes import DType, cast
from bloomref.formats.adapters.peft_config import EMBEDDING, LoraConfig
from bloomref.formats.adapters.peft_tensors import OTHERS, PeftTensors
from bloomref.params import (
    LAYER_WEIGHTS,
    LM_HEAD,
    MODEL_WEIGHTS,
    PROJECTIONS,
    WORD_EMBEDDING,
    LoraFactors,
    layer_key,
)
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
_VOCABULARY = (WORD_EMBEDDING.hf_key, LM_HEAD.hf_key)
Parts = dict[str, tuple[LoraFactors, ...]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of a whole model.

    Args:
        parts: Hugging Face key of a weight -> the factors added to its products.
        config: PEFT's settings; None for an adapter in KerasHub's form.
        weights: key -> array in the place of the weight, in Hugging Face's shape.
        rows: key of the embedding or the LM head -> rows in the place of its rows `token_indices`.
        magnitudes: key of a weight under DoRA -> magnitudes of its rows, of the embedding's columns.
        shifts: key of a weight -> bias of its B.
        heads: name of a tensor of a classification head -> array in its place, in a model that has such a head.
    """

    parts: Parts
    config: LoraConfig | None
    weights: Mapping[str, Array] = field(default_factory=dict)
    rows: Mapping[str, Array] = field(default_factory=dict)
    magnitudes: Mapping[str, Array] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)
    heads: Mapping[str, Array] = field(default_factory=dict)

    @property
    def replaces(self) -> tuple[str, ...]:
        """Keys of the weights that are replaced, as a whole or in rows."""
        return (*self.weights, *self.rows)

    @property
    def changes_weights(self) -> bool:
        """True if the adapter is more than factors of linear layers and of the embedding."""
        return bool(self.replaces or self.magnitudes or self.shifts or LM_HEAD.hf_key in self.parts)

    def trains(self, key: str) -> bool:
        """True if PEFT trains the weight that replaces this one: a saved module, or a bias."""
        if self.config is None:
            return False
        return self.config.saves(key) or (key.endswith(".bias") and self.config.bias != "none")

    @property
    def keeps_head(self) -> bool:
        """True if a tied LM head keeps the matrix that it had, when the embedding is replaced."""
        return self.config is not None and self.config.unties()

    def token_indices(self, key: str) -> tuple[int, ...]:
        """Ids of the `rows` of the embedding or the LM head."""
        return () if self.config is None else self.config.token_indices(key)

    def overlaps(self, other: "Adapter") -> str | None:
        """Key of a weight that both replace, as a whole or in the same row; None: they share none."""
        for key in set(self.replaces) & set(other.replaces):
            is_whole = key in self.weights or key in other.weights
            if is_whole or set(self.token_indices(key)) & set(other.token_indices(key)):
                return key
        return None

    def vocabulary_size(self, present: int) -> int:
        """V of the model that this adapter is for, at least its rows; or that of the present model."""
        table = [len(self.weights[key]) for key in _VOCABULARY if key in self.weights]
        table += [part.a.shape[1] for part in self.parts.get(WORD_EMBEDDING.hf_key, ())]
        table += [part.b.shape[0] for part in self.parts.get(LM_HEAD.hf_key, ())]
        rows = [1 + max(self.token_indices(key)) for key in self.rows]
        return table[0] if table else max([present, *rows])

    def count(self) -> int:
        """Number of scalars in the factors, and in what is replaced."""
        factors = sum(part.a.size + part.b.size for parts in self.parts.values() for part in parts)
        others = (self.weights, self.rows, self.magnitudes, self.shifts, self.heads)
        return factors + sum(array.size for arrays in others for array in arrays.values())

    def summary(self) -> dict[str, Any]:
        """Names of the adapted modules, ranks, replaced weights, number of parameters."""
        names = {key.removesuffix(".weight").rpartition(".")[2] for key in self.parts}
        ranks = {part.rank for parts in self.parts.values() for part in parts}
        summary = {"modules": sorted(names), "ranks": sorted(ranks), "parameters": self.count()}
        return summary | ({"replaced": list(self.replaces)} if self.replaces else {})


def from_peft(name: str, settings: LoraConfig, tensors: PeftTensors, dtype: DType) -> Adapter:
    """An adapter in PEFT's form.

    Args:
        tensors: of its file, in PEFT's shapes.
        dtype: in which they are stored.

    Raises:
        InvalidInput: when an expression of `alpha_pattern` needs too many steps.
    """
    scales = settings.scales({key: len(a) for key, (a, _) in tensors.pairs.items()})

    def part(key: str, a: Array, b: Array) -> LoraFactors:
        scale, a, b = scales[key], cast(a, dtype), cast(b, dtype)
        if key.startswith(EMBEDDING):
            return LoraFactors("embedding", name, scale, 0.0, a, b)
        return LoraFactors("matrix", name, scale, settings.lora_dropout, a, b)

    parts: Parts = {key: (part(key, a, b),) for key, (a, b) in tensors.pairs.items()}
    others = {kind: {key: cast(array, dtype) for key, array in getattr(tensors, kind).items()} for kind in OTHERS}
    return Adapter(parts, settings, **others)


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
