"""Decoding by an instrumented model: steps over a cache, and the choice of tokens. Clauses: BKD-17, BKD-18, GEN-1 ...

Every decision is an overridable method. The draw is computed in Python's integers and shares no code with generation.
"""

import math
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.model.lora_hooks import LoraHooks
from bloomref.params import Params
from bloomref.runtime.backend import Choice
from bloomref.shapes import Array, Bool, Float, Int

MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
INCREMENTS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
LOW = 2**64 - 1


def uniform(seed: int, drawn: int) -> float:
    """The number in [0, 1) of a draw, by Philox4x64-10 (GEN-9)."""
    counter, key = [drawn + 1, 0, 0, 0], [seed, 0]
    for _ in range(10):
        one, two = MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]
        counter = [(two >> 64) ^ counter[1] ^ key[0], two & LOW, (one >> 64) ^ counter[3] ^ key[1], one & LOW]
        key = [(old + increment) & LOW for old, increment in zip(key, INCREMENTS, strict=True)]
    return (counter[0] >> 11) / 2**53


class DecodingHooks(LoraHooks):
    """The part of an `InstrumentedModel` that decodes: the loop of steps, and the choice of a token."""

    config: BloomConfig
    params: Params

    def new_cache(self, batch: int, capacity: int) -> Any:
        raise NotImplementedError

    def chunk(
        self, caches: list[Any], token_ids: Int[Array, "B T"], is_real: Bool[Array, "B S"], start: int
    ) -> dict[str, Array]:
        raise NotImplementedError

    # --- steps -----------------------------------------------------------------------------------

    def steps(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], start: int, capacity: int
    ) -> Float[Array, "B _ V"]:
        """Logits after each position from `start` on, one step each; the positions before are one call."""
        caches = [self.new_cache(len(token_ids), capacity) for _ in self.params.layers]
        self.chunk(caches, token_ids[:, :start], is_real[:, :start], 0)
        times = range(start, token_ids.shape[1])
        return np.concatenate([self.step(caches, token_ids[:, t : t + 1], is_real[:, : t + 1], t) for t in times], 1)

    def step(
        self, caches: list[Any], token_ids: Int[Array, "B 1"], is_real: Bool[Array, "B S"], start: int
    ) -> Float[Array, "B 1 V"]:
        """Logits after one position."""
        return self.chunk(caches, token_ids, is_real, start)["logits"]

    def tokens(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        """`count` tokens that continue each prompt, each read before the next is chosen."""
        batch, time = token_ids.shape
        caches = [self.new_cache(batch, time + count) for _ in self.params.layers]
        logits, chosen = self.chunk(caches, token_ids, is_real, 0)["logits"][:, -1], []
        for n in range(count):
            chosen.append(np.array([self.choose(scores, choice, row, n) for row, scores in enumerate(logits)]))
            is_real = np.concatenate([is_real, np.ones((batch, 1), bool)], axis=1)
            logits = self.step(caches, chosen[-1][:, None], is_real, time + n)[:, -1]
        return np.stack(chosen, axis=1)

    # --- the choice of a token -------------------------------------------------------------------

    def choose(self, scores: Float[Array, " V"], choice: Choice, row: int, n: int) -> int:
        """The n-th token of a row."""
        scores = self.allowed(scores.astype(np.float64), choice)
        if choice.temperature is None:
            return self.best(scores)
        number = self.uniform(0 if choice.seeds is None else int(choice.seeds[row]), choice.drawn + n)
        return self.draw(self.truncated(scores, choice), number)

    def allowed(self, scores: Float[Array, " V"], choice: Choice) -> Float[Array, " V"]:
        """Scores, -inf where forbidden."""
        return scores if choice.forbidden is None else np.where(choice.forbidden, -math.inf, scores)

    def best(self, scores: Float[Array, " V"]) -> int:
        return int(np.argmax(scores))

    def truncated(self, scores: Float[Array, " V"], choice: Choice) -> Float[Array, " V"]:
        """Scores after temperature, top-k and top-p, -inf where they leave a token out."""
        assert choice.temperature is not None
        return self.top_p(self.top_k(scores / choice.temperature, choice.top_k), choice.top_p)

    def top_k(self, scores: Float[Array, " V"], k: int | None) -> Float[Array, " V"]:
        order = np.argsort(-scores, kind="stable")
        return self.without(scores, order[len(order) if k is None else k :])

    def top_p(self, scores: Float[Array, " V"], p: float) -> Float[Array, " V"]:
        order = np.argsort(-scores, kind="stable")
        weights = self.probabilities(scores)[order]
        return self.without(scores, order[np.cumsum(weights) - weights >= p])

    def without(self, scores: Float[Array, " V"], token_ids: Int[Array, " N"]) -> Float[Array, " V"]:
        """Scores, -inf at these ids."""
        scores = scores.copy()
        scores[token_ids] = -math.inf
        return scores

    def probabilities(self, scores: Float[Array, " V"]) -> Float[Array, " V"]:
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    def uniform(self, seed: int, drawn: int) -> float:
        return uniform(seed, drawn)

    def draw(self, scores: Float[Array, " V"], number: float) -> int:
        """The first id whose cumulated probability exceeds the number (GEN-10)."""
        weights = self.probabilities(scores)
        exceeds = (np.cumsum(weights) > number) & (weights > 0.0)
        return int(np.argmax(exceeds)) if exceeds.any() else int(np.flatnonzero(weights)[-1])
