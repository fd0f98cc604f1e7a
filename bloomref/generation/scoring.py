"""Log-likelihoods of given tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bloomref.generation.decoder import finite
from bloomref.generation.prompts import Prompt, right_pad
from bloomref.generation.sampling import log_softmax
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Bool, Float

# Enough for the products to be efficient, few enough for the temporaries to stay small.
_POSITIONS_AT_ONCE = 4096
_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Score:
    """How likely a model finds some tokens. Logarithms are natural, in float64, over the whole vocabulary."""

    token_ids: tuple[int, ...]
    """The tokens that were predicted."""
    log_probs: tuple[float, ...]
    """ln p(token | everything before it), for each of them."""
    is_greedy: bool
    """Whether each is the most likely of the tokens that may be generated: greedy generation would say the same."""
    num_bytes: int | None
    """UTF-8 bytes of these tokens; None when no tokenizer is at hand."""

    def to_dict(self) -> dict[str, Any]:
        """Fields and measures, JSON-compatible: a measure that is no finite number is None."""
        measures = {name: getattr(self, name) for name in ("log_likelihood", "perplexity", "bits_per_byte")}
        finite = {name: x if x is not None and math.isfinite(x) else None for name, x in measures.items()}
        return finite | asdict(self)

    @property
    def log_likelihood(self) -> float:
        """The sum of the log-probabilities."""
        return math.fsum(self.log_probs)

    @property
    def perplexity(self) -> float:
        """exp(- log-likelihood / number of tokens); NaN without tokens."""
        if not self.token_ids:
            return math.nan
        try:
            return math.exp(-self.log_likelihood / len(self.token_ids))
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """- log2-likelihood / number of bytes; None when the bytes are unknown, NaN when there are none."""
        if self.num_bytes is None:
            return None
        return -self.log_likelihood / (math.log(2) * self.num_bytes) if self.num_bytes else math.nan


@dataclass(frozen=True)
class Scored:
    """What is to be scored: the tokens of `token_ids` from index `start` >= 1 on, each given all before it."""

    token_ids: Sequence[int]
    start: int


def score(
    engine: Engine,
    items: Sequence[Scored],
    forbidden: Bool[Array, " V"],
    count_bytes: Callable[[Sequence[int]], int | None],
) -> list[Score]:
    """The score of every item, in order. Items of like length share a batch; none influences another.

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
    targets = np.asarray(item.token_ids[item.start :], np.int64)
    states = hidden[item.start - 1 : len(item.token_ids) - 1]
    log_probs: list[float] = []
    is_greedy = True
    step = max(1, _LOGITS_AT_ONCE // engine.config.vocabulary_size)
    for at in range(0, len(targets), step):
        wanted = targets[at : at + step]
        piece = states[None, at : at + step]
        logits = finite(engine, partial(engine.logits, piece))[0]
        log_probs += [float(x) for x in log_softmax(logits)[np.arange(len(wanted)), wanted]]
        logits[:, forbidden] = -np.inf
        is_greedy &= bool((logits.argmax(axis=-1) == wanted).all())
    ids = tuple(int(token_id) for token_id in targets)
    return Score(ids, tuple(log_probs), is_greedy, count_bytes(ids))


def _groups(items: Sequence[Scored]) -> list[list[int]]:
    """Indices of the items, shortest first, in groups of few enough padded positions."""
    groups: list[list[int]] = []
    for i in sorted(range(len(items)), key=lambda i: len(items[i].token_ids)):
        if groups and (len(groups[-1]) + 1) * len(items[i].token_ids) <= _POSITIONS_AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
