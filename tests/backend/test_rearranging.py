"""Rows of a cache change places within its memory, on every backend; where it cannot, the cache is copied."""

import numpy as np
import pytest

from bloomref import BloomBackbone

WRITTEN = 37
"""Positions in the cache: an odd number, in the second panel of any layout."""


@pytest.fixture(scope="module", params=["float64", "float32", "bfloat16", "float16"])
def model(backend: str, request: pytest.FixtureRequest) -> BloomBackbone:
    return BloomBackbone(50, 2, 3, 15, 30, dtype=request.param, backend=backend, seed=1)


@pytest.mark.clause("BKD-27")
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 3], [2], [3, 0], [0, 0, 1, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("start", [0, WRITTEN - 1])
def test_the_rows_are_those_of_a_copy(model: BloomBackbone, rows: list[int], start: int) -> None:
    """What follows is the same, bit for bit: the last position alone is copied where rows are alike before it."""
    engine, index = model.engine, np.array(rows)
    ids = np.random.default_rng(0).integers(0, 50, (4, WRITTEN))
    is_real = np.ones(ids.shape, bool)
    is_real[1, :3] = start > 0
    ids[:, :start] = ids[:1, :start]
    next_ids = np.full((len(rows), 2), 7)
    results = []
    for arrange in (lambda cache: cache.select(index), lambda cache: cache.rearranged(index, start, WRITTEN)):
        cache = engine.new_cache(4, 70)
        engine.read(cache, 0, ids, is_real)
        cache = arrange(cache)
        results.append((cache.is_real, engine.read(cache, WRITTEN, next_ids)))
        assert results[-1][1].shape == (len(rows), 50)
    for copied, moved in zip(*results, strict=True):
        np.testing.assert_array_equal(moved, copied)
