"""One token from the scores of its sequence: the most likely, or a seeded draw from a truncated distribution."""

from collections.abc import Sequence

import numpy as np

from bloomref.generation import shortlist
from bloomref.generation.options import GenerationOptions
from bloomref.generation.partial_selection import Sums, exponential_sums
from bloomref.generation.row_scores import Scores
from bloomref.shapes import Array, Float, Int


def argmax(scores: Float[Array, " V"]) -> int:
    """Id of the highest score; the lowest id among equal scores (GEN-1)."""
    return int(np.argmax(scores))


def softmax(scores: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """Probabilities, in float64."""
    scores = scores.astype(np.float64, copy=False)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(scores: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """Natural logarithms of the probabilities, in float64."""
    scores = scores.astype(np.float64, copy=False)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k(scores: Float[Array, " V"], k: int) -> Float[Array, " V"]:
    """-inf below the k-th highest score; scores equal to it stay. A k above V keeps all."""
    k = min(k, scores.size)
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def top_p(scores: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """-inf except for the fewest tokens whose probabilities sum to p (nucleus sampling, arXiv:1904.09751; GEN-7).

    As in transformers, cumulative sums in ascending order are compared with 1 - p. Of equal scores the highest ids are
    removed first.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    values = scores[candidates]
    removed = int((np.cumsum(np.sort(softmax(values))) <= 1.0 - p).sum())
    removed = min(removed, values.size - 1)
    lowest = np.partition(values, removed)[removed]
    equal = np.flatnonzero(values == lowest)
    is_removed = values < lowest
    spared = equal.size - (removed - int(is_removed.sum()))
    is_removed[equal[spared:]] = True
    truncated = scores.copy()
    truncated[candidates[is_removed]] = -np.inf
    return truncated


def min_p(scores: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """-inf for tokens less than p times as likely as the likeliest one (arXiv:2407.01082)."""
    return np.where(np.exp(scores - scores.max()) < p, -np.inf, scores)


def typical(scores: Float[Array, " V"], mass: float) -> Float[Array, " V"]:
    """-inf except for the tokens of the most typical surprise (locally typical sampling, arXiv:2202.00666; GEN-13).

    Surprise is -ln p; its mean is the entropy. Tokens are taken by the distance of the two until their probabilities
    sum to `mass`, with those at the distance of the last one.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    log_probabilities = log_softmax(scores[candidates])
    probabilities = np.exp(log_probabilities)
    surprise = -np.where(probabilities > 0, log_probabilities, 0.0)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < mass).sum()), candidates.size - 1)
    truncated = scores.copy()
    truncated[candidates[distance > distance[order[last]]]] = -np.inf
    return truncated


def truncate(scores: Float[Array, " V"], options: GenerationOptions, is_nucleus: bool = False) -> Float[Array, " V"]:
    """Scores in float64 after temperature, top-k, top-p, min-p and typical-p, in transformers' order.

    Scores of -inf have no influence on the others: `choose` leaves out what would become -inf anyway.

    Args:
        is_nucleus: True if the scores are those that top-p has left.
    """
    scores = scores.astype(np.float64, copy=False)
    if options.temperature is not None:
        scores = scores / options.temperature
    if options.top_k is not None:
        scores = top_k(scores, options.top_k)
    if options.top_p is not None and not is_nucleus:
        scores = top_p(scores, options.top_p)
    if options.min_p is not None:
        scores = min_p(scores, options.min_p)
    if options.typical_p is not None and options.typical_p < 1:
        scores = typical(scores, options.typical_p)
    return scores


def uniform(seed: int, drawn: int) -> float:
    """The number in [0, 1) that decides a draw: Philox4x64-10 of the seed and the number of earlier draws (GEN-9)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=drawn)).random())


def draw(scores: Float[Array, " V"], number: float) -> int:
    """The first id, in the order of ids, whose cumulated probability exceeds `number` (GEN-10).

    Probabilities are softmax(scores), so a uniform number in [0, 1) gives an id of that distribution.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    cumulative = np.cumsum(softmax(scores[candidates]))
    index = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(candidates[min(index, candidates.size - 1)])


def choose(
    scores: Scores, options: GenerationOptions, seed: int, drawn: int, sums: Sums = exponential_sums
) -> int | None:
    """The token that greedy search or sampling chooses; None if all scores are -inf, which forbids an id.

    The token is that of `draw(truncate(scores.dense(), options), uniform(seed, drawn))`; `shortlist` makes it fast.

    Args:
        seed: seed of the row's draws, in [0, 2^64).
        drawn: number of earlier draws of the row.
        sums: sums over the vocabulary, used where no truncation leaves a few tokens.
    """
    likeliest = scores.likeliest()
    if likeliest is None or options.strategy == "greedy":
        return likeliest
    number = uniform(seed, drawn)
    token_id = shortlist.draw_from_all(scores, options, number, sums)
    if token_id is not None:
        return token_id
    (ids, values), is_nucleus = shortlist.candidates(scores, options, sums)
    return int(ids[draw(truncate(values, options, is_nucleus), number)])


def row_seeds(seed: int | None, places: Sequence[int]) -> Int[Array, " B"]:
    """One 64-bit seed a row: (seed + i) mod 2^64 at place i, so that it draws as a single prompt of that seed would.

    Args:
        seed: None for fresh entropy.
    """
    if seed is None:
        return np.random.SeedSequence().generate_state(len(places), np.uint64)
    return np.array([(seed + i) % 2**64 for i in places], np.uint64)
