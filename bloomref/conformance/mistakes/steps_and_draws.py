"""Mistakes of decoding: steps, the choice of tokens, and draws. None changes an intermediate of other calls."""

from typing import Any

import numpy as np

from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.runtime.backend import Choice
from bloomref.shapes import Array

# --- steps -----------------------------------------------------------------------------------------------------------


@mistake("step-of-zeros", "returns zeros from each step", "BKD-17", first=NO_INTERMEDIATE, needs="decoding")
class StepOfZeros(InstrumentedModel):
    def step(self, caches: list[Any], token_ids: Array, is_real: Array, start: int) -> Array:
        return np.zeros_like(super().step(caches, token_ids, is_real, start))


@mistake(
    "step-not-stored",
    "does not store the keys and values of a step",
    "BKD-17",
    "KVC-1",
    first=NO_INTERMEDIATE,
    needs="decoding",
)
class StepNotStored(InstrumentedModel):
    def step(self, caches: list[Any], token_ids: Array, is_real: Array, start: int) -> Array:
        logits = super().step(caches, token_ids, is_real, start)
        for cache in caches:
            cache.keys[:, :, start], cache.values[:, :, start] = 0.0, 0.0
        return logits


@mistake(
    "step-of-the-whole-cache",
    "attends in a step to padding of the prompt",
    "BKD-17",
    "KVC-3",
    first=NO_INTERMEDIATE,
    needs="decoding padding",
)
class StepOfTheWholeCache(InstrumentedModel):
    def step(self, caches: list[Any], token_ids: Array, is_real: Array, start: int) -> Array:
        return super().step(caches, token_ids, np.ones_like(is_real), start)


# --- the choice of a token -------------------------------------------------------------------------------------------


@mistake("token-constant", "returns the same token always", "BKD-18", first=NO_INTERMEDIATE, needs="decoding")
class TokenConstant(InstrumentedModel):
    def choose(self, scores: Array, choice: Choice, row: int, n: int) -> int:  # noqa: ARG002
        return 5 % len(scores)


@mistake(
    "token-not-read",
    "chooses every token from the logits of the prompt",
    "BKD-18",
    first=NO_INTERMEDIATE,
    needs="decoding",
)
class TokenNotRead(InstrumentedModel):
    def tokens(self, token_ids: Array, is_real: Array, choice: Choice, count: int) -> Array:
        logits = self.run(token_ids, is_real)["logits"][:, -1]
        return np.array([[self.choose(x, choice, row, n) for n in range(count)] for row, x in enumerate(logits)])


@mistake("ties-to-the-highest-id", "chooses the highest of equal ids", "GEN-1", first=NO_INTERMEDIATE, needs="decoding")
class TiesToTheHighestId(InstrumentedModel):
    def best(self, scores: Array) -> int:
        return int(np.flatnonzero(scores == scores.max())[-1])


@mistake("forbidden-chosen", "chooses forbidden ids", "BKD-18", first=NO_INTERMEDIATE, needs="decoding")
class ForbiddenChosen(InstrumentedModel):
    def allowed(self, scores: Array, choice: Choice) -> Array:  # noqa: ARG002
        return scores


@mistake(
    "sampling-is-greedy", "takes the best token in place of a draw", "GEN-10", first=NO_INTERMEDIATE, needs="decoding"
)
class SamplingIsGreedy(InstrumentedModel):
    def draw(self, scores: Array, number: float) -> int:  # noqa: ARG002
        return self.best(scores)


# --- truncations -----------------------------------------------------------------------------------------------------


@mistake(
    "top-p-before-temperature",
    "applies top-k and top-p before it divides by the temperature",
    "GEN-10",
    first=NO_INTERMEDIATE,
    needs="decoding",
)
class TopPBeforeTemperature(InstrumentedModel):
    def truncated(self, scores: Array, choice: Choice) -> Array:
        assert choice.temperature is not None
        return self.top_p(self.top_k(scores, choice.top_k), choice.top_p) / choice.temperature


@mistake("top-p-before-top-k", "applies top-p before top-k", "GEN-7", "GEN-10", first=NO_INTERMEDIATE, needs="decoding")
class TopPBeforeTopK(InstrumentedModel):
    def truncated(self, scores: Array, choice: Choice) -> Array:
        assert choice.temperature is not None
        return self.top_k(self.top_p(scores / choice.temperature, choice.top_p), choice.top_k)


@mistake(
    "top-p-one-too-few", "leaves out the token that reaches top-p", "GEN-7", first=NO_INTERMEDIATE, needs="decoding"
)
class TopPOneTooFew(InstrumentedModel):
    def top_p(self, scores: Array, p: float) -> Array:
        order = np.argsort(-scores, kind="stable")
        beyond = np.cumsum(self.probabilities(scores)[order]) >= p
        beyond[0] = False
        return self.without(scores, order[beyond]) if p < 1.0 else scores


@mistake("top-k-one-more", "keeps one token more than top-k", "GEN-10", first=NO_INTERMEDIATE, needs="decoding")
class TopKOneMore(InstrumentedModel):
    def top_k(self, scores: Array, k: int | None) -> Array:
        return super().top_k(scores, None if k is None else k + 1)


# --- draws -----------------------------------------------------------------------------------------------------------


@mistake(
    "draw-in-the-order-of-scores",
    "adds the probabilities in the order of the scores, not of the ids",
    "GEN-10",
    first=NO_INTERMEDIATE,
    needs="decoding",
)
class DrawInTheOrderOfScores(InstrumentedModel):
    def draw(self, scores: Array, number: float) -> int:
        order = np.argsort(-scores, kind="stable")
        return int(order[super().draw(scores[order], number)])


@mistake(
    "draws-restarted",
    "counts the draws of each call from 0 again",
    "GEN-9",
    "BKD-18",
    first=NO_INTERMEDIATE,
    needs="decoding",
)
class DrawsRestarted(InstrumentedModel):
    def choose(self, scores: Array, choice: Choice, row: int, n: int) -> int:
        return super().choose(scores, choice, row, n - choice.drawn)


@mistake("seed-of-32-bits", "truncates seeds to 32 bits", "GEN-9", first=NO_INTERMEDIATE, needs="decoding")
class SeedOf32Bits(InstrumentedModel):
    def uniform(self, seed: int, drawn: int) -> float:
        return super().uniform(seed & (2**32 - 1), drawn)


@mistake(
    "one-seed-for-all-rows", "draws in every row by the seed of the first", "GEN-9", first=NO_INTERMEDIATE,
    needs="decoding rows",
)  # fmt: skip
class OneSeedForAllRows(InstrumentedModel):
    def choose(self, scores: Array, choice: Choice, row: int, n: int) -> int:  # noqa: ARG002
        return super().choose(scores, choice, 0, n)
