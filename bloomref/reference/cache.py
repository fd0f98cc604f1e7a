"""The key-value cache. It has no cursor: every write names its first position (KVC-1)."""

from dataclasses import dataclass

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType
from bloomref.shapes import Array, Bool, Float


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Keys and values of one layer, in the compute dtype."""

    keys: Float[Array, "B H P K"]
    values: Float[Array, "B H P K"]

    @classmethod
    def empty(cls, config: BloomConfig, batch: int, capacity: int, dtype: DType) -> "LayerCache":
        shape = (batch, config.num_heads, capacity, config.head_dim)
        return cls(np.zeros(shape, dtype), np.zeros(shape, dtype))

    def write(
        self, start: int, key: Float[Array, "B H T K"], value: Float[Array, "B H T K"]
    ) -> tuple[Float[Array, "B H S K"], Float[Array, "B H S K"]]:
        """Store positions [start, start + T), rounding once, and return all positions [0, start + T)."""
        stop = start + key.shape[2]
        self.keys[:, :, start:stop] = key
        self.values[:, :, start:stop] = value
        return self.keys[:, :, :stop], self.values[:, :, :stop]


@dataclass(frozen=True, eq=False)
class Cache:
    """The caches of all layers, and the mask of real tokens among the positions written so far (KVC-3)."""

    layers: tuple[LayerCache, ...]
    is_real: Bool[Array, "B P"]

    @classmethod
    def empty(cls, config: BloomConfig, batch: int, capacity: int, dtype: DType) -> "Cache":
        layers = tuple(LayerCache.empty(config, batch, capacity, dtype) for _ in range(config.num_layers))
        return cls(layers, np.zeros((batch, capacity), bool))

    @property
    def capacity(self) -> int:
        return self.is_real.shape[1]

    def select(self, rows: Array) -> "Cache":
        """A copy with the given batch rows, in that order; a row may repeat (beam search)."""
        layers = tuple(LayerCache(layer.keys[rows], layer.values[rows]) for layer in self.layers)
        return Cache(layers, self.is_real[rows])
