"""Logits processors, in transformers' order: bias, repetition penalty, n-gram blocking, forbidden and forced ids."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from bloomref.generation.options import GenerationOptions, as_ids
from bloomref.generation.row_scores import NO_IDS, Scores
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

    def __call__(self, scores: Scores, history: Sequence[int], prompt_length: int) -> Scores:
        """The scores of one sequence after the processors, or `scores` itself if no processor is active.

        Only the ids concerned are read and written. The array in `scores`, which has no changed ids yet, becomes -inf
        at them, in place unless it is read-only.

        Args:
            scores: logits, or log-probabilities in beam search.
            history: real tokens of the sequence, prompt and continuation.
            prompt_length: how many of them are the prompt's.
        """
        if not self.active:
            return scores
        plain = np.require(scores.plain, requirements="W")
        new_tokens = len(history) - prompt_length
        forced, ids = self._forced(history, prompt_length), self._changed(history)
        if forced.size:
            ids, values = forced, np.zeros(forced.size)
            plain[:] = -np.inf
        else:
            values = scores.of(ids)
            values[np.searchsorted(ids, self._bias_ids)] += self._bias_values
            penalize_repetition(values, np.searchsorted(ids, history).tolist(), self._penalty)
            plain[ids] = -np.inf
        banned = [self._suppressed, self._not_first] if new_tokens == 0 else [self._suppressed]
        if not forced.size:
            banned += [repeating_ids(history, self._ngram_size), completing_ids(history, self._words)]
            if new_tokens < self._min_new_tokens or len(history) < self._min_length:
                banned.append(self._stop_ids)
        never = np.concatenate(banned)
        plain[never] = -np.inf
        values[np.isin(ids, never)] = -np.inf
        return replace(scores, plain=plain, ids=ids, values=values)

    def _changed(self, history: Sequence[int]) -> Int[Array, " N"]:
        """The ids whose scores are biased or penalised, in ascending order."""
        penalized = history if self._penalty != 1.0 else ()
        return np.union1d(self._bias_ids, np.asarray(penalized, np.int64))

    def _forced(self, history: Sequence[int], prompt_length: int) -> Int[Array, " N"]:
        """The ids of which one must follow, in ascending order; none: any may."""
        if self._forced_last.size and len(history) - prompt_length == self._budget(prompt_length) - 1:
            return np.unique(self._forced_last)
        return np.unique(self._forced_first) if len(history) == 1 else NO_IDS


def penalize_repetition(scores: Float[Array, " V"], history: Sequence[int], penalty: float) -> None:
    """Divide positive scores of tokens in `history` by `penalty` and multiply negative ones by it, in place (GEN-8).

    Source: CTRL (arXiv:1909.05858).
    """
    if penalty != 1.0 and history:
        token_ids = np.unique(np.asarray(history, np.int64))
        values = scores[token_ids]
        scores[token_ids] = np.where(values < 0, values * penalty, values / penalty)


def repeating_ids(history: Sequence[int], size: int) -> Int[Array, " N"]:
    """Every id that would complete an n-gram of this size that `history` contains."""
    if size == 0 or len(history) < size:
        return NO_IDS
    ids = np.asarray(history, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)
    prefix = ids[len(ids) - size + 1 :]
    return windows[(windows[:, :-1] == prefix).all(axis=1), -1]


def completing_ids(history: Sequence[int], sequences: Sequence[Sequence[int]]) -> Int[Array, " N"]:
    """The last id of every sequence whose other ids end `history` (GEN-14)."""
    completing = [last for *start, last in sequences if list(history[len(history) - len(start) :]) == start]
    return np.array(completing, np.int64)
