"""Sums and largest numbers of rows of every length, against Python."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from accel.numba_cpu import reductions  # noqa: E402
from accel.numba_cpu.isa import NR  # noqa: E402

LENGTHS = (0, 1, NR - 1, NR, NR + 1, 3 * NR, 10 * NR + 5)


def row(length):
    return np.random.default_rng(length).standard_normal(length).astype(np.float32)


def lanes():
    return np.full(NR, np.nan, np.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_sums(length):
    """Within the bound of a sum in any order; trailing zeros change no bit."""
    x = row(length)
    for sum_of, terms in ((reductions.total_of, x), (reductions.squares_of, x.astype(np.float64) ** 2)):
        assert abs(sum_of(x, lanes()) - math.fsum(terms)) <= (length + 6) * 2.0**-24 * math.fsum(np.abs(terms))
        assert sum_of(np.pad(x, (0, 2 * NR)), lanes()) == sum_of(x, lanes())


def test_lane_by_lane():
    """Lane j is its start and every NR-th number from `at + j` on, in this order."""

    @numba.njit
    def fold(x, at, panels, total, largest):
        reductions.fold_sum(x, at, panels, total)
        reductions.fold_largest(x, at, panels, largest)

    x, start = row(7 * NR), row(NR)
    for at, panels in ((0, 7), (3, 5), (NR, 1), (5, 0)):
        total, largest, expected = start.copy(), start.copy(), start.copy()
        fold(x, at, panels, total, largest)
        columns = x[at : at + panels * NR].reshape(panels, NR)
        for column in columns:
            expected += column
        np.testing.assert_array_equal(total, expected)
        np.testing.assert_array_equal(largest, np.vstack([start, columns]).max(0))
