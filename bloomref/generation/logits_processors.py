"""What changes the scores of the next token before one is chosen, in transformers' order: bias, repetition, n-grams."""

from collections.abc import Sequence

import numpy as np

from bloomref.generation.options import GenerationOptions
from bloomref.shapes import Array, Float


class Processors:
    """The processors that `options` asks for, as one function."""

    def __init__(self, options: GenerationOptions) -> None:
        bias = options.logit_bias or {}
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias_values = np.fromiter(bias.values(), np.float64, len(bias))
        self._penalty = float(options.repetition_penalty)
        self._ngram_size = options.no_repeat_ngram_size

    def __call__(self, scores: Float[Array, " V"], history: Sequence[int]) -> Float[Array, " V"]:
        """The scores of one sequence, processed; `history` is its real tokens, prompt and continuation."""
        scores = scores.copy()
        scores[self._bias_ids] += self._bias_values
        penalize_repetition(scores, history, self._penalty)
        forbid_repeated_ngrams(scores, history, self._ngram_size)
        return scores


def penalize_repetition(scores: Float[Array, " V"], history: Sequence[int], penalty: float) -> None:
    """In place: scores of tokens in `history` are divided by the penalty if positive, else multiplied by it."""
    if penalty != 1.0 and history:
        seen = np.unique(np.asarray(history, np.int64))
        values = scores[seen]
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)


def forbid_repeated_ngrams(scores: Float[Array, " V"], history: Sequence[int], size: int) -> None:
    """In place: -inf for every token that would complete an n-gram that is in `history` already."""
    if size == 0 or len(history) < size:
        return
    ids = np.asarray(history, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)
    prefix = ids[len(ids) - size + 1 :]
    scores[windows[(windows[:, :-1] == prefix).all(axis=1), -1]] = -np.inf
