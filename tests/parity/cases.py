"""Seeded BLOOMs and inputs on which implementations are compared; the same seed gives the same case everywhere.

Weights are not an initialisation: biases are not zero, gains are not one, and every value is exact in bfloat16 and
float16, so that a model of any dtype has the same weights. Half of the embeddings have a standard deviation of 2e-3,
as BLOOM's own, whose variance is below epsilon. Head counts beyond 8 that are no power of two have slopes that 16 bits
cannot hold.
"""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.cases import mask
from bloomref.params import Params, keys

HEADS = (1, 2, 3, 5, 6, 8, 9, 12, 16, 24)
PADDINGS = ("real", "left", "right", "mixed")  # the kit's names of masks; the rows of "mixed" are these in turn
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class ParityCase:
    """One model (float64 weights), one batch, and the chunks in which a cached run processes its T positions."""

    seed: int
    config: BloomConfig
    params: Params
    token_ids: np.ndarray
    is_real: np.ndarray
    padding: str
    pieces: tuple[int, ...]

    @property
    def mask(self) -> np.ndarray | None:
        """The mask for a peer. None where nothing is padded: every peer has a separate code path for that."""
        return None if self.padding == "real" else self.is_real.astype(np.int64)

    def intervals(self) -> list[tuple[int, int]]:
        stops = np.cumsum(self.pieces).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))


def case(seed: int) -> ParityCase:
    """Ten head counts in turn; one decade of seeds in seven is longer than 257 positions."""
    rng = np.random.default_rng([seed, 2211])
    long = (seed // len(HEADS)) % 7 == 3
    config = _config(rng, HEADS[seed % len(HEADS)], long)
    batch, time = int(rng.integers(1, 4)), int(rng.integers(258, 301) if long else rng.integers(1, 21))
    padding = str(rng.choice(PADDINGS))
    token_ids = rng.integers(0, config.vocabulary_size, (batch, time))
    is_real = padding_mask(rng, batch, time, padding)
    return ParityCase(seed, config, _params(rng, config), token_ids, is_real, padding, _pieces(rng, time))


def case_of(seed: int, config: BloomConfig, batch: int, time: int, padding: str) -> ParityCase:
    """A case of a given size. The weights depend on seed and config only."""
    rng, weights = np.random.default_rng([seed, 2212]), np.random.default_rng([seed, 2214])
    token_ids = rng.integers(0, config.vocabulary_size, (batch, time))
    is_real = padding_mask(rng, batch, time, padding)
    return ParityCase(seed, config, _params(weights, config), token_ids, is_real, padding, _pieces(rng, time))


def with_holes(case: ParityCase) -> ParityCase:
    """The same case, each row of which has one or more padded positions between real ones."""
    rng = np.random.default_rng([case.seed, 2213])
    is_real = case.is_real.copy()
    for row in is_real:
        inside = np.flatnonzero(row)[1:-1]
        row[rng.choice(inside, size=max(1, len(inside) // 3), replace=False)] = False
    return replace(case, is_real=is_real, padding="holes")


def padding_mask(rng: Rng, batch: int, time: int, padding: str) -> np.ndarray:
    """True where a token is real.

    Rows differ, at least one token is real in each, and row 0 of a mixed batch is full.
    """
    kinds = [PADDINGS[index % 3] if padding == "mixed" else padding for index in range(batch)]
    return np.concatenate([mask(rng, kind, 1, time) for kind in kinds])


def _config(rng: Rng, num_heads: int, long: bool) -> BloomConfig:
    widths = [k for k in (1, 2, 3, 4, 5, 8, 10, 80, 96) if num_heads * k <= (48 if long or num_heads > 2 else 192)]
    hidden_dim = num_heads * int(rng.choice(widths))
    return BloomConfig(
        vocabulary_size=int(rng.integers(5, 98)),
        num_layers=int(rng.integers(1, 4)),
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=4 * hidden_dim,
        layer_norm_epsilon=float(rng.choice([1e-12, 1e-6, 1e-5, 1e-3])),
        apply_residual_connection_post_layernorm=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(3)),
    )


def _params(rng: Rng, config: BloomConfig) -> Params:
    embedding_std = (2e-3, 1.0)[rng.integers(2)]

    def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        if len(shape) == 1:
            return 0.3 * values + (("ln_f" in key or "layernorm" in key) and key.endswith("weight"))
        return values * (embedding_std if "embeddings" in key else 1.2 / np.sqrt(shape[1]))

    arrays = {key: exact_in_16_bits(draw(key, weight.hf_shape(config))) for key, weight in keys(config)}
    return Params.from_named(config, arrays)


def exact_in_16_bits(values: np.ndarray) -> np.ndarray:
    """The nearby float64 values that bfloat16 and float16 both hold."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float64)


def _pieces(rng: Rng, time: int) -> tuple[int, ...]:
    """A prefill, sometimes in two pieces, then up to four single steps."""
    steps = min(int(rng.integers(1, 5)), time - 1)
    prefill = time - steps
    cut = int(rng.integers(0, prefill))
    return tuple(size for size in (cut, prefill - cut, *[1] * steps) if size)
