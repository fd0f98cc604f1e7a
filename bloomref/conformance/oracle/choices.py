"""The tokens that a choice may take: one where rounding cannot change it, else several. Clauses: GEN-1, GEN-7, GEN-10.

Every score may be off by an error. Weights, truncations and sums become intervals, and a token is possible if its share
of [0, 1) may contain the number of the draw.
"""

import numpy as np

from bloomref.runtime.backend import Choice
from bloomref.shapes import Array, Bool, Float

TOLERANCE = 1e-5
"""Absolute error of a cumulated probability that float32 weights explain."""
LARGEST_EXPONENT = 30.0
"""Error of a score over temperature, in nats, above which any token is possible."""


def possible(scores: Float[Array, " V"], error: float, choice: Choice, number: float) -> Bool[Array, " V"]:
    """True for each token that the choice may take.

    Args:
        scores: exact scores.
        error: largest error of a score. If 0, greedy search breaks ties by GEN-1.
        number: u of the draw (GEN-9); not used by greedy search.
    """
    allowed = np.ones(len(scores), bool) if choice.forbidden is None else ~choice.forbidden
    best = scores[allowed].max()
    if choice.temperature is None:
        among = allowed & (scores >= best - 2.0 * error)
        return among if error else among & (np.cumsum(among) == 1)
    if error / choice.temperature > LARGEST_EXPONENT:
        return allowed
    low, high = (np.where(allowed, np.exp((scores - best + e) / choice.temperature), 0.0) for e in (-error, error))
    better = allowed[:, None] & (scores[:, None] > scores + 2.0 * error)
    not_worse = allowed[:, None] & (scores[:, None] >= scores - 2.0 * error) & ~np.eye(len(scores), dtype=bool)
    k = len(scores) if choice.top_k is None else choice.top_k
    certain, open_ = allowed & (not_worse.sum(axis=0) < k), allowed & (better.sum(axis=0) < k)
    if choice.top_p < 1.0:
        above = _share(low @ better, np.where(open_, high, 0.0) @ ~better)
        at_most = _share(np.where(open_, high, 0.0) @ not_worse, np.where(certain, low, 0.0) @ ~not_worse)
        certain, open_ = certain & (at_most < choice.top_p - TOLERANCE), open_ & (above < choice.top_p + TOLERANCE)
    low, high = np.where(certain, low, 0.0), np.where(open_, high, 0.0)
    begins = _share(np.cumsum(low) - low, high.sum() - np.cumsum(high) + high)
    ends = _share(np.cumsum(high), low.sum() - np.cumsum(low))
    return open_ & (begins - TOLERANCE <= number) & (number <= ends + TOLERANCE)


def _share(part: Float[Array, " V"], rest: Float[Array, " V"]) -> Float[Array, " V"]:
    """part / (part + rest), 0 where both are 0."""
    total = part + rest
    return np.divide(part, total, out=np.zeros_like(total), where=total > 0.0)
