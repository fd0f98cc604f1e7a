"""Scratch memory of a prepared model."""

import math
import threading
from typing import Any

import numpy as np

from accel.numba_cpu.weight_packing import aligned
from bloomref.shapes import Array


class Buffers(threading.local):
    """Buffers cached by name, separate for each thread; each grows to the largest size that was requested."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array with any content, shared by all requests of that name; a name has one dtype."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = aligned((size,), dtype)
        return self._arrays[name][:size].reshape(shape)
