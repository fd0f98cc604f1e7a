"""Log-likelihoods of given tokens, and the measures derived from them: perplexity, bits per byte."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bloomref.generation.decoder import finite_logits, forbid
from bloomref.generation.prompts import Prompt, right_pad
from bloomref.generation.sampling import log_softmax
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Bool, Float

# Large enough for efficient matrix products, small enough for the temporaries.
_POSITIONS_AT_ONCE = 4096
_LOGITS_AT_ONCE = 2**24


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

    def to_dict(self) -> dict[str, Any]:
        """Fields and measures, JSON-compatible: a measure that is not finite is None."""
        measures = {name: getattr(self, name) for name in ("log_likelihood", "perplexity", "bits_per_byte")}
        finite = {name: x if x is not None and math.isfinite(x) else None for name, x in measures.items()}
        return finite | asdict(self)

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


@dataclass(frozen=True)
class Scored:
    """Tokens to score: those of `token_ids` from index `start` >= 1 on, each given all before it."""

    token_ids: Sequence[int]
    start: int


def score(
    engine: Engine,
    items: Sequence[Scored],
    forbidden: Bool[Array, " V"],
    count_bytes: Callable[[Sequence[int]], int | None],
) -> list[Score]:
    """Score of every item, in order. Items of similar length share a batch, without influence on each other.

    Raises:
        BadWeights: when a logit is NaN or infinite.
    """
    scores: dict[int, Score] = {}
    for group in _groups(items):
        batch = right_pad([Prompt.of(items[i].token_ids) for i in group], 0)
        hidden = engine.hidden(batch)
        for row, i in enumerate(group):
            scores[i] = _score(engine, items[i], hidden[row], forbidden, count_bytes)
    return [scores[i] for i in range(len(items))]


def _score(
    engine: Engine,
    item: Scored,
    hidden: Float[Array, "T D"],
    forbidden: Bool[Array, " V"],
    count_bytes: Callable[[Sequence[int]], int | None],
) -> Score:
    targets, forbidden_ids = np.asarray(item.token_ids[item.start :], np.int64), np.flatnonzero(forbidden)
    states = hidden[item.start - 1 : len(item.token_ids) - 1]
    log_probs: list[float] = []
    is_greedy = True
    chunk_size = max(1, _LOGITS_AT_ONCE // engine.config.vocabulary_size)
    for start in range(0, len(targets), chunk_size):
        chunk = slice(start, start + chunk_size)
        logits = finite_logits(engine, partial(engine.logits, states[None, chunk]))[0]
        expected = targets[chunk]
        log_probs += [float(x) for x in log_softmax(logits)[np.arange(len(expected)), expected]]
        is_greedy &= bool((forbid(logits, forbidden_ids).argmax(axis=-1) == expected).all())
    ids = tuple(int(token_id) for token_id in targets)
    return Score(ids, tuple(log_probs), is_greedy, count_bytes(ids))


def _groups(items: Sequence[Scored]) -> list[list[int]]:
    """Indices of the items, shortest first, in groups of at most _POSITIONS_AT_ONCE padded positions."""
    groups: list[list[int]] = []
    for i in sorted(range(len(items)), key=lambda i: len(items[i].token_ids)):
        if groups and (len(groups[-1]) + 1) * len(items[i].token_ids) <= _POSITIONS_AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
