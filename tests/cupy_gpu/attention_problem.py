"""Problems for the attention kernels."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from problem import Numbers, Problem, Rounding, accumulated, stored

from accel.cupy_gpu import launches
from bloomref import alibi
from bloomref.reference import ops


@dataclass(frozen=True)
class Attention(Problem):
    """A call of an attention kernel: "rows", "flash", "tiled" or "decode"."""

    kind: str = "rows"
    heads: int = 2
    head_width: int = 64
    batch: int = 2
    time: int = 5
    start: int = 0
    padding: str = "real"
    sms: int = 4
    context: str = ""  # dtype of the result, decode only
    spare: int = 3
    """Columns of the cache after the last position, which hold arbitrary numbers."""

    @property
    def returned(self) -> str:
        return self.context or self.dtype

    @property
    def rounds(self) -> bool:
        return self.kind == "flash"

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, visible = self.draws, self.start + self.time
        shape = (self.batch, self.heads, visible + self.spare, self.head_width)
        query = 2 * draw.inner(self.batch, self.time, self.heads, self.head_width)
        is_real = np.zeros((self.batch, visible + self.spare), np.uint8)
        is_real[:, :visible] = draw.padding(self.padding, self.batch, visible)
        return query, draw.hidden(*shape), draw.hidden(*shape), is_real

    def run(self, device: EmulatedDevice) -> Numbers:
        query, keys, values, is_real = self.inputs
        capacity, stride = is_real.shape[1], launches.cache_stride(self.head_width)
        padded = [device.zeros((*keys.shape[:3], stride), keys.dtype) for _ in "kv"]
        for target, source in zip(padded, (keys, values), strict=True):
            target[..., : self.head_width] = source
        out = device.empty(query.shape, stored(self.returned))
        dense = self.padding == "real"
        before = (
            device.upload(query),
            *padded,
            None if dense else device.upload(is_real),
            device.upload(self._slopes),
            out,
        )
        shapes = (self.heads, self.head_width, stride, capacity, 1.0 / math.sqrt(self.head_width))
        start = device.upload(np.array([self.start], np.int32))
        if self.kind == "decode":
            sizes = launches.decode_buffers(self.batch, self.heads, self.head_width, capacity, self.sms)
            partials, arrival_counter = (
                device.empty(sizes.partials, np.float32),
                device.zeros(sizes.arrival_counter, np.int32),
            )
            device.launch(self._launch(device, capacity), *before, partials, arrival_counter, start, *shapes)
            assert not arrival_counter.any()
        else:
            device.launch(self._launch(device, capacity), *before, start, self.time, *shapes)
        return out

    @property
    def _slopes(self) -> Numbers:
        return alibi.slopes(self.heads, accumulated(self.dtype))

    def _launch(self, device: EmulatedDevice, capacity: int) -> launches.Launch:
        sizes = (self.dtype, self.head_width, self.batch, self.heads)
        if self.kind == "decode":
            return launches.attention_decode(*sizes, capacity, self.sms, self.returned)
        if self.kind == "flash":
            return launches.attention_flash(*sizes, self.time, device.arch)
        if self.kind == "tiled":
            return launches.attention_tiled(*sizes[1:], self.time, device.arch)
        return launches.attention_rows(*sizes, self.time)

    def formula(self, a: Any, rounding: Rounding) -> Numbers:
        query, keys, values, is_real = self.inputs
        key = np.arange(self.start + self.time)
        column, real = key[self.start :, None], is_real[:, : len(key)].astype(bool)
        visible = ((key <= column) & real[:, None, :] & real[:, self.start :, None])[:, None]
        rounded = rounding(query.astype(a).swapaxes(1, 2)) * (1.0 / math.sqrt(self.head_width))
        scores = rounded @ keys[:, :, : len(key)].astype(a).swapaxes(-1, -2)
        scores += self._slopes.astype(a)[:, None, None] * (key - column).astype(a)
        probabilities = rounding(ops.softmax(scores, visible))
        return (probabilities @ values[:, :, : len(key)].astype(a)).swapaxes(1, 2)
