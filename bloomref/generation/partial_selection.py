"""A few entries of a row as long as the vocabulary, found without a sort or a copy of it.

A row is divided into blocks of BLOCK entries. One pass finds the maximum of every block. The k-th highest of these is a
lower bound of the k-th highest entry, so only blocks whose maximum reaches it are searched.
"""

from collections.abc import Callable

import numpy as np

from bloomref.runtime.backend import VOCABULARY_BLOCK
from bloomref.shapes import Array, Float, Int

BLOCK = VOCABULARY_BLOCK
"""Entries of a block; the last block may be shorter."""
ROUNDING = 2.0**-50
"""Numbers that differ by more, relative to the largest number involved, stay apart in the operations on scores."""
Sums = Callable[[Float[Array, " V"], float], Float[Array, " N"]]
"""exp((s - largest s) / temperature), summed over each block, in float64: `exponential_sums` or a faster one."""


def exponential_sums(row: Float[Array, " V"], temperature: float) -> Float[Array, " N"]:
    """exp((s - largest s) / temperature), summed over each block. At least one entry is above -inf."""
    largest = np.float64(row.max())
    parts, step = [], 32 * BLOCK  # numbers that stay in the processor's cache
    for first in range(0, row.size, step):
        weights = np.exp((row[first : first + step].astype(np.float64) - largest) / temperature)
        parts.append(np.add.reduceat(weights, np.arange(0, weights.size, BLOCK)))
    return np.concatenate(parts)


def at_least(row: Float[Array, " V"], threshold: float) -> Int[Array, " N"]:
    """Indices of the entries that are not below the threshold, in ascending order."""
    return _search(row, _peaks(row), threshold)


def highest(row: Float[Array, " V"], count: int, spread: float = 0.0) -> Int[Array, " N"]:
    """Indices, in ascending order, of the `count` highest entries and of all that may equal the lowest of them.

    Args:
        spread: largest size of the numbers that are still added to the entries. Entries which such a sum may round to
            the same number are equal.
    """
    if count >= row.size:
        return np.arange(row.size)
    if 4 * count * BLOCK > row.size:
        lowest = np.partition(row, -count)[-count]
        return np.flatnonzero(row >= _below(row, float(lowest), spread))
    peaks = _peaks(row)
    bound = _below(row, float(np.partition(peaks, -count)[-count]), spread)
    indices = _search(row, peaks, bound)
    found_values = row[indices]
    lowest = np.partition(found_values, -count)[-count]
    return indices[found_values >= _below(row, float(lowest), spread)]


def _below(row: Float[Array, " V"], value: float, spread: float) -> np.floating:
    """A number of the row's dtype below all that may round to `value`."""
    wide = value - ROUNDING * (abs(value) + spread) if np.isfinite(value) else value
    with np.errstate(over="ignore"):
        below: np.floating = np.nextafter(row.dtype.type(wide), row.dtype.type(-np.inf))
    return below


def _peaks(row: Float[Array, " V"]) -> Float[Array, " N"]:
    whole = row.size // BLOCK * BLOCK
    peaks = row[:whole].reshape(-1, BLOCK).max(axis=1)
    return peaks if whole == row.size else np.append(peaks, row[whole:].max())


def _search(row: Float[Array, " V"], peaks: Float[Array, " N"], threshold: float | np.floating) -> Int[Array, " N"]:
    blocks = np.flatnonzero(peaks >= threshold)
    if 8 * blocks.size > peaks.size:
        return np.flatnonzero(row >= threshold)
    whole = row.size // BLOCK
    full = blocks[blocks < whole]
    place, entry = np.nonzero(row[: whole * BLOCK].reshape(-1, BLOCK)[full] >= threshold)
    indices = full[place] * BLOCK + entry
    if full.size == blocks.size:
        return indices
    return np.append(indices, whole * BLOCK + np.flatnonzero(row[whole * BLOCK :] >= threshold))
