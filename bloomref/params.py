"""The weights of a BLOOM, and the table of each one's shape, Hugging Face key and Keras path.

No other module names a weight's key. An entry reads: attribute, axes here, axes as Hugging Face stores it
(a group in parentheses is one stored axis), key; then the Keras path and axes. The per-head interleave of the fused
query-key-value weight shows in its axes: (H C K) rows, not three blocks (WGT-3).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import FLOAT32, DType, cast
from bloomref.errors import BadWeights
from bloomref.shapes import Array, Float
from bloomref.validation import mismatch


@dataclass(frozen=True)
class Weight:
    """One row of the table."""

    attribute: str
    axes: str
    hf_axes: str
    hf_key: str
    keras_path: str
    keras_axes: str

    def shape(self, config: BloomConfig) -> tuple[int, ...]:
        return tuple(config.sizes[letter] for letter in self.axes.split())

    def hf_shape(self, config: BloomConfig) -> tuple[int, ...]:
        return _stored_shape(self.hf_axes, config)

    def keras_shape(self, config: BloomConfig) -> tuple[int, ...]:
        return _stored_shape(self.keras_axes, config)


def _stored_shape(axes: str, config: BloomConfig) -> tuple[int, ...]:
    groups = axes.replace("(", "").replace(")", "").split(", ")
    return tuple(prod(config.sizes[letter] for letter in group.split()) for group in groups)


# fmt: off
WORD_EMBEDDING = Weight("word_embedding",      "V D", "V, D", "word_embeddings.weight",           "reversible_embedding/vars/0",  "V, D")
INPUT_WEIGHTS: tuple[Weight, ...] = (
    WORD_EMBEDDING,
    Weight("ln_embedding_weight", "D",   "D",    "word_embeddings_layernorm.weight", "layer_normalization/vars/0",   "D"),
    Weight("ln_embedding_bias",   "D",   "D",    "word_embeddings_layernorm.bias",   "layer_normalization/vars/1",   "D"),
)
LAYER_WEIGHTS: tuple[Weight, ...] = (
    Weight("ln_attn_weight",  "D",       "D",          "input_layernorm.weight",                "_pre_attention_layernorm/vars/0",              "D"),
    Weight("ln_attn_bias",    "D",       "D",          "input_layernorm.bias",                  "_pre_attention_layernorm/vars/1",              "D"),
    Weight("qkv_weight",      "H C K D", "(H C K), D", "self_attention.query_key_value.weight", "_self_attention_layer/_{C}_dense/vars/0",      "D, H, K"),
    Weight("qkv_bias",        "H C K",   "(H C K)",    "self_attention.query_key_value.bias",   "_self_attention_layer/_{C}_dense/vars/1",      "H, K"),
    Weight("attn_out_weight", "D H K",   "D, (H K)",   "self_attention.dense.weight",           "_self_attention_layer/_output_dense/vars/0",   "(H K), D"),
    Weight("attn_out_bias",   "D",       "D",          "self_attention.dense.bias",             "_self_attention_layer/_output_dense/vars/1",   "D"),
    Weight("ln_mlp_weight",   "D",       "D",          "post_attention_layernorm.weight",       "_post_attention_layernorm/vars/0",             "D"),
    Weight("ln_mlp_bias",     "D",       "D",          "post_attention_layernorm.bias",         "_post_attention_layernorm/vars/1",             "D"),
    Weight("mlp_up_weight",   "F D",     "F, D",       "mlp.dense_h_to_4h.weight",              "_mlp_intermediate_dense/vars/0",               "D, F"),
    Weight("mlp_up_bias",     "F",       "F",          "mlp.dense_h_to_4h.bias",                "_mlp_intermediate_dense/vars/1",               "F"),
    Weight("mlp_down_weight", "D F",     "D, F",       "mlp.dense_4h_to_h.weight",              "_mlp_output_dense/vars/0",                     "F, D"),
    Weight("mlp_down_bias",   "D",       "D",          "mlp.dense_4h_to_h.bias",                "_mlp_output_dense/vars/1",                     "D"),
)
OUTPUT_WEIGHTS: tuple[Weight, ...] = (
    Weight("ln_final_weight",     "D",   "D",    "ln_f.weight",                      "layer_normalization_1/vars/0", "D"),
    Weight("ln_final_bias",       "D",   "D",    "ln_f.bias",                        "layer_normalization_1/vars/1", "D"),
)
MODEL_WEIGHTS = (*INPUT_WEIGHTS, *OUTPUT_WEIGHTS)
# fmt: on
LM_HEAD = Weight("lm_head", "V D", "V, D", "lm_head.weight", "", "")
PROJECTIONS = ("query", "key", "value")  # the axis C of the fused weight


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The low-rank matrices that LoRA (arXiv:2106.09685) adds to one weight. Clauses: LRA-1 ... LRA-4.

    | kind        | weight                      | a         | b      | added to the product of x          |
    | ----------- | --------------------------- | --------- | ------ | ---------------------------------- |
    | "matrix"    | stored matrix (M, N)        | (R, N)    | (M, R) | scale x a^T b^T                    |
    | "heads"     | `qkv_weight[:, projection]` | (D, H, R) | (R, K) | scale x a[:, h] b, for each head h |
    | "embedding" | `word_embedding` (V, D)     | (R, V)    | (D, R) | scale a[:, token_ids]^T b^T        |

    Args:
        name: of the adapter that the factors belong to.
        scale: alpha / r, times the weight of the adapter in a mix.
        dropout: rate in [0, 1) at which entries of x are dropped in training; the embedding has none (LRA-9).
        projection: index into `PROJECTIONS`, for "heads".
    """

    kind: Literal["matrix", "heads", "embedding"]
    name: str
    scale: float
    dropout: float
    a: Float[Array, "*N"]
    b: Float[Array, "M N"]
    projection: int = 0

    @property
    def rank(self) -> int:
        """R, the narrow axis of both factors."""
        return self.b.shape[0] if self.kind == "heads" else self.b.shape[1]

    def key(self, weight_key: str, factor: str) -> str:
        """Name of factor "a" or "b" of a Hugging Face key: `h.0.mlp.dense_h_to_4h.lora_A.default.weight`."""
        module = weight_key.removesuffix(".weight")
        if self.kind == "heads":
            return f"{module}.{PROJECTIONS[self.projection]}.lora_kernel_{factor}.{self.name}"
        if self.kind == "embedding":
            return f"{module}.lora_embedding_{factor.upper()}.{self.name}"
        return f"{module}.lora_{factor.upper()}.{self.name}.weight"


Adapters = Mapping[str, tuple[LoraFactors, ...]]
"""Attribute of a weight -> the factors added to its products."""


@dataclass(frozen=True, eq=False)
class LayerParams:
    """The weights of one block."""

    ln_attn_weight: Float[Array, " D"]
    ln_attn_bias: Float[Array, " D"]
    qkv_weight: Float[Array, "H C K D"]
    qkv_bias: Float[Array, "H C K"]
    attn_out_weight: Float[Array, "D H K"]
    attn_out_bias: Float[Array, " D"]
    ln_mlp_weight: Float[Array, " D"]
    ln_mlp_bias: Float[Array, " D"]
    mlp_up_weight: Float[Array, "F D"]
    mlp_up_bias: Float[Array, " F"]
    mlp_down_weight: Float[Array, "D F"]
    mlp_down_bias: Float[Array, " D"]
    adapters: Adapters = field(default_factory=dict)


class Source(NamedTuple):
    """The folder of memory-mapped weights, and a state that changes with its files. Backends name caches by it."""

    folder: str
    state: str


@dataclass(frozen=True, eq=False)
class Params:
    """The weights of a whole model, all of one dtype. `lm_head` is None if the LM head is tied to the embedding."""

    word_embedding: Float[Array, "V D"]
    ln_embedding_weight: Float[Array, " D"]
    ln_embedding_bias: Float[Array, " D"]
    layers: tuple[LayerParams, ...]
    ln_final_weight: Float[Array, " D"]
    ln_final_bias: Float[Array, " D"]
    lm_head: Float[Array, "V D"] | None = None
    adapters: Adapters = field(default_factory=dict)
    source: Source | None = None

    @classmethod
    def build(cls, num_layers: int, tied: bool, get: Callable[[Weight, str], Any]) -> "Params":
        """Assemble from `get(table row, Hugging Face key without prefix)`, an array of the row's shape."""
        model: dict[str, Any] = {w.attribute: get(w, w.hf_key) for w in MODEL_WEIGHTS}
        layers = tuple(
            LayerParams(**{w.attribute: get(w, layer_key(i, w)) for w in LAYER_WEIGHTS}) for i in range(num_layers)
        )
        return cls(**model, layers=layers, lm_head=None if tied else get(LM_HEAD, LM_HEAD.hf_key))

    @classmethod
    def from_named(cls, config: BloomConfig, arrays: Mapping[str, Array]) -> "Params":
        """Assemble from arrays under their Hugging Face keys (without `transformer.`), in Hugging Face's shapes.

        Raises:
            BadWeights: a key is missing, unknown, or has a wrong shape.
        """
        expected = dict(keys(config))
        if difference := mismatch(expected, arrays):
            raise BadWeights(f"weights: expected the {len(expected)} names of this config; {difference}")

        def get(weight: Weight, key: str) -> Array:
            array = arrays[key]
            if array.shape != weight.hf_shape(config):
                raise BadWeights(f"{key}: expected shape {weight.hf_shape(config)}, got {array.shape}")
            return array.reshape(weight.shape(config))

        return cls.build(config.num_layers, config.tie_word_embeddings, get)

    def named(self) -> Iterator[tuple[str, Weight, Array]]:
        """(Hugging Face key, table row, array), in the order of the forward pass."""
        for weight in INPUT_WEIGHTS:
            yield weight.hf_key, weight, getattr(self, weight.attribute)
        for i, layer in enumerate(self.layers):
            for weight in LAYER_WEIGHTS:
                yield layer_key(i, weight), weight, getattr(layer, weight.attribute)
        for weight in OUTPUT_WEIGHTS:
            yield weight.hf_key, weight, getattr(self, weight.attribute)
        if self.lm_head is not None:
            yield LM_HEAD.hf_key, LM_HEAD, self.lm_head

    def map(self, change: Callable[[Array], Array]) -> "Params":
        """A copy with `change` applied to every array; adapters are shared."""
        arrays = {key: change(array) for key, _, array in self.named()}
        changed = Params.build(len(self.layers), self.lm_head is None, lambda _, key: arrays[key])
        layers = (replace(new, adapters=old.adapters) for new, old in zip(changed.layers, self.layers, strict=True))
        return replace(changed, layers=tuple(layers), adapters=self.adapters)

    def astype(self, dtype: DType) -> "Params":
        """The weights rounded to `dtype`; arrays that have it already are shared."""
        return self.map(lambda array: cast(array, dtype))


HF_PREFIX = "transformer."


def full_key(key: str) -> str:
    """A weight's name in checkpoints of causal language models, for its key (which has no prefix)."""
    return key if key == LM_HEAD.hf_key else HF_PREFIX + key


def layer_key(index: int, weight: Weight) -> str:
    return f"h.{index}.{weight.hf_key}"


def keys(config: BloomConfig) -> Iterator[tuple[str, Weight]]:
    """Every Hugging Face key (without `transformer.`) that a model of `config` has, with its table row."""
    for weight in MODEL_WEIGHTS:
        yield weight.hf_key, weight
    for i in range(config.num_layers):
        for weight in LAYER_WEIGHTS:
            yield layer_key(i, weight), weight
    if not config.tie_word_embeddings:
        yield LM_HEAD.hf_key, LM_HEAD


def total(config: BloomConfig, count: Callable[[Weight], int]) -> int:
    """Sum of `count` over every weight of a model, without going through its layers."""
    head = 0 if config.tie_word_embeddings else count(LM_HEAD)
    return sum(map(count, MODEL_WEIGHTS)) + config.num_layers * sum(map(count, LAYER_WEIGHTS)) + head


def count_params(config: BloomConfig) -> int:
    """Number of scalar weights. With F = 4 D and a tied head: V D + 4 D + L (12 D^2 + 13 D)."""
    return total(config, lambda weight: prod(weight.shape(config)))


def init_params(config: BloomConfig, seed: int, dtype: DType = FLOAT32) -> Params:
    """Fresh weights: matrices normal with standard deviation `initializer_range`, norms 1, biases 0; seeded."""
    rng = np.random.default_rng(seed)

    def draw(weight: Weight, key: str) -> Array:
        shape = weight.shape(config)
        if key.endswith("bias"):
            return np.zeros(shape, dtype)
        if weight.axes == "D":
            return np.ones(shape, dtype)
        values = rng.standard_normal(shape, np.float64 if dtype == np.float64 else np.float32)
        values *= config.initializer_range
        return cast(values, dtype)

    return Params.build(config.num_layers, config.tie_word_embeddings, draw)
