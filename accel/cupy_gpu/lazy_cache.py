"""`LazyCache`: a cache whose copies are made when they are needed, so that a generation never holds two.

A generation drops its cache once it has selected the rows that go on. So `select` copies nothing; the next call does.
If nobody else holds the old cache by then, its layers are released one by one, or get their rows in place. The peak is
one cache and one layer.
"""

from threading import RLock
from typing import Any
from weakref import WeakSet

from accel.cupy_gpu.decode import DecodingCache

_LOCK = RLock()
"""Held while rows are copied, because two threads may use two caches that share keys and values."""


class LazyCache:
    """Keys and values on the device, or rows of another cache that are not copied yet.

    Args:
        state: The cache, or the one that the rows are copied from.
        rows: Rows to copy (integers on the host), or None.
        holders: The caches that share `state`.
    """

    def __init__(self, state: DecodingCache, rows: Any = None, holders: "WeakSet[LazyCache] | None" = None) -> None:
        self._state, self._rows = state, rows
        self._holders: WeakSet[LazyCache] = WeakSet() if holders is None else holders
        self._holders.add(self)

    @property
    def batch(self) -> int:
        return self._state.batch if self._rows is None else len(self._rows)

    @property
    def capacity(self) -> int:
        return self._state.capacity

    def select(self, rows: Any) -> "LazyCache":
        """Return a copy of these rows, which is made before this cache or the copy is used."""
        with _LOCK:
            rows = rows.copy() if self._rows is None else self._rows[rows]
            return LazyCache(self._state, rows, self._holders)

    def state(self) -> DecodingCache:
        """Return the keys and values, which the caller may write to: copies of them are made first.

        Raises:
            Unsupported: Out of memory.
        """
        with _LOCK:
            waiting = [self] if self._rows is not None else [cache for cache in self._holders if cache is not self]
            for cache in waiting:
                cache._own()
            return self._state

    def _own(self) -> None:
        """Copy the rows, or take them if no other cache shares them."""
        shared, rows = len(self._holders) > 1, self._rows
        self._holders.discard(self)
        self._state, self._rows, self._holders = (
            self._state.select(rows) if shared else self._state.reduced(rows),
            None,
            WeakSet([self]),
        )
