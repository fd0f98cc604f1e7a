"""Sums of exponentials over the vocabulary against NumPy's in float64."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from accel.numba_cpu.vocabulary import exponential_sums
from bloomref.runtime.backend import VOCABULARY_BLOCK


@pytest.mark.clause("BKD-26")
@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000])
@pytest.mark.parametrize("temperature", [1e-3, 0.8, 1.0, 7.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_sums_are_those_of_numpy(size, temperature, spread):
    rng = np.random.default_rng([size, int(spread)])
    row = (rng.standard_normal(size) * spread).astype(np.float32)
    row[rng.random(size) < 0.1] = -np.inf
    row[rng.integers(size)] = spread
    wide = row.astype(np.float64)
    weights = np.exp((wide - wide.max()) / temperature)
    expected = np.add.reduceat(weights, np.arange(0, size, VOCABULARY_BLOCK))
    for threads in (1, 3):
        np.testing.assert_allclose(exponential_sums(row, temperature, threads), expected, rtol=1e-12, atol=1e-300)
