"""The choice of a token by its definitions, over the whole vocabulary in float64: processors, truncations, draw."""

from typing import Any

import numpy as np

from bloomref.generation.options import GenerationOptions, as_ids

Array = np.ndarray[Any, Any]


def process(options: GenerationOptions, stop_ids: set[int], scores: Array, history: list[int], length: int) -> Array:
    """The scores after the processors; `length` is that of the prompt."""
    scores, stops, new = scores.astype(np.float64), sorted(stop_ids), len(history) - length
    for token_id, bias in (options.logit_bias or {}).items():
        scores[token_id] += bias
    for token_id in set(history) if options.repetition_penalty != 1.0 else ():
        value, penalty = scores[token_id], options.repetition_penalty
        scores[token_id] = value * penalty if value < 0 else value / penalty
    size = options.no_repeat_ngram_size
    ngrams = {tuple(history[i : i + size]) for i in range(len(history) - size + 1)} if size else set()
    prefix = history[len(history) - size + 1 :] if size else []
    banned = [ngram[-1] for ngram in ngrams if list(ngram[:-1]) == prefix]
    for *start, last in options.bad_words_ids or ():
        if start and list(history[len(history) - len(start) :]) == start:
            banned.append(last)
    if stops and (new < options.min_new_tokens or len(history) < options.min_length):
        banned += stops
    scores[banned] = -np.inf
    forced = [as_ids(options.forced_bos_token_id) if len(history) == 1 else ()]
    forced.append(as_ids(options.forced_eos_token_id) if new == options.budget(length) - 1 else ())
    for ids in filter(None, forced):
        scores[:] = -np.inf
        scores[list(ids)] = 0.0
    scores[[w[0] for w in options.bad_words_ids or () if len(w) == 1 and w[0] not in stop_ids]] = -np.inf
    scores[list(options.suppress_tokens or ())] = -np.inf
    scores[list(options.begin_suppress_tokens or ()) if new == 0 else []] = -np.inf
    return scores


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def top_p(scores: Array, p: float) -> Array:
    candidates = np.flatnonzero(scores > -np.inf)
    ascending = candidates[np.lexsort((-candidates, scores[candidates]))]
    removed = np.cumsum(softmax(scores)[ascending]) <= 1.0 - p
    removed[-1] = False
    truncated = scores.copy()
    truncated[ascending[removed]] = -np.inf
    return truncated


def typical(scores: Array, mass: float) -> Array:
    probabilities = softmax(scores)
    surprise = -np.log(np.where(probabilities > 0, probabilities, 1.0))
    distance = np.where(scores > -np.inf, np.abs(surprise - (probabilities * surprise).sum()), np.inf)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < mass).sum()), scores.size - 1)
    return np.where(distance > distance[order[last]], -np.inf, scores)


def truncate(scores: Array, options: GenerationOptions) -> Array:
    scores = scores.astype(np.float64) / (1.0 if options.temperature is None else options.temperature)
    if options.top_k is not None:
        scores = np.where(scores < np.sort(scores)[-min(options.top_k, scores.size)], -np.inf, scores)
    if options.top_p is not None:
        scores = top_p(scores, options.top_p)
    if options.min_p is not None:
        probabilities = softmax(scores)
        scores = np.where(probabilities < options.min_p * probabilities.max(), -np.inf, scores)
    if options.typical_p is not None and options.typical_p < 1:
        scores = typical(scores, options.typical_p)
    return scores


def draw(scores: Array, number: float) -> int:
    cumulative = np.cumsum(softmax(scores))
    return int(np.argmax(cumulative > number * cumulative[-1]))
