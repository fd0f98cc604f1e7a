"""A case: a model and an input that an implementation is asked about.

Weights are exact in float32, float16 and bfloat16 alike, so that every dtype sees the same model (or, on request, exact in float32
only); no bias is zero and no gain is one.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.representable import snap
from bloomref.lora.adapter import Adapter
from bloomref.params import Params, Weight
from bloomref.shapes import Array, Bool, Int

MASKS = ("real", "left", "right", "holes", "padding row")


@dataclass(frozen=True)
class Case:
    """Everything follows from these numbers; arrays are made when they are first asked for.

    Args:
        kind: how the mask looks, one of `MASKS`.
        gain: size of the weight matrices, relative to one that keeps activations at about one.
        qk_gain: the same for query and key, on top of `gain`.
        embedding_std: of the embedding; below 3e-3 its variance is below epsilon, as in the real models.
        cuts: where a run in pieces over a cache is cut.
        flags: what the case is there to show, beside what its numbers say (`conformance.flags`).
        weights: the widest dtype that keeps them exactly is float64; this is the narrowest: "bfloat16", or "float32" for a case
            that is asked in float32 and float64 only.
        lora: an adapter on the model; `params` are the weights without it.
    """

    config: BloomConfig
    seed: int = 0
    batch: int = 2
    time: int = 6
    kind: str = "real"
    gain: float = 1.0
    qk_gain: float = 1.0
    embedding_std: float = 1.0
    cuts: tuple[int, ...] = ()
    flags: frozenset[str] = field(default_factory=frozenset)
    name: str = ""
    weights: str = "bfloat16"
    lora: Lora | None = None

    @cached_property
    def params(self) -> Params:
        """float64, every number exact in the dtype `weights` and in all wider ones."""
        drawn = draw_params(self.config, self.seed, self.gain, self.qk_gain, self.embedding_std)
        return drawn.map(snap if self.weights == "bfloat16" else lambda x: x.astype(np.float32).astype(np.float64))

    @cached_property
    def adapter(self) -> Adapter | None:
        """What is added to the products of the weights, in float64."""
        return None if self.lora is None else self.lora.adapter(self.config)

    @cached_property
    def token_ids(self) -> Int[Array, "B T"]:
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(0, self.config.vocabulary_size, (self.batch, self.time))

    @cached_property
    def is_real(self) -> Bool[Array, "B T"]:
        return mask(np.random.default_rng(self.seed + 2), self.kind, self.batch, self.time)


def draw_params(
    config: BloomConfig,
    seed: int | np.random.Generator,
    gain: float = 1.0,
    qk_gain: float = 1.0,
    embedding_std: float = 1.0,
) -> Params:
    """Weights that hide nothing: no bias is zero, no gain is one, and at a gain of one results keep a size of about one."""
    rng = np.random.default_rng(seed)

    def draw(weight: Weight, key: str) -> Array:
        values = rng.standard_normal(weight.shape(config))
        if weight.attribute in ("word_embedding", "lm_head"):
            values *= embedding_std if weight.attribute == "word_embedding" else 1.0
        elif key.endswith("bias"):
            values *= 0.3
        elif weight.axes == "D":
            values = 1.0 + 0.3 * values
        else:
            values *= gain / np.sqrt(
                config.intermediate_dim if weight.attribute == "mlp_down_weight" else config.hidden_dim
            )
            if weight.attribute == "qkv_weight":
                values[:, :2] *= qk_gain
        return values

    return Params.build(config.num_layers, config.tie_word_embeddings, draw)


def mask(rng: np.random.Generator, kind: str, batch: int, time: int) -> Bool[Array, "B T"]:
    """A mask of one kind, another one in each row; only a "padding row" has rows without a real position."""
    real = np.ones((batch, time), bool)
    columns = np.arange(time)
    for row in range(batch):
        count = int(rng.integers(0, time))  # padded columns; at least one stays real
        if kind == "left":
            real[row] = columns >= count
        elif kind == "right":
            real[row] = columns < time - count
        elif kind == "holes":
            real[row, rng.choice(time, count, replace=False)] = False
        elif kind == "padding row":
            real[row] = row % 2 == 1
    return real
