"""The scores of one sequence: the array of the model, and a few scores that were changed.

Logits of BLOOM are 250,880 float32 numbers a row. Scores are float64, so that no rounding of a choice adds to that of
the model; only the few that are looked at are converted.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from bloomref.generation import partial_selection
from bloomref.shapes import Array, Float, Int

NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Scores:
    """The score of an id is (plain - peak) - log_total in float64, and for `ids` the number in `values`.

    With the largest logit as `peak` and ln of the sum of exp(logit - peak) as `log_total`, scores are
    log-probabilities; with zeros, the logits themselves.

    Args:
        plain: (V,) in the accumulation dtype, -inf at `ids` and where forbidden.
        ids: in ascending order.
        values: of the same length.
    """

    plain: Float[Array, " V"]
    peak: float = 0.0
    log_total: float = 0.0
    ids: Int[Array, " N"] = field(default_factory=lambda: NO_IDS)
    values: Float[Array, " N"] = field(default_factory=lambda: np.empty(0))

    @classmethod
    def as_log_probabilities(cls, logits: Float[Array, " V"], sums: partial_selection.Sums) -> Self:
        """Natural logarithms of softmax(logits). The array is used, not copied."""
        return cls(logits, float(logits.max()), float(np.log(sums(logits, 1.0).sum())))

    def of(self, ids: Int[Array, " N"]) -> Float[Array, " N"]:
        """Scores of ids that were not changed."""
        return (self.plain[ids].astype(np.float64) - self.peak) - self.log_total

    def dense(self) -> Float[Array, " V"]:
        """All scores, in a new array."""
        scores = (self.plain.astype(np.float64) - self.peak) - self.log_total
        scores[self.ids] = self.values
        return scores

    def likeliest(self) -> int | None:
        """Id of the highest score, the lowest id among equal ones (GEN-1); None if all are -inf."""
        token_id = int(self.plain.argmax())
        value = float(self.of(np.array([token_id]))[0])
        if self.values.size:
            best = int(self.values.argmax())
            changed, its_id = float(self.values[best]), int(self.ids[best])
            if changed > value or (changed == value and its_id < token_id):
                token_id, value = its_id, changed
        return None if value == -np.inf else token_id

    def largest(self) -> float:
        """The highest score."""
        return float(max(self._largest_plain(), self.values.max(initial=-np.inf)))

    def _largest_plain(self) -> float:
        return float((np.float64(self.plain.max()) - self.peak) - self.log_total)

    def block_sums(self, temperature: float, sums: partial_selection.Sums) -> Float[Array, " N"]:
        """exp((score - highest score) / temperature), summed over each block of `partial_selection.BLOCK` ids."""
        largest, plain_largest = self.largest(), self._largest_plain()
        totals = np.zeros(-(-self.plain.size // partial_selection.BLOCK))
        if plain_largest > -np.inf:
            totals += sums(self.plain, temperature) * np.exp((plain_largest - largest) / temperature)
        weights = np.exp((self.values - largest) / temperature)
        return totals + np.bincount(self.ids // partial_selection.BLOCK, weights, totals.size)

    def highest(self, count: int, spread: float = 0.0) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
        """Ids, ascending, and scores: at least the `count` highest above -inf, and all that may equal the lowest.

        Args:
            spread: largest size of a number that is still added to the scores, see `partial_selection.highest`.
        """
        spread += abs(self.peak) + abs(self.log_total)
        return self._with_changed(partial_selection.highest(self.plain, count, spread))

    def at_least(self, threshold: float) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
        """Ids, ascending, and scores: at least all that are not below a score, and those that were changed."""
        bound = threshold + self.log_total + self.peak
        slack = partial_selection.ROUNDING * (abs(threshold) + abs(self.log_total) + abs(self.peak))
        lowest = np.nextafter(self.plain.dtype.type(bound - slack), self.plain.dtype.type(-np.inf))
        return self._with_changed(partial_selection.at_least(self.plain, lowest))

    def _with_changed(self, plain_ids: Int[Array, " N"]) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
        ids = np.concatenate([plain_ids, self.ids])
        values = np.concatenate([self.of(plain_ids), self.values])
        possible = values > -np.inf  # a changed id is -inf in `plain`
        order = np.argsort(ids[possible], kind="stable")
        return ids[possible][order], values[possible][order]
