"""Choosing one token from its scores: the most likely, or a seeded draw from a truncated distribution."""

from collections.abc import Sequence

import numpy as np

from bloomref.generation.options import GenerationOptions
from bloomref.shapes import Array, Float, Int


def argmax(scores: Float[Array, " V"]) -> int:
    """The id of the highest score; the lowest id among equals."""
    return int(np.argmax(scores))


def softmax(scores: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(scores: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k(scores: Float[Array, " V"], k: int) -> Float[Array, " V"]:
    """-inf below the k-th highest score; what equals it stays. A k beyond the vocabulary keeps all."""
    k = min(k, scores.size)
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def top_p(scores: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """-inf but for the fewest likeliest tokens whose probabilities reach p (nucleus sampling, arXiv:1904.09751).

    As transformers, ascending sums are compared with 1 - p; equal scores leave from the highest id on.
    """
    ascending = np.lexsort((-np.arange(scores.size), scores))
    dropped = np.cumsum(softmax(scores)[ascending]) <= 1.0 - p
    dropped[-1] = False
    kept = scores.copy()
    kept[ascending[dropped]] = -np.inf
    return kept


def min_p(scores: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """-inf for tokens less than p times as likely as the likeliest (arXiv:2407.01082)."""
    probabilities = softmax(scores)
    return np.where(probabilities < p * probabilities.max(), -np.inf, scores)


def truncate(scores: Float[Array, " V"], options: GenerationOptions) -> Float[Array, " V"]:
    """Temperature, top-k, top-p, min-p: in transformers' order."""
    if options.temperature is not None:
        scores = scores / options.temperature
    if options.top_k is not None:
        scores = top_k(scores, options.top_k)
    if options.top_p is not None:
        scores = top_p(scores, options.top_p)
    if options.min_p is not None:
        scores = min_p(scores, options.min_p)
    return scores


def draw(scores: Float[Array, " V"], rng: np.random.Generator) -> int:
    """An id with the probability that its score gives it: one uniform number, inverted through the cumulative sum."""
    candidates = np.flatnonzero(scores > -np.inf)
    cumulative = np.cumsum(softmax(scores[candidates]))
    index = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(candidates[min(index, candidates.size - 1)])


def generators(seed: int | None, rows: int) -> Sequence[np.random.Generator]:
    """One generator a row; row i of a batch has that of a single prompt with `seed + i`."""
    return [np.random.default_rng(None if seed is None else seed + i) for i in range(rows)]


def row_seeds(seed: int | None, rows: int) -> Int[Array, " B"]:
    """For draws by a backend, one number of 64 bits a row, by the same rule."""
    return np.concatenate(
        [np.random.SeedSequence(None if seed is None else seed + i).generate_state(1, np.uint64) for i in range(rows)]
    )
