"""A draw without a look at every token: the few that the truncations leave, or the block that a draw falls into.

Every function gives what `truncate` and `draw` give of all scores. Sums here are added in another order than there;
where that could matter, because a number lies within MARGIN of a boundary, all scores are used instead.
"""

import math

import numpy as np

from bloomref.generation import partial_selection
from bloomref.generation.options import GenerationOptions
from bloomref.generation.partial_selection import Sums
from bloomref.generation.row_scores import Scores
from bloomref.shapes import Array, Float, Int

MARGIN = 1e-10
"""Far above the rounding error of a sum over a vocabulary, relative to the sum."""
TEMPERATURES = 1e-30, 1e30
"""Between these, two different logits stay different when they are divided."""
LARGEST = 1e4
"""A score divided by the temperature above which the order of a subtraction and a division matters beyond MARGIN."""
NUCLEUS_SIZES = 64, 1024, 8192
"""Sizes that a nucleus is tried with before all tokens are sorted."""

Entries = tuple[Int[Array, " N"], Float[Array, " N"]]
"""Ids, ascending, and their scores."""


def temperature_of(options: GenerationOptions) -> float:
    return 1.0 if options.temperature is None else float(options.temperature)


def candidates(scores: Scores, options: GenerationOptions, sums: Sums) -> tuple[Entries, bool]:
    """Entries that contain all that the truncations leave, whatever they leave of the others.

    Returns:
        The entries, and True if they are what top-p leaves, so that it is not to be applied again.
    """
    temperature = temperature_of(options)
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        return _all(scores), False
    if options.top_k is not None:
        return scores.highest(options.top_k), False
    if options.top_p is not None and options.top_p < 1:
        nucleus = _nucleus(scores, temperature, options.top_p, sums)
        return (_all(scores), False) if nucleus is None else (nucleus, True)
    if options.min_p:
        largest = scores.largest()
        threshold = largest + temperature * math.log(options.min_p)
        return scores.at_least(threshold - MARGIN * (abs(largest) + abs(threshold) + temperature)), False
    return _all(scores), False


def draw_from_all(scores: Scores, options: GenerationOptions, number: float, sums: Sums) -> int | None:
    """The drawn token where nothing truncates: sums over blocks decide which block is looked at.

    Returns:
        None if there are truncations, or the number is too close to the boundary of two tokens.
    """
    truncations = options.top_k is not None, options.min_p, (options.top_p or 1) < 1, (options.typical_p or 1) < 1
    temperature = temperature_of(options)
    if any(truncations) or not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        return None
    largest = scores.largest()
    if abs(largest) > LARGEST * temperature:
        return None
    totals = np.cumsum(scores.block_sums(temperature, sums))
    place = number * totals[-1]
    block = int(np.searchsorted(totals, place, side="right"))
    if block == totals.size:
        return None
    first = block * partial_selection.BLOCK
    weights = np.exp(_part(scores, first) / temperature - largest / temperature)
    bounds = np.cumsum([totals[block - 1] if block else 0.0, *weights])
    entry = int(np.searchsorted(bounds[1:], place, side="right"))
    if entry == weights.size or np.abs(bounds[entry : entry + 2] - place).min() < MARGIN * totals[-1]:
        return None
    return first + entry


def _all(scores: Scores) -> Entries:
    values = scores.dense()
    ids = np.flatnonzero(values > -np.inf)
    return ids, values[ids]


def _part(scores: Scores, first: int) -> Float[Array, " N"]:
    """The scores of the block that begins with this id."""
    values = scores.of(np.arange(first, min(first + partial_selection.BLOCK, scores.plain.size)))
    inside = (scores.ids >= first) & (scores.ids < first + partial_selection.BLOCK)
    values[scores.ids[inside] - first] = scores.values[inside]
    return values


def _nucleus(scores: Scores, temperature: float, p: float, sums: Sums) -> Entries | None:
    """The entries that top-p leaves; None if they are many, or a sum is too close to the boundary."""
    largest, total = scores.largest(), None
    for size in NUCLEUS_SIZES:
        if 4 * size > scores.plain.size or abs(largest) > LARGEST * temperature:
            return None
        if total is None:
            total = float(scores.block_sums(temperature, sums).sum())
        ids, values = scores.highest(size)
        lowest = np.partition(values, -min(size, values.size))[-min(size, values.size)]
        ids, values = ids[values >= lowest], values[values >= lowest]  # all others are lower
        order = np.lexsort((-ids, values))
        weights = np.exp(values[order] / temperature - largest / temperature) / total
        ends = (1.0 - weights.sum()) + np.cumsum(weights)
        if ends[0] - weights[0] > 1.0 - p - MARGIN:
            continue
        if np.abs(ends - (1.0 - p)).min() < MARGIN:
            return None
        kept = np.sort(order[ends > 1.0 - p])
        return ids[kept], values[kept]
    return None
