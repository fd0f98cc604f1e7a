"""Keys and values on the device."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accel.cupy_gpu.device import Array, Device
from accel.cupy_gpu.launches import cache_stride, decode_workspace
from bloomref.config import BloomConfig


@dataclass(frozen=True, eq=False)
class LayerCache:
    """keys and values (B, H, P, cache_stride(K)) in the compute dtype, zeros beyond K."""

    keys: Array
    values: Array

    def __getitem__(self, sequences: slice) -> "LayerCache":
        return LayerCache(self.keys[sequences], self.values[sequences])


@dataclass(frozen=True, eq=False)
class Cache:
    """Every layer's keys and values, and where the parts of a decoding step's attention meet: a call leaves `arrival_counter` zero.

    Args:
        steps: decoding steps over these keys and values, with their memory and graphs (see decode.py), by what they do.
    """

    device: Device
    config: BloomConfig
    layers: list[LayerCache]
    partials: Array
    arrival_counter: Array
    batch: int
    capacity: int
    steps: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, device: Device, config: BloomConfig, layers: list[LayerCache], batch: int, capacity: int) -> "Cache":
        size = decode_workspace(batch, config.num_heads, config.head_dim, capacity, device.sms)
        partials = device.empty((size.partials,), np.dtype(np.float32))
        return cls(device, config, layers, partials, device.zeros((size.arrival_counter,), np.dtype(np.int32)), batch, capacity)

    @classmethod
    def zeros(cls, device: Device, config: BloomConfig, dtype: Any, batch: int, capacity: int) -> "Cache":
        shape = (batch, config.num_heads, capacity, cache_stride(config.head_dim))
        layers = [LayerCache(device.zeros(shape, dtype), device.zeros(shape, dtype)) for _ in range(config.num_layers)]
        return cls.of(device, config, layers, batch, capacity)

    def select(self, rows: Any) -> "Cache":
        take = self.device.take
        layers = [LayerCache(take(layer.keys, rows), take(layer.values, rows)) for layer in self.layers]
        return self.of(self.device, self.config, layers, len(rows), self.capacity)
