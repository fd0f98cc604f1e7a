"""Hypothesis strategies for models and batches: they draw shapes, seeds and scales, never elements, so that shrinking is quick.

The sizes are those that show mistakes: head counts whose slopes are no powers of two, head widths that are no power of two,
biases that are not zero, embeddings whose variance is below epsilon, masks of every kind, rows that differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.params import Params, Weight

HEADS = (1, 2, 3, 5, 6, 8, 9, 12, 16, 24)
HEAD_DIMS = (1, 3, 5, 6)
FLOAT64 = np.dtype(np.float64)
MASKS = ("real", "left", "right", "holes", "padding row")


@dataclass(frozen=True)
class Case:
    """A float64 model, and a batch for it, made from a seed when they are first asked for: hypothesis forbids drawing at
    random while it draws, and beartype does so when it checks a tuple."""

    config: BloomConfig
    seed: int = 0
    batch: int = 2
    time: int = 6
    kind: str = "real"
    scale: float = 1.0
    embedding_std: float = 1.0

    @cached_property
    def params(self) -> Params:
        return draw_params(self.config, np.random.default_rng(self.seed), self.scale, self.embedding_std)

    @cached_property
    def token_ids(self) -> np.ndarray[Any, Any]:
        return np.random.default_rng(self.seed + 1).integers(0, self.config.vocabulary_size, (self.batch, self.time))

    @cached_property
    def is_real(self) -> np.ndarray[Any, Any]:
        return mask(np.random.default_rng(self.seed + 2), self.kind, self.batch, self.time)


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 2) -> BloomConfig:
    heads = draw(st.sampled_from(HEADS), label="heads")
    return BloomConfig(
        vocabulary_size=draw(st.integers(3, 40)),
        num_layers=draw(st.integers(0, max_layers)),
        num_heads=heads,
        hidden_dim=heads * draw(st.sampled_from(HEAD_DIMS), label="head width"),
        intermediate_dim=draw(st.integers(1, 50)),
        layer_norm_epsilon=draw(st.sampled_from((1e-5, 1e-6, 1e-3))),
        apply_residual_connection_post_layernorm=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def cases(
    draw: st.DrawFn, max_batch: int = 3, max_time: int = 9, max_layers: int = 2, kinds: Sequence[str] = MASKS
) -> Case:
    return Case(
        config=draw(configs(max_layers)),
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, max_batch)),
        time=draw(st.integers(1, max_time)),
        kind=draw(st.sampled_from(kinds)),
        scale=draw(st.sampled_from((0.3, 1.0, 3.0))),
        embedding_std=draw(st.sampled_from((1.0, 2e-3))),
    )


def draw_params(
    config: BloomConfig, rng: np.random.Generator, scale: float = 1.0, embedding_std: float = 1.0
) -> Params:
    """Weights that hide nothing: no bias is zero, no gain is one, and results keep a size of about one."""

    def draw(weight: Weight, key: str) -> np.ndarray[Any, Any]:
        shape = weight.shape(config)
        values = rng.standard_normal(shape)
        if weight.attribute == "word_embedding":
            return values * embedding_std
        if key.endswith("bias"):
            return 0.3 * values
        if weight.axes == "D":
            return 1.0 + 0.3 * values
        fan_in = config.intermediate_dim if weight.attribute == "mlp_down_weight" else config.hidden_dim
        return values * scale / np.sqrt(fan_in)

    return Params.build(config.num_layers, config.tie_word_embeddings, draw)


def mask(rng: np.random.Generator, kind: str, batch: int, time: int) -> np.ndarray[Any, Any]:
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
