"""Log-likelihoods of given tokens, and the measures derived from them: perplexity, bits per byte."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bloomref.errors import Unsupported, describe
from bloomref.generation.decoder import forbid
from bloomref.generation.prompts import Prompt, by_length, right_pad
from bloomref.generation.sampling import log_softmax
from bloomref.generation.score_options import DEFAULT_WINDOW, ScoreOptions
from bloomref.generation.windows import Scored, windows
from bloomref.runtime.engine import Engine
from bloomref.runtime.finite_logits import finite_logits
from bloomref.runtime.prefix_states import load_prefix
from bloomref.shapes import Array, Bool, Float, Int

LONGEST_CONTEXT = 16384
"""Tokens of a text that is one context without being asked for: the time of attention grows by their square."""
# large enough for efficient matrix products, small enough for the temporaries
_LOGITS_AT_ONCE = 2**24
_PAIRS_AT_ONCE = 2**24
"""Pairs of a query and a key, over all rows and heads of one piece: the reference stores a score of each."""
_POSITIONS_AT_LEAST = 64
"""Positions of a piece, since every piece reads all weights."""


@dataclass(frozen=True)
class Score:
    """Likelihood of tokens under a model. Logarithms are natural, in float64, over the whole vocabulary."""

    token_ids: tuple[int, ...]
    """The scored tokens."""
    log_probs: tuple[float, ...]
    """ln p(token | all tokens before it), one for each scored token."""
    is_greedy: bool
    """True if greedy search would generate these tokens: each is the likeliest that is not forbidden."""
    num_bytes: int | None
    """Number of UTF-8 bytes of the scored tokens; None without a tokenizer."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """(id, ln p) of the likeliest tokens in the place of each scored token, the likeliest first; None unless asked."""

    def to_dict(self) -> dict[str, Any]:
        """Fields and measures, JSON-compatible: a measure that is not finite is None."""
        measures = {name: getattr(self, name) for name in ("log_likelihood", "perplexity", "bits_per_byte")}
        finite = {name: x if x is not None and math.isfinite(x) else None for name, x in measures.items()}
        fields = {name: getattr(self, name) for name in ("is_greedy", "num_bytes")}
        lists = {"token_ids": list(self.token_ids), "log_probs": list(self.log_probs)}
        if self.top_logprobs is not None:
            lists["top_logprobs"] = [[{"id": i, "logprob": x} for i, x in row] for row in self.top_logprobs]
        return finite | lists | fields

    @property
    def log_likelihood(self) -> float:
        """Sum of the log-probabilities, in nats."""
        return math.fsum(self.log_probs)

    @property
    def perplexity(self) -> float:
        """exp(-log-likelihood / number of tokens); NaN without tokens."""
        if not self.token_ids:
            return math.nan
        try:
            return math.exp(-self.log_likelihood / len(self.token_ids))
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """-log2-likelihood / number of bytes; None if that number is unknown, NaN if it is 0."""
        if self.num_bytes is None:
            return None
        return -self.log_likelihood / (math.log(2) * self.num_bytes) if self.num_bytes else math.nan


@dataclass(frozen=True, eq=False)
class Scoring:
    """Scores texts by the options of one call.

    Args:
        options: windows, and the number of likeliest tokens.
        forbidden: ids that greedy search would not generate.
        count_bytes: number of UTF-8 bytes of tokens, or None if it is unknown.
        report: called with the number of tokens that have been scored since the last call.
    """

    options: ScoreOptions
    forbidden: Bool[Array, " V"]
    count_bytes: Callable[[Sequence[int]], int | None]
    report: Callable[[int], object]

    def score(self, engine: Engine, items: Sequence[Scored]) -> list[Score]:
        """Score of every item, in order. Windows of similar length share a batch, without influence on each other.

        Raises:
            BadWeights: when a logit is NaN or infinite; Unsupported: when a context is too long.
        """
        for item in items:
            if self.options.is_whole and len(item.token_ids) > LONGEST_CONTEXT:
                raise _too_long(engine, item, f"at most {LONGEST_CONTEXT} tokens without a window")
        owners = [(i, window) for i, item in enumerate(items) for window in windows(item, self.options)]
        parts: dict[int, _Part] = {}
        for group in by_length([window.token_ids for _, window in owners]):
            members = [owners[i][1] for i in group]
            try:
                parts |= zip(group, self._group(engine, members), strict=True)
            except MemoryError:
                raise _too_long(engine, members[-1], "a context that fits into memory") from None
        merged = [_Part() for _ in items]
        for i, (owner, _) in enumerate(owners):
            merged[owner].extend(parts[i])
        return [self._as_score(part) for part in merged]

    def _group(self, engine: Engine, members: Sequence[Scored]) -> list["_Part"]:
        """One forward pass over a batch of windows, piece by piece, which bounds its temporaries."""
        batch = right_pad([Prompt.of(window.token_ids) for window in members], 0)
        rows, time = batch.token_ids.shape
        cache = engine.new_cache(rows, time)
        piece = max(_POSITIONS_AT_LEAST, _PAIRS_AT_ONCE // (rows * time * engine.config.num_heads))
        parts = [_Part() for _ in members]
        first_needed = min(window.start for window in members) - 1
        prefix = self.options.prefix
        copied = 0 if prefix is None else load_prefix(engine, cache, batch, prefix, first_needed)
        for begin in range(copied, time, piece):
            span = slice(begin, begin + piece)
            hidden = engine.extend(cache, begin, batch.token_ids[:, span], batch.is_real[:, span])
            for row, window in enumerate(members):
                first, end = max(window.start - 1, begin), min(len(window.token_ids) - 1, begin + hidden.shape[1])
                targets = window.token_ids[first + 1 : end + 1]
                self._add(engine, parts[row], hidden[row, first - begin : end - begin], targets)
                self.report(len(targets))
        return parts

    def _add(self, engine: Engine, part: "_Part", states: Float[Array, "T D"], targets: Int[Array, " T"]) -> None:
        """Add the tokens that these hidden states predict."""
        forbidden_ids = np.flatnonzero(self.forbidden)
        chunk_size = max(1, _LOGITS_AT_ONCE // engine.config.vocabulary_size)
        for begin in range(0, len(targets), chunk_size):
            chunk = slice(begin, begin + chunk_size)
            logits = finite_logits(engine, partial(engine.logits, states[None, chunk]))[0]
            expected, log_probs = targets[chunk], log_softmax(logits)
            part.token_ids += expected.tolist()
            part.log_probs += log_probs[np.arange(len(expected)), expected].tolist()
            part.top += (
                [likeliest(row, self.options.top_logprobs) for row in log_probs] if self.options.top_logprobs else []
            )
            part.is_greedy &= bool((forbid(logits, forbidden_ids).argmax(axis=-1) == expected).all())

    def _as_score(self, part: "_Part") -> Score:
        ids = tuple(part.token_ids)
        top = tuple(part.top) if self.options.top_logprobs else None
        return Score(ids, tuple(part.log_probs), part.is_greedy, self.count_bytes(ids), top)


def likeliest(log_probs: Float[Array, " V"], count: int) -> tuple[tuple[int, float], ...]:
    """(id, ln p) of the likeliest tokens, the likeliest first; of equal ones, the lowest id first (SCO-8)."""
    count = min(count, len(log_probs))
    candidates = np.flatnonzero(log_probs >= np.partition(log_probs, -count)[-count])
    order = candidates[np.lexsort((candidates, -log_probs[candidates]))][:count]
    return tuple((int(token_id), float(log_probs[token_id])) for token_id in order)


@dataclass
class _Part:
    """The score of an item, window by window."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    is_greedy: bool = True

    def extend(self, other: "_Part") -> None:
        self.token_ids += other.token_ids
        self.log_probs += other.log_probs
        self.top += other.top
        self.is_greedy &= other.is_greedy


def _too_long(engine: Engine, item: Scored, expected: str) -> Unsupported:
    count, config = len(item.token_ids), engine.config
    gigabytes = 2 * config.num_layers * count * config.hidden_dim * engine.policy.compute_dtype.itemsize / 1e9
    got = f"{count}: keys and values of {gigabytes:.3g} GB, {count**2 / 2:.1e} pairs in each head of each layer"
    hint = f"score it in windows, window={DEFAULT_WINDOW} (--window {DEFAULT_WINDOW})"
    if expected.endswith("without a window"):
        hint += f", or as one context, window={count}"
    return Unsupported(describe(item.name, expected, got, hint))
