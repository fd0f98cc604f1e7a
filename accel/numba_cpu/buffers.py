"""Scratch memory of a prepared model."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from accel.numba_cpu.structs import Workspace
from accel.numba_cpu.weight_packing import aligned
from bloomref.shapes import Array


class Buffers(threading.local):
    """Buffers cached by name, separate for each thread; each grows to the largest size that was requested."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}
        self._rows = 0
        self._workspaces: dict[int, Workspace] = {}

    def workspace(self, m: int, threads: int, build: Callable[[], Workspace]) -> Workspace:
        """`build()` for M rows and so many threads, built again only when M changes."""
        if self._rows != m:
            self._rows, self._workspaces = m, {}
        if threads not in self._workspaces:
            self._workspaces[threads] = build()
        return self._workspaces[threads]

    def take(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array with any content, shared by all requests of that name; a name has one dtype."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = aligned((size,), dtype)
        return self._arrays[name][:size].reshape(shape)
