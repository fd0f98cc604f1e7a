"""Monte-Carlo arithmetic: the model with a random error in every operation, as large as the rounding error of a dtype.

The spread of its results bounds the error of correct implementations, for any order of their sums.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import Arithmetic, InstrumentedModel
from bloomref.conformance.oracle.precision import TIERS, Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Bool, Float, Int

SAMPLES = 8
"""Samples for each ALiBi anchor."""
FEWEST = 4
"""Smallest number of samples, for large cases."""
ELEMENTS = 2**20
"""Approximate size of the largest array: samples run together in one batch as far as they fit."""


class Noise(Arithmetic):
    """Multiplies each result by 1 + e with e uniform in [-u, u]; a sum of k products gets the error of adding them in
    turn.

    Args:
        alike: rows in which all positions share e: equal tokens have equal rounding errors, which do not average out.
    """

    alike: Bool[Array, " B"] | None = None

    def __init__(self, tier: Tier, rng: np.random.Generator) -> None:
        self.tier = tier
        self.rng = rng

    def stored(self, x: Array) -> Array:
        return self._rounded(x, self.tier.storage, self.tier.smallest)

    def operand(self, x: Array) -> Array:
        return self.stored(x) if self.tier.products is None else self._rounded(x, self.tier.products)

    def returned(self, x: Array) -> Array:
        return x if self.tier.products is None else self.stored(x)

    def wide(self, x: Array) -> Array:
        return self._rounded(x, self.tier.accumulation)

    def score(self, x: Array) -> Array:
        return self._rounded(x, self.tier.scores, self.tier.smallest if self.tier.scores == self.tier.storage else 0.0)

    def matmul(self, a: Array, b: Array) -> Array:
        """std = u / sqrt(3) sqrt(k/2 sum(a^2 b^2) + k/3 y^2): the errors of the partial sums, added as if they were
        independent."""
        y, terms = a @ b, a.shape[-1]
        size: Array = np.square(a) @ np.square(b)
        size *= terms / 2
        size += np.square(y) * (terms / 3)
        return self._added(y, np.sqrt(size, out=size), self.tier.accumulation)

    def total(self, terms: Array) -> Array:
        """A sum over the last axis, with the error of adding the terms in turn, as in `matmul`."""
        squares = np.square(terms).sum(axis=-1, keepdims=True)
        return self.sums(terms.sum(axis=-1, keepdims=True), squares, terms.shape[-1])

    def sums(self, y: Array, squares: Array, count: Array | int) -> Array:
        """Sums of `count` terms each, with the error of adding the terms in turn.

        Args:
            y: the sums.
            squares: the sums of the squared terms.
        """
        size = squares * (count / 2) + np.square(y) * (count / 3)
        return self._added(y, np.sqrt(size), self.tier.accumulation)

    def difference(self, x: Array, y: Array) -> Array:
        """x - y with an error proportional to x, as if both had been divided before."""
        return self._added(x - y, x, self.tier.accumulation)

    def _rounded(self, x: Array, u: float, smallest: float = 0.0) -> Array:
        return self._added(x, np.maximum(np.abs(x), smallest) if smallest else x, u)

    def _added(self, x: Array, size: Array, u: float) -> Array:
        """x + e * size. In place, since most of the time is spent here."""
        y = np.empty(size.shape)
        self.rng.random(out=y)
        if y.ndim == 3 and self.alike is not None:  # (B, T, N)
            y[self.alike] = y[self.alike, :1]
        y -= 0.5
        y *= 2.0 * u
        y *= size
        y += x
        return y


class NoisyModel(InstrumentedModel):
    """The model with a different ALiBi anchor in each row. Logits are rounded to the dtype of the model, as in most
    implementations."""

    arithmetic: Noise
    anchors: Int[Array, " B"]

    def centred(self, x: Array) -> Array:
        return self.arithmetic.difference(x, self.arithmetic.wide(self.arithmetic.total(x) / x.shape[-1]))

    def variance(self, centred: Array) -> Array:
        return self.arithmetic.total(np.square(centred)) / centred.shape[-1]

    def total(self, powers: Array) -> Array:
        return self.arithmetic.total(powers)

    def bias(self, is_real: Bool[Array, "B S"], start: int) -> Float[Array, "B H T S"]:
        column = np.arange(is_real.shape[1])
        distance = (column - self.anchors[:, None])[:, None, None, :].astype(self.dtype)
        bias = self.slopes()[:, None, None] * distance
        return self.arithmetic.score(np.broadcast_to(bias, (*bias.shape[:2], len(column) - start, len(column))))

    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, -1e30)  # minus infinity times an error would be NaN

    def head(self, hidden: Array) -> Float[Array, "B T V"]:
        return self.arithmetic.stored(super().head(hidden))


def errors(case: Case, tier: Tier, samples: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield (anchor, errors by name) of every sample.

    Half of the samples have anchor 0: ALiBi counted from the first position, independent errors at each position. The
    other half have anchor 1: ALiBi counted from the last position, the same errors at all positions. float64 cannot
    simulate itself: its errors are those of float32, scaled, and sqrt(2) larger, since the truth has errors, too.
    """
    if tier.accumulation == TIERS["float64"].accumulation:
        ratio = tier.accumulation / TIERS["float32"].accumulation * np.sqrt(2.0)
        for anchor, by_name in errors(case, TIERS["float32"], samples):
            yield anchor, {name: error * ratio for name, error in by_name.items()}
        return
    exact = truth(case).values
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(case.token_ids.tobytes())))
    model = NoisyModel.of(case, Noise(tier, rng))
    order = np.tile([0, 1], samples)
    for anchors in np.array_split(order, -(-len(order) * numbers(case) // ELEMENTS)):
        if len(anchors):
            yield from _run(case, model, anchors, exact)


def affordable(case: Case) -> int:
    """Number of samples for each anchor: fewer than `SAMPLES` for large cases, which have more positions."""
    return int(np.clip(2**19 // numbers(case), FEWEST, SAMPLES))


def _run(
    case: Case, model: NoisyModel, anchors: Array, exact: dict[str, Array]
) -> Iterator[tuple[int, dict[str, Array]]]:
    batch, time = case.token_ids.shape
    model.anchors = np.repeat(anchors * (time - 1), batch)
    model.arithmetic.alike = np.repeat(anchors == 1, batch)
    results = model.run(np.tile(case.token_ids, (len(anchors), 1)), np.tile(case.is_real, (len(anchors), 1)))
    for i, anchor in enumerate(anchors):
        rows = slice(i * batch, (i + 1) * batch)
        yield int(anchor), {name: results[name][rows] - value for name, value in exact.items()}


def numbers(case: Case) -> int:
    """Approximate size of the largest intermediate of a sample."""
    batch, time = case.token_ids.shape
    config = case.config
    return (
        batch
        * time
        * max(config.num_heads * time, config.intermediate_dim, config.vocabulary_size, 3 * config.hidden_dim)
    )
