"""A case: a model and an input, on which an implementation is tested.

Weights are exact in float32, float16 and bfloat16, so that every dtype has the same model (or, on request, exact in
float32 only). No weight is neutral: biases are drawn around 0 and LayerNorm weights around 1, never exactly there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.representable import snap
from bloomref.lora.adapter import Adapter
from bloomref.params import Params, Weight
from bloomref.shapes import Array, Bool, Int

MASKS = ("real", "left", "right", "holes", "padding row")
"""Kinds of masks: no padding, padding before the text, after it, inside it, and every other row all padding."""

TO_RESIDUAL = ("attn_out_bias", "mlp_down_bias")
"""The biases that are added to the residual."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """Arrays of a case that are not drawn, such as those of a preset or of a vector. Equal if all bytes are.

    Args:
        params: weights.
        token_ids, is_real: (B, T) the input and its mask, True at tokens.
        labels: (B, T) of the loss, -100 where a token does not count.
    """

    params: Params | None = None
    token_ids: Int[Array, "B T"] | None = None
    is_real: Bool[Array, "B T"] | None = None
    labels: Int[Array, "B T"] | None = None

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the weights; "" if they are drawn."""
        return "" if self.params is None else _digest([array for _, _, array in self.params.named()])

    @cached_property
    def digest(self) -> str:
        """Digest of all arrays."""
        return self.weights_digest + _digest([self.token_ids, self.is_real, self.labels])

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Arrays) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)


def _digest(arrays: Sequence[Array | None]) -> str:
    """Digest of the dtypes, shapes and bytes of arrays."""
    digest = blake2b(digest_size=16)
    for array in arrays:
        digest.update(b"none" if array is None else f"{array.dtype} {array.shape}".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Case:
    """Parameters that determine a model and an input. Arrays are computed on first use.

    Args:
        config: config of the model.
        seed: seed of weights, token ids and mask.
        batch, time: shape of the input.
        kind: kind of the mask, one of `MASKS`.
        gain: scale of the weight matrices; 1 keeps activations at about 1.
        qk_gain: additional scale of the query and key weights.
        embedding_std: standard deviation of the embedding; below 3e-3 its variance is below epsilon, as in the
            published models.
        offset: mean of the embedding, as a multiple of its standard deviation, and of the biases that are added to the
            residual. At 100 and more, layer norm loses its digits unless it subtracts the mean before squaring.
        cuts: positions at which a run over a cache is divided into calls.
        flags: tags in addition to those that follow from the other parameters (`conformance.tags`).
        name: name in reports; for fixed cases.
        weights: narrowest dtype in which the weights are exact: "bfloat16", or "float32" for a case without 16-bit
            dtypes.
        lora: a LoRA adapter on the model; `params` are the weights without it.
        arrays: arrays that take the place of drawn ones.
    """

    config: BloomConfig
    seed: int = 0
    batch: int = 2
    time: int = 6
    kind: str = "real"
    gain: float = 1.0
    qk_gain: float = 1.0
    embedding_std: float = 1.0
    offset: float = 0.0
    cuts: tuple[int, ...] = ()
    flags: frozenset[str] = field(default_factory=frozenset)
    name: str = ""
    weights: str = "bfloat16"
    lora: Lora | None = None
    arrays: Arrays | None = None

    @property
    def model_key(self) -> tuple[object, ...]:
        """Everything that determines the weights and the adapter: models of equal keys are equal."""
        digest = self.arrays.weights_digest if self.arrays else ""
        scales = (self.gain, self.qk_gain, self.embedding_std, self.offset)
        drawn = () if digest else (self.seed, *scales, self.weights)
        return (self.config, self.lora, digest, *drawn)

    @cached_property
    def params(self) -> Params:
        """Weights in float64, exact in the dtype `weights` and in all wider dtypes."""
        if self.arrays and self.arrays.params is not None:
            return self.arrays.params
        drawn = draw_params(self.config, self.seed, self.gain, self.qk_gain, self.embedding_std, self.offset)
        return drawn.map(snap if self.weights == "bfloat16" else lambda x: x.astype(np.float32).astype(np.float64))

    @cached_property
    def adapter(self) -> Adapter | None:
        """The LoRA adapter in float64, or None."""
        return None if self.lora is None else self.lora.adapter(self.config)

    @cached_property
    def token_ids(self) -> Int[Array, "B T"]:
        if self.arrays and self.arrays.token_ids is not None:
            return self.arrays.token_ids
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(0, self.config.vocabulary_size, (self.batch, self.time))

    @cached_property
    def is_real(self) -> Bool[Array, "B T"]:
        if self.arrays and self.arrays.is_real is not None:
            return self.arrays.is_real
        return mask(np.random.default_rng(self.seed + 2), self.kind, self.batch, self.time)

    @cached_property
    def counted(self) -> Bool[Array, "B T"]:
        """True for positions whose token is predicted: real positions after a real one (GRD-1)."""
        real = np.zeros_like(self.is_real)
        real[:, 1:] = self.is_real[:, 1:] & self.is_real[:, :-1]
        return real

    @cached_property
    def labels(self) -> Int[Array, "B T"]:
        """Labels of the loss: random tokens, also at padding, where they must not count, and -100 at one column in
        six."""
        if self.arrays and self.arrays.labels is not None:
            return self.arrays.labels
        rng = np.random.default_rng(self.seed + 3)
        ids = rng.integers(0, self.config.vocabulary_size, self.token_ids.shape)
        return np.where(rng.random(ids.shape) < 1 / 6, IGNORED_LABEL, ids)


def draw_params(
    config: BloomConfig,
    seed: int | np.random.Generator,
    gain: float = 1.0,
    qk_gain: float = 1.0,
    embedding_std: float = 1.0,
    offset: float = 0.0,
) -> Params:
    """Draw weights from continuous distributions, in float64, so that no bias is 0 and no LayerNorm weight is 1.

    Args:
        seed, gain, qk_gain, embedding_std, offset: as in `Case`.
    """
    rng = np.random.default_rng(seed)

    def draw(weight: Weight, key: str) -> Array:
        values = rng.standard_normal(weight.shape(config))
        if weight.attribute == "word_embedding":
            values = embedding_std * (values + offset)
        elif key.endswith("bias"):
            values = 0.3 * values + (offset if weight.attribute in TO_RESIDUAL else 0.0)
        elif weight.axes == "D":
            values = 1.0 + 0.3 * values
        elif weight.attribute != "lm_head":
            values *= gain / np.sqrt(
                config.intermediate_dim if weight.attribute == "mlp_down_weight" else config.hidden_dim
            )
            if weight.attribute == "qkv_weight":
                values[:, :2] *= qk_gain
        return values

    return Params.build(config.num_layers, config.tie_word_embeddings, draw)


def mask(rng: np.random.Generator, kind: str, batch: int, time: int) -> Bool[Array, "B T"]:
    """Draw a mask of one kind, independently for each row. Only "padding row" has rows that are all padding.

    Args:
        kind: one of `MASKS`.

    Returns:
        True at real positions.
    """
    real = np.ones((batch, time), bool)
    positions = np.arange(time)
    for row in range(batch):
        count = int(rng.integers(0, time))  # padded positions; at least one stays real
        if kind == "left":
            real[row] = positions >= count
        elif kind == "right":
            real[row] = positions < time - count
        elif kind == "holes":
            real[row, rng.choice(time, count, replace=False)] = False
        elif kind == "padding row":
            real[row] = row % 2 == 1
    return real
