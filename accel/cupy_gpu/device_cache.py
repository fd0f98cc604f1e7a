"""The KV cache on the device."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.launches import cache_stride, decode_buffers
from bloomref.config import BloomConfig


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Keys and values (B, H, P, cache_stride(K)) in the compute dtype, with zeros beyond K."""

    keys: Array
    values: Array

    def __getitem__(self, sequences: slice) -> "LayerCache":
        return LayerCache(self.keys[sequences], self.values[sequences])


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of every layer, with the buffers of split-K decoding attention.

    Args:
        layers: One LayerCache per layer.
        partials: float32, partial softmax states of the splits.
        arrival_counter: int32, number of splits that have finished, per sequence and head; zero between calls.
        batch, capacity: B and P.
    """

    device: Device
    config: BloomConfig
    layers: list[LayerCache]
    partials: Array
    arrival_counter: Array
    batch: int
    capacity: int

    @classmethod
    def of(cls, device: Device, config: BloomConfig, layers: list[LayerCache], batch: int, capacity: int) -> Self:
        """Return a cache over these layers, with new buffers."""
        size = decode_buffers(batch, config.num_heads, config.head_dim, capacity, device.sms)
        partials = device.empty((size.partials,), np.dtype(np.float32))
        return cls(
            device, config, layers, partials, device.zeros((size.arrival_counter,), np.dtype(np.int32)), batch, capacity
        )

    @classmethod
    def zeros(cls, device: Device, config: BloomConfig, dtype: Any, batch: int, capacity: int) -> Self:
        """Return an empty cache whose keys and values have `dtype`."""
        shape = (batch, config.num_heads, capacity, cache_stride(config.head_dim))
        layers = [LayerCache(device.zeros(shape, dtype), device.zeros(shape, dtype)) for _ in range(config.num_layers)]
        return cls.of(device, config, layers, batch, capacity)

    def select(self, rows: Any) -> Self:
        """Return a copy of these rows (integers on the host)."""
        layers = [self._taken(layer, rows) for layer in self.layers]
        return self.of(self.device, self.config, layers, len(rows), self.capacity)

    def reduced(self, rows: Any) -> Self:
        """Return these rows. This cache must not be used afterwards: its memory is released layer by layer.

        As many rows as before stay in the same memory, so the graphs of decoding steps stay valid.
        """
        if len(rows) != self.batch:
            for i in range(len(self.layers)):
                self.layers[i] = self._taken(self.layers[i], rows)
            return self.of(self.device, self.config, self.layers, len(rows), self.capacity)
        for layer in self.layers:
            for array in (layer.keys, layer.values):
                self.device.copy(array, self.device.take(array, rows))
        return self

    def _taken(self, layer: LayerCache, rows: Any) -> LayerCache:
        return LayerCache(self.device.take(layer.keys, rows), self.device.take(layer.values, rows))
