"""Copies of a cache: their values, their memory, and the graphs that they keep. The kernels are emulated."""

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
from emulated_device import EmulatedDevice, Numbers
from host_model import CONFIG

from accel.cupy_gpu.decode import DecodingCache
from accel.cupy_gpu.lazy_cache import LazyCache

ROWS = 4
FLOAT = np.dtype(np.float32)


class Counting(EmulatedDevice):
    """A device that counts the bytes of the arrays that exist, and their peak."""

    held = peak = 0

    def empty(self, shape: Any, dtype: Any) -> Numbers:
        array = super().empty(shape, dtype)
        size = math.prod(array.shape) * array.itemsize
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(array.base, self._free, size)
        return array

    def _free(self, size: int) -> None:
        self.held -= size


def numbered(device: EmulatedDevice, layers: int = 5) -> LazyCache:
    """Return a cache in which every key of row r is r, and every value -r."""
    cache = DecodingCache.zeros(device, CONFIG.replace(num_layers=layers), FLOAT, ROWS, 8)
    for layer in cache.layers:
        layer.keys[:] = np.arange(ROWS)[:, None, None, None]
        layer.values[:] = -layer.keys
    return LazyCache(cache)


def rows_of(cache: LazyCache) -> list[int]:
    """Return the rows of a numbered cache that this one has, which must be the same in every layer."""
    layers = cache.state().layers
    assert all((layer.keys == layers[0].keys).all() and (layer.values == -layer.keys).all() for layer in layers)
    assert layers[0].keys.shape[0] == cache.batch
    return layers[0].keys[:, 0, 0, 0].astype(int).tolist()


@pytest.mark.clause("BKD-4")
def test_a_copy_has_the_rows_of_the_time_of_the_call() -> None:
    cache = numbered(EmulatedDevice())
    copies = [cache.select(np.array(rows)) for rows in ([3, 1], [0], [2, 2, 1, 0, 3])]
    of_a_copy = copies[0].select(np.array([1, 0, 0]))
    for layer in cache.state().layers:  # a caller that is about to write
        layer.keys[:] = layer.values[:] = 0
    assert [rows_of(copy) for copy in (*copies, of_a_copy)] == [[3, 1], [0], [2, 2, 1, 0, 3], [1, 3, 3]]
    assert rows_of(cache) == [0] * ROWS


@pytest.mark.clause("BKD-4")
@pytest.mark.parametrize("dropped", [False, True])
def test_copies_are_independent_of_each_other(dropped: bool) -> None:
    cache: LazyCache | None = numbered(EmulatedDevice())
    assert cache is not None
    index = np.array([1, 0, 3, 2])
    first, second = cache.select(index), cache.select(np.array([3]))
    index[:] = 0  # the caller's own array
    if dropped:
        cache = None
    assert rows_of(first) == [1, 0, 3, 2]
    for layer in first.state().layers:
        layer.keys[:] = layer.values[:] = 0
    assert rows_of(second) == [3]
    assert cache is None or rows_of(cache) == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [[0, 2, 3], [3, 3, 1, 0]], ids=["fewer", "as many"])
def test_the_copy_of_a_dropped_cache_needs_one_layer_more(rows: list[int]) -> None:
    device = Counting()
    cache = numbered(device, layers=10)
    before = device.held
    copy = cache.select(np.array(rows))
    assert device.held == before
    del cache
    device.peak = 0
    assert rows_of(copy) == rows
    assert device.peak <= before * 1.15  # a tenth for a layer, and the buffers of attention
    del copy
    gc.collect()
    assert device.held == 0


def test_as_many_rows_keep_their_memory_and_their_steps() -> None:
    """So a graph that was captured before serves beam search, which reorders its rows after each step."""
    cache = numbered(EmulatedDevice())
    state = cache.state()
    cache = cache.select(np.array([2, 2, 0, 1]))
    assert cache.state() is state
    assert rows_of(cache) == [2, 2, 0, 1]
    cache = cache.select(np.array([0, 1]))
    assert cache.state() is not state
    assert rows_of(cache) == [2, 2]
