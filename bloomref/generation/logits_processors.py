"""Logits processors, in transformers' order: bias, repetition penalty, n-gram blocking, forbidden and forced ids."""

from collections.abc import Collection, Sequence

import numpy as np

from bloomref.generation.options import GenerationOptions, as_ids
from bloomref.shapes import Array, Float, Int


class LogitsProcessors:
    """The logits processors that `options` activate, as one function.

    Args:
        stop_ids: the stop tokens. As in transformers, `bad_words_ids` does not forbid them.
    """

    def __init__(self, options: GenerationOptions, stop_ids: Collection[int] = ()) -> None:
        bias = options.logit_bias or {}
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias_values = np.fromiter(bias.values(), np.float64, len(bias))
        self._penalty = float(options.repetition_penalty)
        self._ngram_size = options.no_repeat_ngram_size
        words = [[int(token_id) for token_id in word] for word in options.bad_words_ids or ()]
        self._words = [word for word in words if len(word) > 1]
        single = [word[0] for word in words if len(word) == 1 and word[0] not in stop_ids]
        self._suppressed = np.array([*single, *(options.suppress_tokens or ())], np.int64)
        self._stop_ids = np.array(sorted(stop_ids), np.int64)
        self._min_new_tokens = options.min_new_tokens if stop_ids else 0
        self._min_length = options.min_length if stop_ids else 0
        self._not_first = np.array(options.begin_suppress_tokens or (), np.int64)
        self._forced_first = np.array(as_ids(options.forced_bos_token_id), np.int64)
        self._forced_last = np.array(as_ids(options.forced_eos_token_id), np.int64)
        self._budget = options.budget
        self.active = bool(
            bias
            or self._penalty != 1.0
            or self._ngram_size
            or self._words
            or self._suppressed.size
            or self._min_new_tokens
            or self._min_length
            or self._not_first.size
            or self._forced_first.size
            or self._forced_last.size
        )
        """False if `options` change no logits."""

    def each(
        self, scores: Float[Array, "N V"], histories: Sequence[Sequence[int]], prompt_length: int
    ) -> Float[Array, "N V"]:
        """Processed scores of several sequences: a copy, or `scores` itself if no processor is active."""
        if not self.active:
            return scores
        both = zip(scores, histories, strict=True)
        return np.stack([self(row, history, prompt_length) for row, history in both])

    def __call__(self, scores: Float[Array, " V"], history: Sequence[int], prompt_length: int) -> Float[Array, " V"]:
        """Processed scores of one sequence: a float64 copy, or `scores` itself if no processor is active.

        Args:
            scores: logits, or log-probabilities in beam search; not modified.
            history: real tokens of the sequence, prompt and continuation.
            prompt_length: how many of them are the prompt's.
        """
        if not self.active:
            return scores
        scores = scores.astype(np.float64)
        scores[self._bias_ids] += self._bias_values
        penalize_repetition(scores, history, self._penalty)
        forbid_repeated_ngrams(scores, history, self._ngram_size)
        forbid_sequences(scores, history, self._words)
        new_tokens = len(history) - prompt_length
        if new_tokens < self._min_new_tokens or len(history) < self._min_length:
            scores[self._stop_ids] = -np.inf
        if len(history) == 1:
            force(scores, self._forced_first)
        if self._forced_last.size and new_tokens == self._budget(prompt_length) - 1:
            force(scores, self._forced_last)
        scores[self._suppressed] = -np.inf
        if new_tokens == 0:
            scores[self._not_first] = -np.inf
        return scores


def force(scores: Float[Array, " V"], token_ids: Int[Array, " N"]) -> None:
    """Set the scores of these ids to 0 and all others to -inf, in place; no ids change nothing."""
    if token_ids.size:
        scores[:] = -np.inf
        scores[token_ids] = 0.0


def penalize_repetition(scores: Float[Array, " V"], history: Sequence[int], penalty: float) -> None:
    """Divide positive scores of tokens in `history` by `penalty` and multiply negative ones by it, in place (GEN-8).

    Source: CTRL (arXiv:1909.05858).
    """
    if penalty != 1.0 and history:
        token_ids = np.unique(np.asarray(history, np.int64))
        values = scores[token_ids]
        scores[token_ids] = np.where(values < 0, values * penalty, values / penalty)


def forbid_repeated_ngrams(scores: Float[Array, " V"], history: Sequence[int], size: int) -> None:
    """Set to -inf, in place, every token that would complete an n-gram of this size that `history` contains."""
    if size == 0 or len(history) < size:
        return
    ids = np.asarray(history, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)
    prefix = ids[len(ids) - size + 1 :]
    scores[windows[(windows[:, :-1] == prefix).all(axis=1), -1]] = -np.inf


def forbid_sequences(scores: Float[Array, " V"], history: Sequence[int], sequences: Sequence[Sequence[int]]) -> None:
    """Set to -inf, in place, the last token of every sequence whose other tokens end `history` (GEN-14)."""
    for *start, last in sequences:
        if list(history[len(history) - len(start) :]) == start:
            scores[last] = -np.inf
